//! May traffic come? What `/readyz` answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::broker::Broker;

/// Whether this node wants traffic, and why not.
pub struct Readiness {
    is_started: AtomicBool,
    is_draining: AtomicBool,
    broker: Arc<dyn Broker>,
    unready_after: Duration,
    down_since: Mutex<Option<Instant>>,
}

impl std::fmt::Debug for Readiness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Readiness")
            .field("reasons", &self.reasons())
            .finish_non_exhaustive()
    }
}

impl Readiness {
    pub(crate) fn new(broker: Arc<dyn Broker>, unready_after: Duration) -> Self {
        Self {
            is_started: AtomicBool::new(false),
            is_draining: AtomicBool::new(false),
            broker,
            unready_after,
            down_since: Mutex::new(None),
        }
    }

    /// Lists why no traffic should come; empty means ready.
    pub fn reasons(&self) -> Vec<&'static str> {
        let mut reasons = Vec::new();
        if !self.is_started.load(Ordering::Relaxed) {
            reasons.push("starting");
        }
        if self.is_draining.load(Ordering::Relaxed) {
            reasons.push("draining");
        }
        if self.is_broker_lost() {
            reasons.push("broker unreachable");
        }
        reasons
    }

    pub(crate) fn start(&self) {
        self.is_started.store(true, Ordering::Relaxed);
    }

    pub(crate) fn drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
    }

    /// True when the broker has been down for longer than the grace time: a short outage is
    /// healed by the node, and taking all nodes out of service would make it worse.
    fn is_broker_lost(&self) -> bool {
        let mut down_since = self.down_since.lock();
        if self.broker.is_up() {
            *down_since = None;
            return false;
        }
        let since = down_since.get_or_insert_with(Instant::now);
        since.elapsed() >= self.unready_after
    }
}
