//! What the link between nodes counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Label: why a channel's deliveries were repaired from its stream: `gap`, `reconnect`,
/// `position_check`, `epoch` or `overflow`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    /// The reason.
    pub reason: &'static str,
}

/// Counters of the broker; clones share them.
#[derive(Debug, Clone, Default)]
pub struct BrokerMetrics {
    /// Repairs of a channel's deliveries from its stream.
    pub repairs: Family<ReasonLabel, Counter>,
    /// Channels on this node whose stream got a new identity.
    pub epoch_changes: Counter,
    /// 1 while every connection to Redis is up.
    pub redis_up: Gauge,
}

impl BrokerMetrics {
    /// Registers them. The library appends `_total` to the names of counters.
    pub fn register(&self, registry: &mut Registry) {
        let metrics = self.clone();
        registry.register(
            "wyd_broker_repairs",
            "Channels whose deliveries were repaired from the stream, by reason",
            metrics.repairs,
        );
        registry.register(
            "wyd_epoch_changes",
            "Channels on this node whose stream got a new identity",
            metrics.epoch_changes,
        );
        registry.register(
            "wyd_redis_up",
            "1 while Redis is reachable",
            metrics.redis_up,
        );
    }

    pub(crate) fn repaired(&self, reason: &'static str) {
        self.repairs.get_or_create(&ReasonLabel { reason }).inc();
    }
}
