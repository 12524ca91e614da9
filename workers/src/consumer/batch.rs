//! One batch through a handler: a job that makes the handler panic hurts no other.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::FutureExt;
use store::job_log::ReceivedJob;
use tokio::time::Instant;

use super::{BatchOutcome, Handler, Retry};
use crate::metrics::{Metrics, RoleLabel};

/// What a batch came to.
pub(super) struct Handled {
    pub(super) outcome: BatchOutcome,
    /// The handler has noted the position itself, with the effect.
    pub(super) is_settled: bool,
}

/// Handles a batch and counts what it came to.
///
/// # Errors
/// [`Retry`] when the same batch may succeed later.
pub(super) async fn handle(
    handler: &dyn Handler,
    batch: &[ReceivedJob],
    next: &BTreeMap<i32, i64>,
    metrics: &Metrics,
) -> Result<Handled, Retry> {
    let started = Instant::now();
    let handled = match caught(handler, batch, next).await {
        Ok(outcome) => Handled {
            outcome: outcome?,
            is_settled: true,
        },
        Err(Panicked(_)) => one_by_one(handler, batch).await?,
    };
    observe(handler.role(), &handled.outcome, started.elapsed(), metrics);
    Ok(handled)
}

/// Finds the jobs that make the handler panic; the others have their effect.
async fn one_by_one(handler: &dyn Handler, batch: &[ReceivedJob]) -> Result<Handled, Retry> {
    let mut all = BatchOutcome::default();
    for (place, job) in batch.iter().enumerate() {
        // No position: it moves when all have their outcome.
        match caught(handler, std::slice::from_ref(job), &BTreeMap::new()).await {
            Ok(outcome) => {
                let one = outcome?;
                all.done += one.done;
                all.already_done += one.already_done;
                all.poison
                    .extend(one.poison.into_iter().map(|(_, error)| (place, error)));
                all.later
                    .extend(one.later.into_iter().map(|(_, later)| (place, later)));
                all.event_times_ms.extend(one.event_times_ms);
            }
            Err(Panicked(message)) => all
                .poison
                .push((place, format!("the handler panicked: {message}"))),
        }
    }
    Ok(Handled {
        outcome: all,
        is_settled: false,
    })
}

struct Panicked(String);

async fn caught(
    handler: &dyn Handler,
    batch: &[ReceivedJob],
    next: &BTreeMap<i32, i64>,
) -> Result<Result<BatchOutcome, Retry>, Panicked> {
    // Handlers keep nothing between batches that a panic could leave half done.
    let handled = AssertUnwindSafe(handler.handle(batch, next)).catch_unwind();
    handled.await.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        let text = text.unwrap_or("no message");
        tracing::error!(role = handler.role(), text, "a job made its handler panic");
        Panicked(text.to_owned())
    })
}

fn observe(role: &'static str, outcome: &BatchOutcome, took: Duration, metrics: &Metrics) {
    let label = RoleLabel { role };
    metrics
        .job_seconds
        .get_or_create(&label)
        .observe(took.as_secs_f64());
    metrics.count(role, "done", outcome.done);
    metrics.count(role, "already_done", outcome.already_done);
    metrics.count(role, "poison", outcome.poison.len());
    metrics.count(role, "later", outcome.later.len());
    let ages = metrics.job_age_seconds.get_or_create(&label);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    for at in &outcome.event_times_ms {
        let age = now.saturating_sub(Duration::from_millis(*at));
        ages.observe(age.as_secs_f64());
    }
}
