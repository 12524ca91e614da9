//! What the push worker counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Label: what a push came to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PushLabel {
    /// `sent`, or why not.
    pub result: &'static str,
}

/// Counters of pushes; clones share them.
#[derive(Debug, Clone, Default)]
pub struct PushMetrics {
    /// Pushes by result.
    pub push: Family<PushLabel, Counter>,
    /// 1 while nothing is sent because the provider refuses the account.
    pub breaker_open: Gauge,
}

impl PushMetrics {
    /// Makes the metrics and registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        // The library appends `_total` to the names of counters.
        registry.register("wyd_push", "Pushes by result", metrics.push.clone());
        registry.register(
            "wyd_push_breaker_open",
            "1 while the push provider refuses the account",
            metrics.breaker_open.clone(),
        );
        metrics
    }

    pub(crate) fn count(&self, result: &'static str) {
        self.push.get_or_create(&PushLabel { result }).inc();
    }
}
