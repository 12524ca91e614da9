//! An upload on its way into the folder.

use std::path::PathBuf;

use sha2::{Digest, Sha256};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

use super::super::MediaError;

/// Bytes that arrive for a signed upload; nothing is seen of them before [`Incoming::finish`].
#[derive(Debug)]
pub struct Incoming {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
    left: u64,
    hash: Sha256,
    sha256: Option<[u8; 32]>,
    is_finished: bool,
}

impl Incoming {
    pub(super) async fn begin(
        temporary: PathBuf,
        target: PathBuf,
        size: u64,
        sha256: Option<[u8; 32]>,
    ) -> Result<Self, MediaError> {
        Ok(Self {
            file: File::create(&temporary).await?,
            temporary,
            target,
            left: size,
            hash: Sha256::new(),
            sha256,
            is_finished: false,
        })
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// [`MediaError::Refused`] when more come than were announced.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), MediaError> {
        let left = self.left.checked_sub(bytes.len() as u64);
        self.left = left.ok_or_else(|| {
            MediaError::Refused("the body is larger than what was announced".to_owned())
        })?;
        self.hash.update(bytes);
        Ok(self.file.write_all(bytes).await?)
    }

    /// Puts the object in its place; returns the SHA-256 of what came, in hexadecimal.
    ///
    /// # Errors
    /// [`MediaError::Refused`] when size or checksum are not what was announced.
    pub async fn finish(mut self) -> Result<String, MediaError> {
        if self.left > 0 {
            let text = "the body is smaller than what was announced";
            return Err(MediaError::Refused(text.to_owned()));
        }
        let sha256: [u8; 32] = std::mem::take(&mut self.hash).finalize().into();
        if self.sha256.is_some_and(|expected| expected != sha256) {
            let text = "the body's SHA-256 is not the one that was announced";
            return Err(MediaError::Refused(text.to_owned()));
        }
        self.file.sync_all().await?;
        if let Some(folder) = self.target.parent() {
            tokio::fs::create_dir_all(folder).await?;
        }
        tokio::fs::rename(&self.temporary, &self.target).await?;
        self.is_finished = true;
        Ok(sha256.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.is_finished {
            // A client that went away in the middle leaves nothing behind.
            drop(std::fs::remove_file(&self.temporary));
        }
    }
}
