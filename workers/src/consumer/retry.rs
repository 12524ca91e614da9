//! Jobs that are tried again apart from their order: the retry topic and its consumer.
//!
//! Each job there says before when it must not be tried. The consumer holds a bounded number of
//! them in memory and tries whichever is due, so that one with a long pause does not hold up
//! those behind it; the position it commits is below everything without an outcome, so that a
//! crash repeats tries and loses none.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use shared::events::retry_topic;
use store::job_log::{JobLog, JobLogError, JobSource, ReceivedJob};
use tokio_util::sync::CancellationToken;

use super::attempt::{self, Failure, failed_job, now_ms};
use super::backoff::{Backoff, doubled};
use super::{Handler, Later, Retry, batch};
use crate::dlq::DeadLetters;
use crate::metrics::{Metrics, PartitionLabel};

/// Bounds of the pause between two tries.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(600);
/// A job that fails for longer is dead, however few its tries were.
const FAILING_MAX: Duration = Duration::from_secs(24 * 3600);
/// Tries of a job, the first one included.
const ATTEMPTS_MAX: u32 = 20;
/// Jobs held in memory at most, and their bytes.
const HELD_MAX: usize = 1_000;
const HELD_BYTES_MAX: usize = 8 << 20;
/// Jobs taken at once: each may hold a small file.
const TAKEN_MAX: usize = 16;
/// Jobs tried at once.
const DUE_MAX: usize = 100;
/// How long one look for new jobs takes.
const LOOK: Duration = Duration::from_millis(500);

/// Where jobs wait for another try.
#[derive(Clone, Copy)]
pub struct RetryTopic<'a> {
    job_log: &'a dyn JobLog,
    metrics: &'a Metrics,
}

impl std::fmt::Debug for RetryTopic<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RetryTopic").finish_non_exhaustive()
    }
}

impl<'a> RetryTopic<'a> {
    /// Makes the place where jobs wait.
    pub fn new(job_log: &'a dyn JobLog, metrics: &'a Metrics) -> Self {
        Self { job_log, metrics }
    }

    /// Keeps a job for another try, or puts it to the dead letters when it had enough of them.
    ///
    /// # Errors
    /// See [`JobLogError`]: the job's position must not move on.
    pub async fn keep(&self, job: &ReceivedJob, later: &Later) -> Result<(), JobLogError> {
        let attempts = attempt::attempts(job) + 1;
        let failing_ms = attempt::first_failure_ms(job).map_or(0, |at| now_ms().saturating_sub(at));
        // A pause that was asked for says that nothing was tried: only time runs out then.
        let is_tired = later.after.is_none() && attempts >= ATTEMPTS_MAX;
        if is_tired || Duration::from_millis(failing_ms) >= FAILING_MAX {
            let failure = Failure {
                class: "exhausted",
                error: format!("{attempts} tries: {}", later.error),
                not_before_ms: None,
            };
            let dead_letters = DeadLetters::new(self.job_log, self.metrics);
            return dead_letters.keep(job, &failure).await;
        }
        let pause = later
            .after
            .unwrap_or_else(|| doubled(PAUSE_MIN, attempts, PAUSE_MAX));
        let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        let failure = Failure {
            class: "temporary",
            error: later.error.clone(),
            not_before_ms: Some(now_ms().saturating_add(pause_ms)),
        };
        let topic = retry_topic(attempt::source_topic(job));
        self.job_log
            .append(failed_job(topic, job, &failure))
            .await?;
        tracing::debug!(
            topic = job.topic,
            attempts,
            ?pause,
            error = later.error,
            "job waits for another try"
        );
        Ok(())
    }
}

/// The consumer of a retry topic.
pub struct RetryConsumer {
    /// Where the jobs come from.
    pub source: Box<dyn JobSource>,
    /// The topic whose retries they are.
    pub topic: &'static str,
    /// What is done with them.
    pub handler: Arc<dyn Handler>,
    /// Where they go when they fail again.
    pub job_log: Arc<dyn JobLog>,
    /// Counters.
    pub metrics: Metrics,
}

impl std::fmt::Debug for RetryConsumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RetryConsumer")
            .field("topic", &self.topic)
            .finish_non_exhaustive()
    }
}

/// The jobs that wait, and what may be committed.
#[derive(Debug, Default)]
struct Held {
    /// By when they are due; the position tells jobs of one time apart.
    due: BTreeMap<(u64, i32, i64), ReceivedJob>,
    unfinished: BTreeMap<i32, BTreeSet<i64>>,
    /// The position after the last one taken.
    taken: BTreeMap<i32, i64>,
}

impl RetryConsumer {
    /// Runs until cancelled; what is under way is finished.
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut held = Held::default();
        let mut backoff = Backoff::default();
        while !cancel.is_cancelled() {
            let looked = tokio::select! {
                () = cancel.cancelled() => return,
                looked = self.look(&mut held) => looked,
            };
            let tried = match looked {
                Ok(()) => self.try_due(&mut held).await,
                Err(error) => Err(Retry(error.to_string())),
            };
            match tried {
                Ok(()) => backoff = Backoff::default(),
                Err(error) => {
                    tracing::warn!(topic = self.topic, %error, "retries are held up, trying again");
                    tokio::select! {
                        () = cancel.cancelled() => return,
                        () = tokio::time::sleep(backoff.next()) => {}
                    }
                }
            }
        }
    }

    /// Takes more jobs, as long as there is room, for a moment or until one is due.
    async fn look(&mut self, held: &mut Held) -> Result<(), JobLogError> {
        held.drop_lost(&*self.source);
        let pause = held.time_to_next().min(LOOK);
        let is_full = held.bytes() >= HELD_BYTES_MAX;
        let room = HELD_MAX.saturating_sub(held.due.len()).min(TAKEN_MAX);
        if room == 0 || is_full {
            return self.source.rest(pause).await;
        }
        let next = self.source.next(room, Duration::ZERO);
        if let Ok(taken) = tokio::time::timeout(pause, next).await {
            for job in taken? {
                held.take(job);
            }
        }
        Ok(())
    }

    async fn try_due(&mut self, held: &mut Held) -> Result<(), Retry> {
        let due = held.due();
        if due.is_empty() {
            return Ok(());
        }
        let handled = batch::handle(&*self.handler, &due, &BTreeMap::new(), &self.metrics).await?;
        let temporary = |error: JobLogError| Retry(error.to_string());
        let dead_letters = DeadLetters::new(&*self.job_log, &self.metrics);
        for (place, error) in &handled.outcome.poison {
            if let Some(job) = due.get(*place) {
                let kept = dead_letters.keep(job, &Failure::poison(error)).await;
                kept.map_err(temporary)?;
            }
        }
        let again = RetryTopic::new(&*self.job_log, &self.metrics);
        for (place, later) in &handled.outcome.later {
            if let Some(job) = due.get(*place) {
                again.keep(job, later).await.map_err(temporary)?;
            }
        }
        for (partition, next_offset) in held.finish(&due) {
            if let Err(error) = self.source.commit(partition, next_offset).await {
                tracing::debug!(topic = self.topic, partition, %error, "position was not committed");
            }
        }
        for (partition, lag) in self.source.lag() {
            let label = PartitionLabel {
                topic: retry_topic(self.topic),
                partition,
            };
            let waiting = i64::try_from(held.due.len()).unwrap_or(i64::MAX);
            self.metrics
                .consumer_lag
                .get_or_create(&label)
                .set(lag.saturating_add(waiting));
        }
        Ok(())
    }
}

impl Held {
    fn bytes(&self) -> usize {
        self.due.values().map(|job| job.value.len()).sum()
    }

    fn take(&mut self, job: ReceivedJob) {
        let (partition, offset) = (job.partition, job.offset);
        self.unfinished.entry(partition).or_default().insert(offset);
        self.taken.insert(partition, offset + 1);
        let key = (attempt::not_before_ms(&job), partition, offset);
        self.due.insert(key, job);
    }

    /// Lists what is due, longest first. They stay until they are finished.
    fn due(&self) -> Vec<ReceivedJob> {
        let now = now_ms();
        let due = self.due.range(..=(now, i32::MAX, i64::MAX));
        due.take(DUE_MAX).map(|(_, job)| job.clone()).collect()
    }

    fn time_to_next(&self) -> Duration {
        let first = self.due.first_key_value().map(|((at, ..), _)| *at);
        first.map_or(Duration::MAX, |at| {
            Duration::from_millis(at.saturating_sub(now_ms()))
        })
    }

    /// Takes finished jobs out; returns what can be committed.
    fn finish(&mut self, finished: &[ReceivedJob]) -> BTreeMap<i32, i64> {
        let mut touched = BTreeMap::new();
        for job in finished {
            let key = (attempt::not_before_ms(job), job.partition, job.offset);
            self.due.remove(&key);
            let Some(unfinished) = self.unfinished.get_mut(&job.partition) else {
                continue;
            };
            unfinished.remove(&job.offset);
            let end = self.taken.get(&job.partition).copied();
            let next = unfinished.first().copied().or(end);
            touched.extend(next.map(|next| (job.partition, next)));
        }
        touched
    }

    /// Forgets the jobs of partitions that another member holds now.
    fn drop_lost(&mut self, source: &dyn JobSource) {
        let lost: Vec<i32> = self
            .taken
            .keys()
            .copied()
            .filter(|partition| !source.holds(*partition))
            .collect();
        for partition in lost {
            self.taken.remove(&partition);
            self.unfinished.remove(&partition);
            self.due.retain(|(_, of, _), _| *of != partition);
        }
    }
}
