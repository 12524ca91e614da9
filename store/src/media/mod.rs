//! Media objects: bytes under keys, in S3 or in a folder, and the signed addresses that let clients
//! write and read them without passing through a node.
//!
//! `s3` and `files` are the implementations; `tests/media_conformance.rs` is what both must pass.
//! `keys` says what lies where. What a medium is and who may see it is not known here.

mod files;
pub mod keys;
mod s3;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use shared::config::MediaConfig;

use crate::BoxError;

pub use files::{FileStore, Grant, Incoming};
pub use s3::S3Store;

/// Keeps objects. A write is whole or it never happened; what was written is read by everybody.
#[async_trait]
pub trait MediaStore: Send + Sync + 'static {
    /// Writes a new object; an object that is there already stays as it is (`If-None-Match: *`).
    ///
    /// # Errors
    /// See [`MediaError`].
    async fn put(&self, key: &str, body: Bytes, content_type: &str) -> Result<Put, MediaError>;

    /// Reads `length` bytes from `offset`; fewer where the object ends.
    ///
    /// # Errors
    /// [`MediaError::NotFound`] when there is no such object.
    async fn read(&self, key: &str, offset: u64, length: u64) -> Result<Bytes, MediaError>;

    /// Returns the object's size in bytes, if there is one.
    ///
    /// # Errors
    /// See [`MediaError`].
    async fn size(&self, key: &str) -> Result<Option<u64>, MediaError>;

    /// Deletes an object; one that is not there is no error.
    ///
    /// # Errors
    /// See [`MediaError`].
    async fn delete(&self, key: &str) -> Result<(), MediaError>;

    /// Lists objects whose keys begin with `prefix`, in order of their keys, after the key `after`.
    ///
    /// # Errors
    /// See [`MediaError`].
    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Object>, MediaError>;

    /// Begins an object that comes in parts; returns the upload's id.
    ///
    /// # Errors
    /// See [`MediaError`].
    async fn begin_parts(&self, key: &str, content_type: &str) -> Result<String, MediaError>;

    /// Writes one part, numbered from 1; again: in its place. All but the last have at least 5 MiB.
    ///
    /// # Errors
    /// [`MediaError::NotFound`] when there is no such upload.
    async fn put_part(&self, part: PartOf<'_>, body: Bytes) -> Result<(), MediaError>;

    /// Makes the object of all parts that were written, in order of their numbers; an object that
    /// is there already stays as it is, and the upload ends all the same.
    ///
    /// # Errors
    /// [`MediaError::NotFound`] when there is no such upload: it was completed or aborted.
    /// [`MediaError::Refused`] when the parts have not `size` bytes together; they stay.
    async fn complete_parts(&self, key: &str, upload: &str, size: u64) -> Result<Put, MediaError>;

    /// Gives an upload up, with its parts; one that is not there is no error.
    ///
    /// # Errors
    /// See [`MediaError`].
    async fn abort_parts(&self, key: &str, upload: &str) -> Result<(), MediaError>;

    /// Lists uploads in parts that are not ended.
    ///
    /// # Errors
    /// See [`MediaError`].
    async fn open_uploads(&self, prefix: &str) -> Result<Vec<OpenUpload>, MediaError>;

    /// Signs an upload of exactly this object: size, type and checksum are bound.
    ///
    /// # Errors
    /// See [`MediaError`].
    async fn sign_put(
        &self,
        key: &str,
        terms: &UploadTerms,
        ttl: Duration,
    ) -> Result<SignedRequest, MediaError>;

    /// Signs the upload of one part with exactly `size` bytes.
    ///
    /// # Errors
    /// See [`MediaError`].
    async fn sign_part(
        &self,
        part: PartOf<'_>,
        size: u64,
        ttl: Duration,
    ) -> Result<SignedRequest, MediaError>;

    /// Signs a download; the answer has the type and the disposition that are given here, whatever
    /// the object was written with.
    ///
    /// # Errors
    /// See [`MediaError`].
    async fn sign_get(
        &self,
        key: &str,
        terms: &DownloadTerms,
        ttl: Duration,
    ) -> Result<String, MediaError>;

    /// Answers when the store does.
    ///
    /// # Errors
    /// See [`MediaError`].
    async fn ping(&self) -> Result<(), MediaError>;
}

/// Refuses to make an object of other parts than were announced.
fn check_parts(size: u64, expected: u64) -> Result<(), MediaError> {
    if size == expected {
        Ok(())
    } else {
        let text = format!("the parts have {size} bytes, not {expected}");
        Err(MediaError::Refused(text))
    }
}

/// What a write came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// The object is new.
    Created,
    /// There was one before; it was not changed.
    Exists,
}

/// A part of an upload.
#[derive(Debug, Clone, Copy)]
pub struct PartOf<'a> {
    /// Key of the object to be.
    pub key: &'a str,
    /// The upload's id.
    pub upload: &'a str,
    /// Its place, from 1.
    pub number: u16,
}

/// An object in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Its key.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// When it was written.
    pub written_at: SystemTime,
}

/// An upload in parts that was begun and not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenUpload {
    /// Key of the object to be.
    pub key: String,
    /// The upload's id.
    pub upload: String,
    /// When it was begun.
    pub begun_at: SystemTime,
}

/// What a signed upload is bound to.
#[derive(Debug, Clone)]
pub struct UploadTerms {
    /// Exact size in bytes.
    pub size: u64,
    /// `Content-Type` of the request.
    pub content_type: String,
    /// SHA-256 of the bytes.
    pub sha256: [u8; 32],
}

/// How a signed download is answered.
#[derive(Debug, Clone)]
pub struct DownloadTerms {
    /// `Content-Type` of the answer.
    pub content_type: String,
    /// `Content-Disposition` of the answer.
    pub disposition: String,
}

/// A request that whoever has it may make until it expires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedRequest {
    /// The method.
    pub method: String,
    /// The address; a path when it is on the node's own public port.
    pub url: String,
    /// Headers it must have, besides `Content-Length`, which every client sends by itself.
    pub headers: Vec<(String, String)>,
}

/// Why a media store failed; each variant says what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum MediaError {
    /// No answer, or "try later": do the same again.
    #[error("the media store is not available")]
    Unavailable(#[source] BoxError),
    /// There is no such object or upload.
    #[error("there is no such object")]
    NotFound,
    /// The store will never do this: bucket, region, rights or the request are wrong.
    #[error("the media store refuses: {0}")]
    Refused(String),
}

/// Opens the configured store; `None` when there is none.
///
/// # Errors
/// [`MediaError::Refused`] when the folder cannot be used; S3 is not asked.
pub async fn open(config: &MediaConfig) -> Result<Option<Arc<dyn MediaStore>>, MediaError> {
    if !config.bucket.is_empty() {
        return Ok(Some(Arc::new(S3Store::connect(config).await)));
    }
    if !config.folder.is_empty() {
        return Ok(Some(Arc::new(FileStore::open(&config.folder).await?)));
    }
    Ok(None)
}
