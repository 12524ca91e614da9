//! Between nodes: carries publications, joins and leaves, and keeps each channel's history.
//!
//! A broker never knows sessions: it delivers into the [`Deliver`] sink that the hub implements.
//! `memory` serves one node, `redis_streams` any number; `tests/broker_conformance.rs` is what
//! both must pass. How a publication of a durable channel reaches Kafka is `outbox`'s business.

mod fingerprint;
pub mod memory;
mod metrics;
pub mod redis_streams;

pub use metrics::{BrokerMetrics, ReasonLabel};

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use shared::ids::{ChannelName, Epoch, MessageId, StreamPosition};
use shared::protocol::{ClientInfo, Publication};

/// A boxed error of a driver, kept as the source.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Carries publications between nodes and keeps each channel's history.
///
/// Within one channel with history every node delivers publications in offset order, each once,
/// without a gap: a lost bell or a broken connection is repaired from the stream before anything
/// later is delivered. When it cannot be repaired (the history is gone) the sink is told by
/// [`Delivery::Lost`]. Channels without history are delivered at most once.
#[async_trait]
pub trait Broker: Send + Sync + 'static {
    /// Appends a publication to its channel's stream and fans it out to every node.
    ///
    /// Resolves when the stream has it (and, for a durable channel, the outbox, in one atomic
    /// step). A repeated `idempotency` key with the same payload answers the first result and
    /// publishes nothing. Calls for one channel keep the order in which their futures are first
    /// polled, even when they are awaited together: nothing is waited for before a publication
    /// has its place in the queue.
    ///
    /// # Errors
    /// See [`BrokerError`].
    async fn publish(&self, publication: NewPublication) -> Result<Published, BrokerError>;

    /// Reads a channel's history, and always its current position.
    ///
    /// Makes the stream's metadata (a new epoch) when the channel has none. A `since` with an
    /// empty epoch goes with any epoch: what that is worth is the caller's decision.
    ///
    /// # Errors
    /// See [`BrokerError`].
    async fn history(
        &self,
        channel: &ChannelName,
        policy: &HistoryPolicy,
        range: HistoryRange,
    ) -> Result<HistoryPage, BrokerError>;

    /// Removes a channel's kept publications; epoch and top offset stay.
    ///
    /// # Errors
    /// See [`BrokerError`].
    async fn history_remove(&self, channel: &ChannelName) -> Result<(), BrokerError>;

    /// Starts delivering the channel to this node's sink.
    ///
    /// When it returns, every publication that is accepted later is delivered. Idempotent.
    ///
    /// # Errors
    /// See [`BrokerError`].
    async fn subscribe(
        &self,
        channel: &ChannelName,
        history: Option<&HistoryPolicy>,
    ) -> Result<(), BrokerError>;

    /// Stops delivering the channel to this node. Idempotent.
    ///
    /// # Errors
    /// See [`BrokerError`].
    async fn unsubscribe(&self, channel: &ChannelName) -> Result<(), BrokerError>;

    /// Tells every node's subscribers of the channel that a client came or went; no history.
    ///
    /// # Errors
    /// See [`BrokerError`].
    async fn signal(&self, channel: &ChannelName, signal: Signal) -> Result<(), BrokerError>;

    /// False while the link is down: `/readyz` asks.
    fn is_up(&self) -> bool;
}

/// Where a broker delivers: the hub of this node.
pub trait Deliver: Send + Sync + 'static {
    /// Hands over what arrived, in order. Never blocks: a batch is what one read brought.
    fn deliver(&self, batch: Vec<(ChannelName, Delivery)>);
}

/// One thing that a channel's subscribers on this node must learn.
#[derive(Debug, Clone)]
pub enum Delivery {
    /// A publication; `epoch` is empty in channels without history.
    Publication {
        /// What was published.
        publication: Arc<Publication>,
        /// Identity of the stream its offset belongs to; `None` without history.
        epoch: Option<Epoch>,
    },
    /// A client came or went.
    Signal(Signal),
    /// Publications were lost for good, or the epoch changed: positions are void, subscribers
    /// with a position get "insufficient state" and recover by themselves.
    Lost,
}

/// A client came to a channel, or went.
#[derive(Debug, Clone)]
pub enum Signal {
    /// It subscribed.
    Join(Arc<ClientInfo>),
    /// It unsubscribed or its connection ended.
    Leave(Arc<ClientInfo>),
}

/// A publication on its way in; the broker gives it offset, epoch and time.
#[derive(Debug, Clone)]
pub struct NewPublication {
    /// Where to.
    pub channel: ChannelName,
    /// One JSON value without raw line breaks.
    pub data: Bytes,
    /// The publishing client; `None` for the server API.
    pub info: Option<Arc<ClientInfo>>,
    /// Application labels.
    pub tags: BTreeMap<String, String>,
    /// The message's id (`id` in the tags of durable channels).
    pub id: MessageId,
    /// How much history the channel keeps; `None`: none.
    pub history: Option<HistoryPolicy>,
    /// True when it must also reach Kafka: it is put in the outbox in the same atomic step.
    pub durable: bool,
    /// Guards against doing the same publish twice.
    pub idempotency: Option<Idempotency>,
}

/// An idempotency key with whose it is.
#[derive(Debug, Clone)]
pub struct Idempotency {
    /// Whose key: `user:<id>` or `api:<name of the API key>`.
    pub scope: String,
    /// The caller's key.
    pub key: String,
    /// How long the first result is kept: 24 h for durable channels, 5 min else.
    pub ttl: Duration,
}

/// How much of a channel is kept, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryPolicy {
    /// Publications kept; at least 1.
    pub size: usize,
    /// How long after the last publish they are kept.
    pub ttl: Duration,
    /// How long epoch and top offset are kept after the last touch; longer than `ttl`.
    pub meta_ttl: Duration,
    /// Durable channels never restart their offsets: a new epoch begins at the clock.
    pub durable: bool,
}

/// What a publish came to.
#[derive(Debug, Clone)]
pub struct Published {
    /// Its place; `None` in channels without history.
    pub position: Option<StreamPosition>,
    /// The message's id; of the first publish when this one was a repetition.
    pub id: MessageId,
    /// When the broker accepted it, Unix milliseconds.
    pub published_at_ms: u64,
    /// True when the idempotency key was known and nothing new was published.
    pub is_repeat: bool,
    /// The outbox entry that still has to reach Kafka; `None` when not durable, or when a repeat
    /// finds it relayed already.
    pub outbox: Option<OutboxEntry>,
}

/// An accepted publication that waits for its relay to Kafka.
#[derive(Debug, Clone)]
pub struct OutboxEntry {
    /// Name of the entry inside its partition's outbox.
    pub entry_id: String,
    /// The partition of the broker that holds it.
    pub partition: u16,
    /// Identity of the stream that gave the offset.
    pub epoch: Epoch,
    /// The channel.
    pub channel: ChannelName,
    /// What was published.
    pub publication: Arc<Publication>,
}

/// Which part of a history to read.
#[derive(Debug, Clone)]
pub struct HistoryRange {
    /// Read after this position (before it when `reverse`); `None`: from the oldest that is kept
    /// (from the newest when `reverse`).
    pub since: Option<StreamPosition>,
    /// At most so many; 0 reads the position only; `None` reads all.
    pub limit: Option<usize>,
    /// Newest first.
    pub reverse: bool,
}

/// A part of a history.
#[derive(Debug, Clone)]
pub struct HistoryPage {
    /// What was asked for, oldest first (newest first when `reverse`).
    pub publications: Vec<Arc<Publication>>,
    /// The stream's current top.
    pub top: StreamPosition,
}

/// Why a broker call failed; each variant says what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// No answer in time, outcome unknown: retry with the same idempotency key.
    #[error("broker did not answer")]
    Unavailable(#[source] BoxError),
    /// The outbox is full or Kafka is away: refused before anything was shown; retry later.
    #[error("durable publishes are refused for now: {0}")]
    Refused(&'static str),
    /// No job log takes a publication of this size: publish less, or a link to it.
    #[error("the publication is too large for a durable channel")]
    TooLarge,
    /// The key was used for another payload: the caller must use a new key.
    #[error("the idempotency key was used for another payload")]
    KeyConflict,
    /// `since.epoch` is not the stream's: the client starts afresh.
    #[error("the position belongs to another epoch")]
    UnrecoverablePosition,
    /// Stored bytes that this version cannot read.
    #[error("stored value cannot be read: {0}")]
    Corrupt(String),
    /// The address, or what the store holds, does not go with this node's configuration.
    #[error("{0}")]
    Incompatible(String),
}

impl BrokerError {
    /// True when the same call may succeed later with nothing changed.
    pub fn is_temporary(&self) -> bool {
        // Spelled out, so that a new variant has to answer the question.
        match self {
            Self::Unavailable(_) | Self::Refused(_) => true,
            Self::TooLarge
            | Self::KeyConflict
            | Self::UnrecoverablePosition
            | Self::Corrupt(_)
            | Self::Incompatible(_) => false,
        }
    }
}
