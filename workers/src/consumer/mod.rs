//! The loop of every role: take jobs, handle them, commit after the effect.
//!
//! A batch holds jobs in the order of each partition. A failure of the whole batch that may pass
//! (a store that is away) is retried in place with jitter: nothing behind it is taken meanwhile,
//! so order holds and what is in flight stays bounded; the member stays in its group, and drops
//! what a rebalance gave to another one. A single job whose order does not matter and that may
//! succeed later goes to the retry topic (`retry`). A job that can never succeed goes to the dead
//! letters, and the position moves on. Positions are committed only when everything before them
//! has an outcome.

pub(crate) mod attempt;
mod backoff;
mod batch;
mod retry;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use store::job_log::{JobLog, JobSource, ReceivedJob};
use tokio_util::sync::CancellationToken;

use crate::dlq::DeadLetters;
use crate::metrics::{Metrics, PartitionLabel};

pub(crate) use attempt::Failure;
use backoff::Backoff;
pub use retry::{RetryConsumer, RetryTopic};

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
    /// batch are safe, which `handle` must not anticipate. Only a role that keeps its position in
    /// its own store has something to do here.
    ///
    /// # Errors
    /// [`Retry`] when it could not be noted.
    async fn settle(&self, _next: &BTreeMap<i32, i64>) -> Result<(), Retry> {
        Ok(())
    }
}

/// One consumer of one role.
pub struct Consumer {
    /// Where the jobs come from.
    pub source: Box<dyn JobSource>,
    /// The topic, a metric label.
    pub topic: &'static str,
    /// What is done with them.
    pub handler: Arc<dyn Handler>,
    /// Where dead letters go, and jobs that are tried again apart from their order.
    pub job_log: Arc<dyn JobLog>,
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
        let mut backoff = Backoff::default();
        while !cancel.is_cancelled() {
            let taken = tokio::select! {
                () = cancel.cancelled() => return,
                taken = self.source.next(self.batch_jobs_max, self.batch_linger) => taken,
            };
            match taken {
                Ok(batch) => {
                    backoff = Backoff::default();
                    if !batch.is_empty() {
                        self.bring_to_end(batch, &cancel).await;
                    }
                }
                Err(error) => {
                    tracing::warn!(topic = self.topic, %error, "jobs cannot be taken, trying again");
                    tokio::select! {
                        () = cancel.cancelled() => return,
                        () = tokio::time::sleep(backoff.next()) => {}
                    }
                }
            }
        }
    }

    /// Brings a batch to its end: every job has an outcome and the position is committed.
    async fn bring_to_end(&mut self, mut batch: Vec<ReceivedJob>, cancel: &CancellationToken) {
        let mut backoff = Backoff::default();
        let next = loop {
            // What another member holds now is that one's: this batch may be an old one.
            batch.retain(|job| self.source.holds(job.partition));
            if batch.is_empty() {
                return;
            }
            let next = next_positions(&batch);
            let Err(error) = self.try_batch(&batch, &next).await else {
                break next;
            };
            self.metrics
                .count(self.handler.role(), "retry", batch.len());
            tracing::warn!(
                topic = self.topic, jobs = batch.len(), attempt = backoff.attempt, %error,
                "batch failed, trying again"
            );
            let pause = backoff.next();
            let rested = tokio::select! {
                () = cancel.cancelled() => return,
                rested = self.source.rest(pause) => rested,
            };
            if let Err(error) = rested {
                tracing::warn!(topic = self.topic, %error, "consumer group cannot be reached");
                tokio::time::sleep(backoff::PAUSE_MIN).await;
            }
        };
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
        let handled = batch::handle(&*self.handler, batch, next, &self.metrics).await?;
        let dead_letters = DeadLetters::new(&*self.job_log, &self.metrics);
        let mut is_settled = handled.is_settled;
        for (place, error) in &handled.outcome.poison {
            if let Some(job) = batch.get(*place) {
                let kept = dead_letters.keep(job, &Failure::poison(error)).await;
                kept.map_err(|error| Retry(error.to_string()))?;
                is_settled = false;
            }
        }
        let retry_topic = RetryTopic::new(&*self.job_log, &self.metrics);
        for (place, later) in &handled.outcome.later {
            if let Some(job) = batch.get(*place) {
                let kept = retry_topic.keep(job, later).await;
                kept.map_err(|error| Retry(error.to_string()))?;
                is_settled = false;
            }
        }
        if !is_settled {
            self.handler.settle(next).await?;
        }
        Ok(())
    }

    fn observe_lag(&self) {
        for (partition, lag) in self.source.lag() {
            let label = PartitionLabel {
                topic: self.topic.to_owned(),
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
