//! `upload`: uploaded media are checked, made smaller, kept, and their channels told.
//!
//! One job is one medium: `work` is its story. A file is what its own bytes say (`kind`); pictures
//! are decoded by `picture` on the threads of `pool`, other files are copied by `large`. Every step
//! may be done twice: keys are made of the media id, a written object stays, the first outcome in
//! the row stays, and the publication's idempotency key is the media id. `sweep` takes away what
//! clients began and never finished.

mod kind;
mod large;
mod picture;
mod pool;
mod publisher;
mod sweep;
mod work;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use futures::StreamExt;
use sha2::{Digest, Sha256};
use shared::config::MediaConfig;
use shared::events::{GROUP_UPLOAD, TOPIC_UPLOADS, retry_topic};
use store::job_log::{JobLog, JobLogError, ReceivedJob, media_event};
use store::media::{MediaError, MediaStore};
use store::records::{Records, RecordsError};
use tokio_util::sync::CancellationToken;

use crate::consumer::attempt::now_ms;
use crate::consumer::{BatchOutcome, Consumer, Handler, Later, Retry, RetryConsumer};
use crate::metrics::Metrics;

pub use publisher::{ChannelPublisher, PublishError};
pub use sweep::{SweepError, Sweeper, Swept};

use work::{Done, Worker};

/// Name of the role.
pub const ROLE: &str = "upload";
/// How long a batch waits to fill: a picture should show at once.
const LINGER: Duration = Duration::from_millis(5);

/// What the upload worker works with.
pub struct UploadParts {
    /// Where the jobs come from.
    pub job_log: Arc<dyn JobLog>,
    /// Where the objects are.
    pub store: Arc<dyn MediaStore>,
    /// Where the rows are.
    pub records: Records,
    /// How channels learn of it.
    pub publisher: Arc<dyn ChannelPublisher>,
    /// Counters of the process.
    pub metrics: Metrics,
}

impl std::fmt::Debug for UploadParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UploadParts").finish_non_exhaustive()
    }
}

/// Joins the consumer group; the returned future runs the worker until cancelled.
///
/// # Errors
/// [`JobLogError`] when the consumer group cannot be joined at all; later failures are retried.
pub async fn start(
    config: &MediaConfig,
    parts: UploadParts,
    cancel: CancellationToken,
) -> Result<impl Future<Output = ()> + Send + use<>, JobLogError> {
    let UploadParts {
        job_log,
        store,
        records,
        publisher,
        metrics,
    } = parts;
    let source = job_log.consume(GROUP_UPLOAD, TOPIC_UPLOADS, None).await?;
    let retries = retry_topic(TOPIC_UPLOADS);
    let retries = job_log.consume(GROUP_UPLOAD, &retries, None).await?;
    let sweeper = Sweeper {
        store: Arc::clone(&store),
        records: records.clone(),
        staging_ttl: config.staging_ttl,
    };
    let handler = Arc::new(Upload {
        parallel: config.parallel,
        worker: Worker::new(config, store, records, publisher),
    });
    let retries = RetryConsumer {
        source: retries,
        topic: TOPIC_UPLOADS,
        handler: Arc::clone(&handler) as Arc<dyn Handler>,
        job_log: Arc::clone(&job_log),
        metrics: metrics.clone(),
    };
    let consumer = Consumer {
        source,
        topic: TOPIC_UPLOADS,
        handler,
        job_log,
        metrics,
        // Small files travel in the jobs: a batch must not hold many.
        batch_jobs_max: config.parallel * 2,
        batch_linger: LINGER,
    };
    Ok(async move {
        tokio::join!(
            consumer.run(cancel.clone()),
            retries.run(cancel.clone()),
            sweeper.run(cancel)
        );
    })
}

/// Handles jobs of uploaded media.
struct Upload {
    parallel: usize,
    worker: Worker,
}

#[async_trait]
impl Handler for Upload {
    fn role(&self) -> &'static str {
        ROLE
    }

    async fn handle(
        &self,
        batch: &[ReceivedJob],
        _next: &BTreeMap<i32, i64>,
    ) -> Result<BatchOutcome, Retry> {
        let mut outcome = BatchOutcome::default();
        let mut events = Vec::with_capacity(batch.len());
        for (place, job) in batch.iter().enumerate() {
            match media_event(job) {
                Ok(event) => events.push((place, event)),
                Err(error) => outcome.poison.push((place, error)),
            }
        }
        outcome.event_times_ms = events
            .iter()
            .map(|(_, event)| event.uploaded_at_ms)
            .collect();
        let works = events.into_iter().map(|(place, event)| async move {
            let done = self.worker.work(event).await;
            (place, done)
        });
        let mut works = futures::stream::iter(works).buffer_unordered(self.parallel);
        while let Some((place, done)) = works.next().await {
            match done {
                Ok(Done::New) => outcome.done += 1,
                Ok(Done::Before) => outcome.already_done += 1,
                Err(error) => outcome.later.push((place, Later { error, after: None })),
            }
        }
        Ok(outcome)
    }
}

/// Why a medium is no good: what its user is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rejection {
    /// For programs; never renamed.
    pub(crate) code: &'static str,
    /// For people.
    pub(crate) text: String,
}

impl Rejection {
    pub(crate) fn new(code: &'static str, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
        }
    }

    pub(crate) fn checksum() -> Self {
        Self::new(
            "checksum_mismatch",
            "the file's SHA-256 is not the one that was declared",
        )
    }
}

/// Why a medium was not made.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It never will be.
    Rejected(Rejection),
    /// It may be, later.
    Later(String),
}

impl From<Rejection> for Failure {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

impl From<MediaError> for Failure {
    fn from(error: MediaError) -> Self {
        match error {
            MediaError::NotFound => {
                Rejection::new("missing", "the uploaded file is not there").into()
            }
            // Refused: rights or bucket are wrong, which somebody will set right.
            MediaError::Unavailable(_) | MediaError::Refused(_) => Self::Later(with_source(&error)),
        }
    }
}

impl From<RecordsError> for Failure {
    fn from(error: RecordsError) -> Self {
        Self::Later(with_source(&error))
    }
}

/// Checks bytes against the SHA-256 that was declared.
fn check_sum(bytes: &[u8], expected: &str) -> Result<(), Rejection> {
    if hex(&Sha256::digest(bytes)) == expected {
        Ok(())
    } else {
        Err(Rejection::checksum())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

fn with_source(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
