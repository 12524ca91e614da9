//! Dead letters: jobs that can never succeed are kept with the reason, and stall nobody.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use shared::events::dead_letter_topic;
use store::job_log::{DeadLetter, JobLog, JobLogError, ReceivedJob, dead_letter_job};

use crate::metrics::{Metrics, TopicLabel};

/// Puts jobs aside for good.
pub struct DeadLetters {
    job_log: Arc<dyn JobLog>,
    metrics: Metrics,
}

impl std::fmt::Debug for DeadLetters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeadLetters").finish_non_exhaustive()
    }
}

impl DeadLetters {
    /// Makes the place for dead letters.
    pub fn new(job_log: Arc<dyn JobLog>, metrics: Metrics) -> Self {
        Self { job_log, metrics }
    }

    /// Keeps a job with the reason why it can never succeed.
    ///
    /// # Errors
    /// See [`JobLogError`]: the job's position must not move on.
    pub async fn keep(&self, job: &ReceivedJob, error: &str) -> Result<(), JobLogError> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let letter = DeadLetter {
            job,
            error,
            attempt: 1,
            failed_at_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        };
        self.job_log.append(dead_letter_job(&letter)).await?;
        tracing::warn!(
            topic = job.topic,
            partition = job.partition,
            offset = job.offset,
            error,
            "job went to the dead letters"
        );
        let label = TopicLabel {
            topic: dead_letter_topic(&job.topic),
        };
        self.metrics.dlq.get_or_create(&label).inc();
        Ok(())
    }
}
