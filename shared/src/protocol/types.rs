//! What a publication and a client's description are, on every side of every wire.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::ids::{ClientId, MessageId, UserId};

/// Application-defined labels of a publication; `id` is reserved for the message id.
pub type Tags = BTreeMap<String, String>;

/// One item in a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// Place in the channel's stream, counted by one; 0 in channels without history.
    pub offset: u64,
    /// One JSON value without raw line breaks.
    pub data: Bytes,
    /// Who published it; absent for publications of the server API.
    pub info: Option<Arc<ClientInfo>>,
    /// Labels; durable channels carry the message id in `id`.
    pub tags: Tags,
    /// The message's id; every publication of a durable channel has one.
    pub id: Option<MessageId>,
    /// When the broker accepted it, in Unix milliseconds (Redis time).
    pub published_at_ms: u64,
}

/// A client as others on a channel see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientInfo {
    /// The user.
    pub user: UserId,
    /// The user's connection.
    pub client: ClientId,
    /// The token's `info` claim: one JSON value.
    pub conn_info: Option<Bytes>,
    /// The subscription token's `info` claim: one JSON value.
    pub chan_info: Option<Bytes>,
}
