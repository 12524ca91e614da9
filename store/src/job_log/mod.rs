//! The job log: Kafka, or a queue inside the process; outbox and consumers see only this.

mod cloud_events;
mod embedded;
mod kafka;
mod media_event;
mod push_event;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::BoxError;
use crate::archive::MessageArchive;

pub use cloud_events::{publication_event, publication_job};
pub use embedded::EmbeddedJobLog;
pub use kafka::{KafkaJobLog, ensure_topics};
pub use media_event::{media_event, media_job};
pub use push_event::{push_event, push_job};

/// A log of jobs in topics and partitions.
///
/// Jobs with one key keep their order and stay until the retention of the topic ends. A consumer
/// group gets each job at least once.
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

    /// Reads a topic from its first job to what is its last one now, for nobody's group.
    ///
    /// # Errors
    /// See [`JobLogError`].
    async fn scan(&self, topic: &str) -> Result<Box<dyn JobScan>, JobLogError>;

    /// Joins a consumer group on a topic.
    ///
    /// Every partition goes on where `positions` says its group stands, or at its first job where
    /// that store knows nothing yet. Without `positions` it goes on at what the group has
    /// committed, else at the first job: never silently at the end.
    ///
    /// # Errors
    /// See [`JobLogError`].
    async fn consume(
        &self,
        group: &'static str,
        topic: &str,
        positions: Option<Arc<dyn MessageArchive>>,
    ) -> Result<Box<dyn JobSource>, JobLogError>;
}

/// One member of a consumer group.
#[async_trait]
pub trait JobSource: Send + Sync {
    /// Waits for jobs: as soon as there is one, at most `max`, waiting up to `linger` for more.
    ///
    /// Cancel safe: a job that was taken is not lost but handed out by the next call.
    ///
    /// # Errors
    /// See [`JobLogError`].
    async fn next(&mut self, max: usize, linger: Duration)
    -> Result<Vec<ReceivedJob>, JobLogError>;

    /// Notes that a partition's jobs below `next_offset` are done.
    ///
    /// # Errors
    /// See [`JobLogError`]; losing a commit repeats jobs, which is harmless.
    async fn commit(&mut self, partition: i32, next_offset: i64) -> Result<(), JobLogError>;

    /// Waits while staying a member of the group; hands out nothing.
    ///
    /// # Errors
    /// See [`JobLogError`].
    async fn rest(&mut self, pause: Duration) -> Result<(), JobLogError>;

    /// True while this member holds the partition: the jobs of one that was given to another
    /// member are that one's.
    fn holds(&self, partition: i32) -> bool;

    /// Returns, for each partition held, how many jobs wait behind those handed out.
    fn lag(&self) -> Vec<(i32, i64)>;
}

/// A walk through a topic.
#[async_trait]
pub trait JobScan: Send {
    /// Returns the next jobs; none at the end.
    ///
    /// # Errors
    /// See [`JobLogError`].
    async fn next(&mut self) -> Result<Vec<ReceivedJob>, JobLogError>;
}

/// A job on its way into the log.
#[derive(Debug, Clone)]
pub struct Job {
    /// Where to.
    pub topic: String,
    /// Orders: jobs with one key go to one partition.
    pub key: String,
    /// CloudEvents attributes and `traceparent`, as Kafka headers.
    pub headers: Vec<(String, String)>,
    /// The event's JSON.
    pub value: Bytes,
}

/// A job as a consumer gets it.
#[derive(Debug, Clone)]
pub struct ReceivedJob {
    /// Where it is from.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// Its place there.
    pub offset: i64,
    /// What it was ordered by.
    pub key: String,
    /// Its headers; what is not UTF-8 is replaced.
    pub headers: Vec<(String, String)>,
    /// Its bytes.
    pub value: Bytes,
}

impl ReceivedJob {
    /// Returns where the job is.
    pub fn position(&self) -> JobPosition {
        JobPosition {
            partition: self.partition,
            offset: self.offset,
        }
    }

    /// Returns the first header of that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(known, _)| known == name);
        found.next().map(|(_, value)| value.as_str())
    }
}

/// Where a job was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
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
    #[error("job log is not available: {0}")]
    Unavailable(#[source] BoxError),
    /// The log will never accept this job (too large, no such topic).
    #[error("job log refuses the job: {0}")]
    Refused(String),
}
