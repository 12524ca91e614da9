//! Everything between nodes, as `broker::memory::parts` or `broker::redis_streams::connect` join
//! it: the node takes it whole and names no implementation.

use std::sync::Arc;

use prometheus_client::registry::Registry;

use crate::broker::{Broker, BrokerMetrics};
use crate::control::Control;
use crate::outbox::OutboxStore;
use crate::presence::Presence;

/// The parts that nodes share, all on the same Redis or all in this process.
pub struct Parts {
    /// Carries publications and keeps histories.
    pub broker: Arc<dyn Broker>,
    /// Holds accepted publications until they are in the job log.
    pub outbox: Arc<dyn OutboxStore>,
    /// Who is subscribed.
    pub presence: Arc<dyn Presence>,
    /// Commands to all nodes.
    pub control: Arc<dyn Control>,
    /// What the broker counts.
    pub metrics: BrokerMetrics,
}

impl Parts {
    /// Adds the broker's counters to a registry.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.metrics.register(registry);
    }
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}
