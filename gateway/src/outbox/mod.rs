//! Steps 5 and 10 of a message's life: from an accepted publication to the job log.
//!
//! [`Publisher`] is the one door that sessions and the server API publish through. A publication
//! of a durable channel goes through it in two phases: the broker gives it its place, shows it
//! and puts it in the outbox, all in one atomic step; then it is appended to the job log from
//! memory and its outbox entry is settled. Only after that is it acknowledged.
//!
//! `breaker` refuses durable publishes while the job log is away, before anything is shown;
//! `sweeper` relays what dead nodes left behind. So the job log may hold a publication twice, and
//! neighbours out of order: consumers go by offset and id.

mod breaker;
mod event;
mod publisher;
mod sweeper;

use std::time::Duration;

use async_trait::async_trait;

use crate::broker::{BrokerError, NewPublication, OutboxEntry, Published};

pub use publisher::{PendingPublish, Publisher};

/// Accepted publications of durable channels that are not known to be in the job log yet; both
/// brokers keep it beside their streams.
#[async_trait]
pub trait OutboxStore: Send + Sync + 'static {
    /// Removes an entry that is in the job log, and says whether its stream is still the
    /// channel's. Idempotent: an entry that another node settled answers the same.
    ///
    /// # Errors
    /// See [`BrokerError`].
    async fn settle(&self, entry: &OutboxEntry) -> Result<Settled, BrokerError>;

    /// Publishes a message again whose stream was superseded before it was acknowledged: a first
    /// result that its idempotency key has from another epoch does not count.
    ///
    /// # Errors
    /// See [`BrokerError`].
    async fn publish_again(&self, publication: NewPublication) -> Result<Published, BrokerError>;

    /// Takes entries that have waited for `age`, oldest first in each partition, for this node to
    /// relay. Other nodes are not given a partition's entries as long as this one keeps asking.
    ///
    /// # Errors
    /// See [`BrokerError`].
    async fn leftovers(&self, age: Duration, limit: usize)
    -> Result<Vec<OutboxEntry>, BrokerError>;

    /// Counts what waits, over all nodes.
    ///
    /// # Errors
    /// See [`BrokerError`].
    async fn stats(&self) -> Result<OutboxStats, BrokerError>;
}

/// What settling an entry found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// The publication is in the channel's current stream: it can be acknowledged.
    Current,
    /// The channel has another epoch now: who follows it does not see the publication.
    Superseded,
}

/// What waits in the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OutboxStats {
    /// Entries.
    pub pending: u64,
    /// How long the oldest has waited.
    pub age: Duration,
}
