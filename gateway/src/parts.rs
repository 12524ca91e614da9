//! What a broker brings: everything between nodes, on one Redis or in one process.

use std::sync::Arc;

use crate::broker::Broker;
use crate::control::Control;
use crate::outbox::OutboxStore;
use crate::presence::Presence;

/// Everything between nodes; `broker::memory` and `broker::redis_streams` each make a set.
pub struct Parts {
    /// Publications.
    pub broker: Arc<dyn Broker>,
    /// Accepted publications on their way to Kafka.
    pub outbox: Arc<dyn OutboxStore>,
    /// Who is on which channel.
    pub presence: Arc<dyn Presence>,
    /// Commands to all nodes.
    pub control: Arc<dyn Control>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}
