//! Relays what other nodes left in the outbox: every node sweeps, a lease per partition keeps
//! them from doing the same work.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use futures::StreamExt;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rand::RngExt;
use tokio_util::sync::CancellationToken;

use super::publisher::Relay;
use crate::broker::OutboxEntry;

/// Mean time between two sweeps; each is moved by up to half of it, so that nodes which started
/// together do not sweep together.
const PAUSE: Duration = Duration::from_millis(800);
/// Sweeps between two looks at the gauges.
const SWEEPS_PER_LOOK: u32 = 6;
/// Entries taken in one sweep.
const BATCH: usize = 256;
/// Entries of a batch that are relayed at once.
const PARALLEL: usize = 32;

/// What the outbox holds, as metrics.
#[derive(Debug, Clone, Default)]
pub(super) struct OutboxGauges {
    pending: Gauge,
    age_seconds: Gauge<f64, AtomicU64>,
}

impl OutboxGauges {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let gauges = Self::default();
        registry.register(
            "wyd_outbox_pending",
            "Accepted publications that are not known to be in the job log, over all nodes",
            gauges.pending.clone(),
        );
        registry.register(
            "wyd_outbox_age_seconds",
            "How long the oldest of them has waited",
            gauges.age_seconds.clone(),
        );
        gauges
    }
}

/// Finds and relays leftovers.
pub(super) struct Sweeper {
    relay: Arc<Relay>,
    age: Duration,
    gauges: OutboxGauges,
}

impl Sweeper {
    pub(super) fn new(relay: Arc<Relay>, age: Duration, gauges: OutboxGauges) -> Self {
        Self { relay, age, gauges }
    }

    /// Sweeps until `cancel`. An interrupted relay is harmless: the entry stays.
    pub(super) async fn run(self, cancel: CancellationToken) {
        let mut sweeps = 0u32;
        loop {
            let pause = PAUSE.mul_f64(rand::rng().random_range(0.5..1.5));
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            let round = async {
                if sweeps.is_multiple_of(SWEEPS_PER_LOOK) {
                    self.look().await;
                }
                self.sweep().await;
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                () = round => {}
            }
            sweeps = sweeps.wrapping_add(1);
        }
    }

    async fn look(&self) {
        // Unreachable now: the gauges keep what they said, `wyd_redis_up` tells the rest.
        if let Ok(stats) = self.relay.outbox.stats().await {
            self.gauges
                .pending
                .set(i64::try_from(stats.pending).unwrap_or(i64::MAX));
            self.gauges.age_seconds.set(stats.age.as_secs_f64());
        }
    }

    /// Relays until nothing old is left, or something fails: the next round tries again.
    async fn sweep(&self) {
        loop {
            if self.relay.breaker.is_open() {
                return;
            }
            let entries = match self.relay.outbox.leftovers(self.age, BATCH).await {
                Ok(entries) if entries.is_empty() => return,
                Ok(entries) => entries,
                Err(error) => {
                    tracing::debug!(%error, "outbox could not be swept");
                    return;
                }
            };
            let count = entries.len();
            let relayed = futures::stream::iter(entries)
                .map(|entry| self.relay_one(entry))
                .buffer_unordered(PARALLEL)
                .filter(|is_relayed| std::future::ready(*is_relayed))
                .count()
                .await;
            tracing::info!(
                relayed,
                failed = count - relayed,
                "relayed leftovers of the outbox"
            );
            if relayed < count {
                return;
            }
        }
    }

    async fn relay_one(&self, entry: OutboxEntry) -> bool {
        if self.relay.append(&entry).await.is_err() {
            return false;
        }
        // An entry of a superseded stream is archived under its own epoch; nobody waits for its
        // acknowledgement any more, so it is not published again.
        self.relay.outbox.settle(&entry).await.is_ok()
    }
}
