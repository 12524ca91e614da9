//! Takes away what was never finished: expired uploads, their parts, and files in staging that
//! nobody waits for. Any number of workers may do it at once.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use shared::ids::MediaId;
use store::media::{MediaError, MediaStore, keys};
use store::records::{MediaState, Records, RecordsError};
use tokio_util::sync::CancellationToken;

use super::{millis, now_ms};

/// Time between two sweeps.
const INTERVAL: Duration = Duration::from_secs(300);
/// Rows and objects of one sweep.
const LIMIT: usize = 500;
/// What a row says whose upload did not come.
const EXPIRED: &str = "expired: the upload was not completed in time";

/// What a sweep took away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Media that were announced and never uploaded.
    pub expired: usize,
    /// Uploads in parts that were given up.
    pub uploads: usize,
    /// Files in staging.
    pub staged: usize,
}

/// Why a sweep ended early; the next one goes on.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// The media store failed.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// The records failed.
    #[error(transparent)]
    Records(#[from] RecordsError),
}

/// Takes away what is older than `staging_ttl`.
#[derive(Clone)]
pub struct Sweeper {
    /// Where the objects are.
    pub store: Arc<dyn MediaStore>,
    /// Where the rows are.
    pub records: Records,
    /// How long an upload may take.
    pub staging_ttl: Duration,
}

impl std::fmt::Debug for Sweeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sweeper").finish_non_exhaustive()
    }
}

impl Sweeper {
    /// Sweeps until cancelled.
    pub(crate) async fn run(self, cancel: CancellationToken) {
        loop {
            match self.sweep(SystemTime::now()).await {
                Ok(swept) if swept == Swept::default() => {}
                Ok(swept) => tracing::info!(?swept, "unfinished uploads taken away"),
                Err(error) => tracing::warn!(%error, "unfinished uploads could not be taken away"),
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
    }

    /// Sweeps once, as of `now`.
    ///
    /// # Errors
    /// See [`SweepError`].
    pub async fn sweep(&self, now: SystemTime) -> Result<Swept, SweepError> {
        let begin = now - self.staging_ttl;
        let mut swept = Swept::default();
        for medium in self.records.expired_media(millis(begin), LIMIT).await? {
            let key = keys::staging(&medium.id.to_string());
            if !medium.upload.is_empty() {
                self.store.abort_parts(&key, &medium.upload).await?;
                swept.uploads += 1;
            }
            self.store.delete(&key).await?;
            let ended = self
                .records
                .media_rejected(medium.id, EXPIRED, now_ms())
                .await;
            ended?;
            swept.expired += 1;
        }
        for prefix in [keys::STAGING, keys::FINAL] {
            for open in self.store.open_uploads(prefix).await? {
                if open.begun_at < begin && !self.is_waited_for(&open.key).await? {
                    self.store.abort_parts(&open.key, &open.upload).await?;
                    swept.uploads += 1;
                }
            }
        }
        swept.staged = self.sweep_staging(begin).await?;
        Ok(swept)
    }

    async fn sweep_staging(&self, begin: SystemTime) -> Result<usize, SweepError> {
        let mut swept = 0;
        let mut after: Option<String> = None;
        loop {
            let listed = self
                .store
                .list(keys::STAGING, after.as_deref(), LIMIT)
                .await?;
            let Some(last) = listed.last() else {
                return Ok(swept);
            };
            after = Some(last.key.clone());
            for object in &listed {
                if object.written_at < begin && !self.is_waited_for(&object.key).await? {
                    self.store.delete(&object.key).await?;
                    swept += 1;
                }
            }
        }
    }

    /// True for the staged file of a medium whose job waits in the log, however long.
    async fn is_waited_for(&self, key: &str) -> Result<bool, RecordsError> {
        let Some(id) = keys::id_of_staging(key).and_then(MediaId::parse) else {
            return Ok(false);
        };
        let medium = self.records.medium(id).await?;
        Ok(medium.is_some_and(|medium| medium.state == MediaState::Uploaded))
    }
}
