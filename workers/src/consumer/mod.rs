//! The loop of every role: take jobs, handle them, commit after the effect.
//!
//! A batch holds jobs in the order of each partition. A failure that may pass is retried in
//! place with jitter: nothing behind it is taken meanwhile, so order holds and what is in
//! flight stays bounded. A job that can never succeed goes to the dead letters, and the
//! position moves on. Positions are committed only when everything before them has an outcome.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rand::RngExt;
use store::job_log::{JobLogError, JobSource, ReceivedJob};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::dlq::DeadLetters;
use crate::metrics::{Metrics, PartitionLabel, RoleLabel};

/// Bounds of the pause between two tries.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// What a batch of jobs came to.
#[derive(Debug, Default)]
pub struct BatchOutcome {
    /// Jobs whose effect is new.
    pub done: usize,
    /// Jobs whose effect was there before.
    pub already_done: usize,
    /// Jobs that can never succeed: their place in the batch, and why.
    pub poison: Vec<(usize, String)>,
    /// Jobs whose order does not matter and that may succeed later: their place in the batch,
    /// and why. They go to the retry topic, and what is behind them goes on.
    pub later: Vec<(usize, Later)>,
    /// When the handled events happened, Unix milliseconds.
    pub event_times_ms: Vec<u64>,
}

/// Why a job must be tried again, and when.
#[derive(Debug, Clone)]
pub struct Later {
    /// In plain words.
    pub error: String,
    /// Not before so long; `None`: by the number of its tries.
    pub after: Option<Duration>,
}

/// A failure that may pass: the whole batch is tried again.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Retry(pub String);

/// What one role does with jobs. Every handler is idempotent by construction.
#[async_trait]
pub trait Handler: Send + Sync {
    /// Name of the role: a metric label.
    fn role(&self) -> &'static str;

    /// Handles a batch; `next` is, by partition, the position after it.
    ///
    /// # Errors
    /// [`Retry`] when the same batch may succeed later.
    async fn handle(
        &self,
        batch: &[ReceivedJob],
        next: &BTreeMap<i32, i64>,
    ) -> Result<BatchOutcome, Retry>;

    /// Notes that everything below `next` has an outcome: called after the dead letters of a
    /// batch are safe, which `handle` must not anticipate.
    ///
    /// # Errors
    /// [`Retry`] when it could not be noted.
    async fn settle(&self, next: &BTreeMap<i32, i64>) -> Result<(), Retry>;
}

/// One consumer of one role.
pub struct Consumer {
    /// Where the jobs come from.
    pub source: Box<dyn JobSource>,
    /// The topic, a metric label.
    pub topic: &'static str,
    /// What is done with them.
    pub handler: Arc<dyn Handler>,
    /// Where the hopeless ones go.
    pub dead_letters: DeadLetters,
    /// Counters.
    pub metrics: Metrics,
    /// Jobs of one batch at most.
    pub batch_jobs_max: usize,
    /// How long a batch waits to fill.
    pub batch_linger: Duration,
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumer")
            .field("topic", &self.topic)
            .finish_non_exhaustive()
    }
}

impl Consumer {
    /// Runs until cancelled; the batch under way is finished, unless it only waits to be retried.
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut pause = Backoff::default();
        while !cancel.is_cancelled() {
            let taken = tokio::select! {
                () = cancel.cancelled() => return,
                taken = self.source.next(self.batch_jobs_max, self.batch_linger) => taken,
            };
            match taken {
                Ok(batch) => {
                    pause = Backoff::default();
                    if !batch.is_empty() {
                        self.settle(&batch, &cancel).await;
                    }
                }
                Err(error) => {
                    tracing::warn!(topic = self.topic, %error, "jobs cannot be taken, trying again");
                    pause.wait(&cancel).await;
                }
            }
        }
    }

    /// Brings a batch to its end: every job has an outcome and the position is committed.
    async fn settle(&mut self, batch: &[ReceivedJob], cancel: &CancellationToken) {
        let next = next_positions(batch);
        let mut pause = Backoff::default();
        while let Err(error) = self.try_batch(batch, &next).await {
            self.metrics
                .count(self.handler.role(), "retry", batch.len());
            tracing::warn!(
                topic = self.topic, jobs = batch.len(), attempt = pause.attempt, %error,
                "batch failed, trying again"
            );
            if !pause.wait(cancel).await {
                return;
            }
        }
        for (partition, next_offset) in next {
            if let Err(error) = self.source.commit(partition, next_offset).await {
                tracing::debug!(topic = self.topic, partition, %error, "position was not committed");
            }
        }
        self.observe_lag();
    }

    async fn try_batch(
        &self,
        batch: &[ReceivedJob],
        next: &BTreeMap<i32, i64>,
    ) -> Result<(), Retry> {
        let role = self.handler.role();
        let started = Instant::now();
        let outcome = self.handler.handle(batch, next).await?;
        for (place, error) in &outcome.poison {
            if let Some(job) = batch.get(*place) {
                let kept = self.dead_letters.keep(job, error).await;
                kept.map_err(|error: JobLogError| Retry(error.to_string()))?;
            }
        }
        if !outcome.poison.is_empty() {
            self.handler.settle(next).await?;
        }
        let label = RoleLabel { role };
        let seconds = started.elapsed().as_secs_f64();
        self.metrics
            .job_seconds
            .get_or_create(&label)
            .observe(seconds);
        self.metrics.count(role, "done", outcome.done);
        self.metrics
            .count(role, "already_done", outcome.already_done);
        self.metrics.count(role, "poison", outcome.poison.len());
        let ages = self.metrics.job_age_seconds.get_or_create(&label);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        for at in outcome.event_times_ms {
            let age = now
                .clone()
                .unwrap_or_default()
                .saturating_sub(Duration::from_millis(at));
            ages.observe(age.as_secs_f64());
        }
        Ok(())
    }

    fn observe_lag(&self) {
        for (partition, lag) in self.source.lag() {
            let label = PartitionLabel {
                topic: self.topic,
                partition,
            };
            self.metrics.consumer_lag.get_or_create(&label).set(lag);
        }
    }
}

/// Returns the position after a batch, by partition.
fn next_positions(batch: &[ReceivedJob]) -> BTreeMap<i32, i64> {
    let mut next = BTreeMap::new();
    for job in batch {
        let position = next.entry(job.partition).or_insert(0);
        *position = (job.offset + 1).max(*position);
    }
    next
}

/// Pauses that double, with jitter so that workers do not retry in step.
#[derive(Debug)]
struct Backoff {
    attempt: u32,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { attempt: 1 }
    }
}

impl Backoff {
    /// Waits; false when cancelled.
    async fn wait(&mut self, cancel: &CancellationToken) -> bool {
        let longest = PAUSE_MIN
            .saturating_mul(1 << self.attempt.min(10))
            .min(PAUSE_MAX);
        let pause = longest.mul_f64(rand::rng().random_range(0.5..1.0));
        self.attempt = self.attempt.saturating_add(1);
        tokio::select! {
            () = cancel.cancelled() => false,
            () = tokio::time::sleep(pause) => true,
        }
    }
}
