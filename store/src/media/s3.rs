//! Media objects in S3, or in a server that speaks its protocol.
//!
//! Credentials come from the SDK's default chain alone: environment, profile, IRSA, Pod Identity,
//! instance. The SDK retries with jitter, resumes nothing and reads the error that
//! `CompleteMultipartUpload` may answer with status 200.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::Builder;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_s3::presigning::{PresignedRequest, PresigningConfig};
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart, ServerSideEncryption};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use shared::config::MediaConfig;

use super::{
    DownloadTerms, MediaError, MediaStore, Object, OpenUpload, PartOf, Put, SignedRequest,
    UploadTerms, check_parts,
};

/// How often the SDK tries one operation.
const ATTEMPTS: u32 = 3;
/// How long one try may take: a part of 8 MiB on a slow day.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(20);
const OPERATION_TIMEOUT: Duration = Duration::from_secs(50);
/// Headers that every HTTP client makes by itself.
const OWN_HEADERS: [&str; 2] = ["host", "content-length"];

/// Media objects in one bucket.
#[derive(Debug, Clone)]
pub struct S3Store {
    client: Client,
    bucket: String,
    kms_key_id: Option<String>,
}

impl S3Store {
    /// Makes the client; the first request finds credentials.
    pub async fn connect(config: &MediaConfig) -> Self {
        let timeouts = TimeoutConfig::builder()
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .operation_timeout(OPERATION_TIMEOUT)
            .build();
        let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
            .timeout_config(timeouts);
        if !config.region.is_empty() {
            loader = loader.region(Region::new(config.region.clone()));
        }
        if !config.endpoint.is_empty() {
            loader = loader.endpoint_url(&config.endpoint);
        }
        let loaded = loader.load().await;
        // Servers that are not AWS have one name for all buckets.
        let settings = Builder::from(&loaded).force_path_style(!config.endpoint.is_empty());
        Self {
            client: Client::from_conf(settings.build()),
            bucket: config.bucket.clone(),
            kms_key_id: Some(config.kms_key_id.clone()).filter(|key| !key.is_empty()),
        }
    }

    fn encryption(&self) -> Option<ServerSideEncryption> {
        self.kms_key_id
            .as_ref()
            .map(|_| ServerSideEncryption::AwsKms)
    }

    /// Lists what parts an upload has, with their size together.
    async fn parts(
        &self,
        key: &str,
        upload: &str,
    ) -> Result<(Vec<CompletedPart>, u64), MediaError> {
        let mut parts = Vec::new();
        let mut size = 0;
        let mut pages = self
            .client
            .list_parts()
            .bucket(&self.bucket)
            .key(key)
            .upload_id(upload)
            .into_paginator()
            .send();
        while let Some(page) = pages.next().await {
            for part in page.map_err(failed)?.parts() {
                let completed = CompletedPart::builder()
                    .set_part_number(part.part_number())
                    .set_e_tag(part.e_tag().map(str::to_owned))
                    .set_checksum_crc32(part.checksum_crc32().map(str::to_owned))
                    .set_checksum_crc64_nvme(part.checksum_crc64_nvme().map(str::to_owned));
                parts.push(completed.build());
                size += unsigned(part.size());
            }
        }
        Ok((parts, size))
    }
}

#[async_trait]
impl MediaStore for S3Store {
    async fn put(&self, key: &str, body: Bytes, content_type: &str) -> Result<Put, MediaError> {
        let request = self.client.put_object().bucket(&self.bucket).key(key);
        let answer = request
            .if_none_match("*")
            .content_type(content_type)
            .set_server_side_encryption(self.encryption())
            .set_ssekms_key_id(self.kms_key_id.clone())
            .body(ByteStream::from(body))
            .send()
            .await;
        created_or_exists(answer.map(|_| ()))
    }

    async fn read(&self, key: &str, offset: u64, length: u64) -> Result<Bytes, MediaError> {
        if length == 0 {
            return Ok(Bytes::new());
        }
        let last = offset.saturating_add(length - 1);
        let request = self.client.get_object().bucket(&self.bucket).key(key);
        let answer = request.range(format!("bytes={offset}-{last}")).send().await;
        let answer = match answer {
            Ok(answer) => answer,
            // Nothing there from `offset` on.
            Err(error) if error.code() == Some("InvalidRange") => return Ok(Bytes::new()),
            Err(error) => return Err(failed(error)),
        };
        let body = answer.body.collect().await;
        let body = body.map_err(|error| MediaError::Unavailable(Box::new(error)))?;
        Ok(body.into_bytes())
    }

    async fn size(&self, key: &str) -> Result<Option<u64>, MediaError> {
        let request = self.client.head_object().bucket(&self.bucket).key(key);
        match request.send().await.map_err(failed) {
            Ok(head) => Ok(Some(unsigned(head.content_length()))),
            Err(MediaError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn delete(&self, key: &str) -> Result<(), MediaError> {
        let request = self.client.delete_object().bucket(&self.bucket).key(key);
        absent_is_fine(request.send().await.map(|_| ()).map_err(failed))
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Object>, MediaError> {
        let request = self.client.list_objects_v2().bucket(&self.bucket);
        let answer = request
            .prefix(prefix)
            .set_start_after(after.map(str::to_owned))
            .max_keys(i32::try_from(limit).unwrap_or(i32::MAX))
            .send()
            .await
            .map_err(failed)?;
        let objects = answer.contents().iter().filter_map(|object| {
            Some(Object {
                key: object.key()?.to_owned(),
                size: unsigned(object.size()),
                written_at: time(object.last_modified()?),
            })
        });
        Ok(objects.collect())
    }

    async fn begin_parts(&self, key: &str, content_type: &str) -> Result<String, MediaError> {
        let request = self.client.create_multipart_upload().bucket(&self.bucket);
        let answer = request
            .key(key)
            .content_type(content_type)
            .set_server_side_encryption(self.encryption())
            .set_ssekms_key_id(self.kms_key_id.clone())
            .send()
            .await
            .map_err(failed)?;
        let upload = answer.upload_id().map(str::to_owned);
        upload.ok_or_else(|| MediaError::Refused("the upload has no id".to_owned()))
    }

    async fn put_part(&self, part: PartOf<'_>, body: Bytes) -> Result<(), MediaError> {
        let request = self.client.upload_part().bucket(&self.bucket).key(part.key);
        request
            .upload_id(part.upload)
            .part_number(part.number.into())
            .body(ByteStream::from(body))
            .send()
            .await
            .map(|_| ())
            .map_err(failed)
    }

    async fn complete_parts(&self, key: &str, upload: &str, size: u64) -> Result<Put, MediaError> {
        let (parts, found) = self.parts(key, upload).await?;
        check_parts(found, size)?;
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts));
        let request = self.client.complete_multipart_upload().bucket(&self.bucket);
        let answer = request
            .key(key)
            .upload_id(upload)
            .if_none_match("*")
            .multipart_upload(parts.build())
            .send()
            .await;
        let put = created_or_exists(answer.map(|_| ()))?;
        if put == Put::Exists {
            self.abort_parts(key, upload).await?;
        }
        Ok(put)
    }

    async fn abort_parts(&self, key: &str, upload: &str) -> Result<(), MediaError> {
        let request = self.client.abort_multipart_upload().bucket(&self.bucket);
        let aborted = request.key(key).upload_id(upload).send().await;
        absent_is_fine(aborted.map(|_| ()).map_err(failed))
    }

    async fn open_uploads(&self, prefix: &str) -> Result<Vec<OpenUpload>, MediaError> {
        let request = self.client.list_multipart_uploads().bucket(&self.bucket);
        let answer = request.prefix(prefix).send().await.map_err(failed)?;
        let uploads = answer.uploads().iter().filter_map(|upload| {
            Some(OpenUpload {
                key: upload.key()?.to_owned(),
                upload: upload.upload_id()?.to_owned(),
                begun_at: time(upload.initiated()?),
            })
        });
        Ok(uploads.collect())
    }

    async fn sign_put(
        &self,
        key: &str,
        terms: &UploadTerms,
        ttl: Duration,
    ) -> Result<SignedRequest, MediaError> {
        let request = self.client.put_object().bucket(&self.bucket).key(key);
        let signed = request
            .content_type(&terms.content_type)
            .content_length(signed_size(terms.size)?)
            .checksum_sha256(STANDARD.encode(terms.sha256))
            .set_server_side_encryption(self.encryption())
            .set_ssekms_key_id(self.kms_key_id.clone())
            .presigned(expiring(ttl)?)
            .await
            .map_err(failed)?;
        Ok(request_of(&signed))
    }

    async fn sign_part(
        &self,
        part: PartOf<'_>,
        size: u64,
        ttl: Duration,
    ) -> Result<SignedRequest, MediaError> {
        let request = self.client.upload_part().bucket(&self.bucket).key(part.key);
        let signed = request
            .upload_id(part.upload)
            .part_number(part.number.into())
            .content_length(signed_size(size)?)
            .presigned(expiring(ttl)?)
            .await
            .map_err(failed)?;
        Ok(request_of(&signed))
    }

    async fn sign_get(
        &self,
        key: &str,
        terms: &DownloadTerms,
        ttl: Duration,
    ) -> Result<String, MediaError> {
        let request = self.client.get_object().bucket(&self.bucket).key(key);
        let signed = request
            .response_content_type(&terms.content_type)
            .response_content_disposition(&terms.disposition)
            .presigned(expiring(ttl)?)
            .await
            .map_err(failed)?;
        Ok(signed.uri().to_owned())
    }

    async fn ping(&self) -> Result<(), MediaError> {
        let request = self.client.head_bucket().bucket(&self.bucket);
        match request.send().await.map_err(failed) {
            Err(MediaError::NotFound) => Err(MediaError::Refused(format!(
                "there is no bucket {:?}; create it, or set AWS_S3_BUCKET",
                self.bucket
            ))),
            answer => answer.map(|_| ()),
        }
    }
}

fn expiring(ttl: Duration) -> Result<PresigningConfig, MediaError> {
    PresigningConfig::expires_in(ttl).map_err(|error| MediaError::Refused(error.to_string()))
}

fn request_of(signed: &PresignedRequest) -> SignedRequest {
    let headers = signed.headers();
    SignedRequest {
        method: signed.method().to_owned(),
        url: signed.uri().to_owned(),
        headers: headers
            .filter(|(name, _)| !OWN_HEADERS.contains(name))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
    }
}

/// Sorts an error by what the caller can do.
fn failed<E>(error: SdkError<E>) -> MediaError
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let status = error
        .raw_response()
        .map(|response| response.status().as_u16());
    let code = error.code().unwrap_or_default();
    match (status, code) {
        (_, "NoSuchKey" | "NoSuchUpload" | "NotFound") | (Some(404), "") => MediaError::NotFound,
        // A part that differs from its checksum was damaged on the way: send it again.
        (_, "BadDigest" | "RequestTimeout" | "SlowDown" | "OperationAborted") => {
            MediaError::Unavailable(Box::new(error))
        }
        (Some(400..=499), _) => MediaError::Refused(DisplayErrorContext(&error).to_string()),
        _ => MediaError::Unavailable(Box::new(error)),
    }
}

/// 412: somebody was first; 409: somebody is writing at this moment.
fn created_or_exists<E>(answer: Result<(), SdkError<E>>) -> Result<Put, MediaError>
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    match answer {
        Ok(()) => Ok(Put::Created),
        Err(error) if error.code() == Some("PreconditionFailed") => Ok(Put::Exists),
        Err(error) if error.code() == Some("ConditionalRequestConflict") => {
            Err(MediaError::Unavailable(Box::new(error)))
        }
        Err(error) => Err(failed(error)),
    }
}

fn absent_is_fine(answer: Result<(), MediaError>) -> Result<(), MediaError> {
    match answer {
        Err(MediaError::NotFound) => Ok(()),
        answer => answer,
    }
}

fn unsigned(size: Option<i64>) -> u64 {
    u64::try_from(size.unwrap_or_default()).unwrap_or_default()
}

fn signed_size(size: u64) -> Result<i64, MediaError> {
    i64::try_from(size).map_err(|_| MediaError::Refused(format!("{size} bytes are too many")))
}

fn time(time: &DateTime) -> SystemTime {
    SystemTime::try_from(*time).unwrap_or(SystemTime::UNIX_EPOCH)
}
