//! The job log: Kafka, or a queue inside the process; outbox and consumers see only this.

mod cloud_events;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::BoxError;

pub use cloud_events::publication_job;

/// A log of jobs in topics and partitions.
///
/// Jobs with one key keep their order and stay until the retention of the topic ends.
#[async_trait]
pub trait JobLog: Send + Sync + 'static {
    /// Appends a job; resolves when it is safe (Kafka: `acks=all`, idempotent producer).
    ///
    /// # Errors
    /// See [`JobLogError`].
    async fn append(&self, job: Job) -> Result<JobPosition, JobLogError>;

    /// Answers when the log does; `wyd check` and the outbox' circuit breaker ask.
    ///
    /// # Errors
    /// See [`JobLogError`].
    async fn ping(&self, timeout: Duration) -> Result<(), JobLogError>;
}

/// A job on its way into the log.
#[derive(Debug, Clone)]
pub struct Job {
    /// Where to.
    pub topic: &'static str,
    /// Orders: jobs with one key go to one partition.
    pub key: String,
    /// CloudEvents attributes and `traceparent`, as Kafka headers.
    pub headers: Vec<(String, String)>,
    /// The event's JSON.
    pub value: Bytes,
}

/// Where a job was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobPosition {
    /// The partition.
    pub partition: i32,
    /// The offset inside it.
    pub offset: i64,
}

/// Why the job log failed; each variant says what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum JobLogError {
    /// No answer in time, outcome unknown: append again; consumers absorb duplicates.
    #[error("job log is not available")]
    Unavailable(#[source] BoxError),
    /// The log will never accept this job (too large, no such topic).
    #[error("job log refuses the job: {0}")]
    Refused(String),
}
