//! `push`: tells members who are away what was said.
//!
//! `planner` reads messages and decides who gets a push, `sender` brings each to the user's
//! devices. Between them is a topic of its own, keyed by user, that the server API writes to as
//! well. `provider` is the seam to whoever reaches devices: `fcm`, or `console`, which only shows
//! them. `online` is the seam to who is here.

mod badge;
pub mod console;
pub mod fcm;
pub mod metrics;
pub mod online;
mod planner;
pub mod provider;
mod sender;
mod summary;
mod window;

use std::sync::Arc;
use std::time::Duration;

use shared::config::Config;
use shared::events::{GROUP_PUSH, TOPIC_MESSAGES, TOPIC_PUSHES, retry_topic};
use store::archive::MessageArchive;
use store::job_log::{JobLog, JobLogError};
use store::records::Records;
use tokio_util::sync::CancellationToken;

use self::badge::Badges;
use self::metrics::PushMetrics;
use self::online::Online;
use self::planner::Planner;
use self::provider::PushProvider;
use self::sender::Sender;
use self::window::Windowed;
use crate::consumer::attempt::now_ms;
use crate::consumer::{Consumer, Handler, Retry, RetryConsumer};
use crate::metrics::Metrics;

/// Messages that one batch plans at most: what a busy system says while a batch waits.
const PLANNED_MAX: usize = 10_000;
/// How long the ledger remembers: longer than a job can be done again.
const LEDGER_AGE_MAX: Duration = Duration::from_secs(8 * 24 * 3600);
/// Time between two prunings, and the pause when there is more to prune.
const PRUNE_EVERY: Duration = Duration::from_secs(24 * 3600);
const PRUNE_PAUSE: Duration = Duration::from_millis(200);

/// What the push worker is made of.
pub struct PushParts {
    /// Checked configuration.
    pub config: Arc<Config>,
    /// Where messages come from, and pushes wait.
    pub job_log: Arc<dyn JobLog>,
    /// Members, devices and the ledger.
    pub records: Records,
    /// Where unread messages are counted.
    pub archive: Option<Arc<dyn MessageArchive>>,
    /// Who is here.
    pub online: Arc<dyn Online>,
    /// Who brings pushes to devices.
    pub provider: Arc<dyn PushProvider>,
    /// Counters of jobs.
    pub metrics: Metrics,
    /// Counters of pushes.
    pub push_metrics: PushMetrics,
}

impl std::fmt::Debug for PushParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PushParts").finish_non_exhaustive()
    }
}

/// Joins the consumer groups; the returned future runs the worker until cancelled.
///
/// # Errors
/// [`JobLogError`] when a consumer group cannot be joined at all; later failures are retried.
pub async fn start(
    parts: PushParts,
    cancel: CancellationToken,
) -> Result<impl Future<Output = ()> + Send + use<>, JobLogError> {
    let PushParts {
        config,
        job_log,
        records,
        archive,
        online,
        provider,
        metrics,
        push_metrics,
    } = parts;
    let messages = job_log.consume(GROUP_PUSH, TOPIC_MESSAGES, None).await?;
    let pushes = job_log.consume(GROUP_PUSH, TOPIC_PUSHES, None).await?;
    let retries = retry_topic(TOPIC_PUSHES);
    let retries = job_log.consume(GROUP_PUSH, &retries, None).await?;
    let planner = Consumer {
        source: Box::new(Windowed::new(messages, config.push.burst_window)),
        topic: TOPIC_MESSAGES,
        handler: Arc::new(Planner {
            config: Arc::clone(&config),
            records: records.clone(),
            online: Arc::clone(&online),
            job_log: Arc::clone(&job_log),
        }),
        job_log: Arc::clone(&job_log),
        metrics: metrics.clone(),
        batch_jobs_max: PLANNED_MAX,
        batch_linger: config.push.burst_window,
    };
    let handler: Arc<dyn Handler> = Arc::new(Sender {
        records: records.clone(),
        online,
        provider,
        badges: Badges {
            records: records.clone(),
            archive: archive.filter(|_| config.push.badge),
        },
        metrics: push_metrics,
        in_flight_max: config.push.in_flight_max,
        ttl: config.push.ttl,
    });
    let sender = Consumer {
        source: pushes,
        topic: TOPIC_PUSHES,
        handler: Arc::clone(&handler),
        job_log: Arc::clone(&job_log),
        metrics: metrics.clone(),
        batch_jobs_max: config.worker.batch_jobs_max,
        batch_linger: config.worker.batch_linger,
    };
    let retrier = RetryConsumer {
        source: retries,
        topic: TOPIC_PUSHES,
        handler,
        job_log,
        metrics,
    };
    let pruning = prune(records, config.push.device_age_max);
    Ok(async move {
        let pruning = cancel.clone().run_until_cancelled_owned(pruning);
        tokio::join!(
            planner.run(cancel.clone()),
            sender.run(cancel.clone()),
            retrier.run(cancel),
            pruning,
        );
    })
}

/// Forgets old entries of the ledger and devices that did not come back, every night.
async fn prune(records: Records, device_age_max: Duration) {
    loop {
        let now_ms = now_ms();
        let before = |age: Duration| {
            let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
            now_ms.saturating_sub(age_ms)
        };
        let pruned = records.prune_pushes(before(LEDGER_AGE_MAX), before(device_age_max));
        let pause = match pruned.await {
            Ok(0) => PRUNE_EVERY,
            Ok(_) => PRUNE_PAUSE,
            Err(error) => {
                tracing::warn!(error = with_sources(&error), "old pushes cannot be pruned");
                PRUNE_EVERY
            }
        };
        tokio::time::sleep(pause).await;
    }
}

fn temporary(error: &dyn std::error::Error) -> Retry {
    Retry(with_sources(error))
}

/// Writes an error with everything that caused it.
pub(crate) fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}
