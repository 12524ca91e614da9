//! Media: where objects are kept, what may be uploaded, and what is made of pictures.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::duration;

/// Pictures and files: section `[media]`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MediaConfig {
    /// S3 bucket of the objects; empty: nothing can be uploaded. Credentials come from the AWS
    /// SDK's default chain only. Environment: `AWS_S3_BUCKET`.
    pub bucket: String,
    /// Region of the bucket; empty: the AWS SDK's default. Environment: `AWS_S3_REGION`.
    pub region: String,
    /// Address of an S3 server that is not AWS; it is asked by path, not by host name.
    /// Environment: `AWS_ENDPOINT_URL`.
    pub endpoint: String,
    /// Key of SSE-KMS that new objects are encrypted with; empty: the bucket's own encryption.
    pub kms_key_id: String,
    /// Folder that keeps the objects in `wyd dev`, which sets it.
    pub folder: String,
    /// Content types that may be uploaded; a file's own bytes decide which it is.
    pub content_types: Vec<String>,
    /// Largest file, in bytes.
    pub size_max: u64,
    /// Largest picture, in bytes.
    pub image_bytes_max: u64,
    /// Largest file that `POST /v1/media` takes as its body; the job carries it to the worker.
    pub small_bytes_max: usize,
    /// Files from this size on are uploaded in parts.
    pub multipart_bytes_min: u64,
    /// Media of one user that may wait for their upload.
    pub pending_max: usize,
    /// Bytes that one user may announce in 24 hours.
    pub bytes_per_day_max: u64,
    /// How long the address of an upload is good.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub upload_url_ttl: Duration,
    /// How long the address of a download is good.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub download_url_ttl: Duration,
    /// How long an upload may take, from `media.create` to `media.complete`; what is left then is
    /// deleted.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub staging_ttl: Duration,
    /// Most pixels of a picture that is decoded.
    pub image_pixels_max: u64,
    /// Memory that all pictures being decoded may take together, in bytes; a picture that would
    /// need more is rejected.
    pub image_memory_max: u64,
    /// How long one picture may take.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub image_timeout: Duration,
    /// Longest side of a kept picture, in pixels; larger ones are scaled down to it.
    pub image_side_max: u32,
    /// Longest sides of the thumbnails, in pixels.
    pub thumbnail_sides: Vec<u32>,
    /// Uploads that one worker handles at once.
    pub parallel: usize,
}

impl Default for MediaConfig {
    fn default() -> Self {
        let content_types = [
            "image/jpeg",
            "image/png",
            "image/webp",
            "image/gif",
            "video/mp4",
            "video/quicktime",
            "video/webm",
            "audio/mpeg",
            "audio/m4a",
            "audio/ogg",
            "audio/aac",
            "application/pdf",
        ];
        Self {
            bucket: String::new(),
            region: String::new(),
            endpoint: String::new(),
            kms_key_id: String::new(),
            folder: String::new(),
            content_types: content_types.map(str::to_owned).to_vec(),
            size_max: 1 << 30,
            image_bytes_max: 16 << 20,
            small_bytes_max: 512 << 10,
            multipart_bytes_min: 16 << 20,
            pending_max: 20,
            bytes_per_day_max: 5 << 30,
            upload_url_ttl: Duration::from_secs(15 * 60),
            download_url_ttl: Duration::from_secs(15 * 60),
            staging_ttl: Duration::from_secs(24 * 3600),
            image_pixels_max: 50_000_000,
            image_memory_max: 192 << 20,
            image_timeout: Duration::from_secs(20),
            image_side_max: 4096,
            thumbnail_sides: vec![160, 480, 1280],
            parallel: 4,
        }
    }
}

impl MediaConfig {
    /// True when objects have a place.
    pub fn is_on(&self) -> bool {
        !self.bucket.is_empty() || !self.folder.is_empty()
    }
}
