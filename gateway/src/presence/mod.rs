//! Who is subscribed to a channel now, on any node.

pub mod memory;
pub mod redis;

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use shared::ids::{ChannelName, ClientId, UserId};
use shared::protocol::ClientInfo;

use crate::broker::BrokerError;

/// Keeps who is subscribed to each channel, over all nodes.
///
/// A member belongs to the node that added it and lives as long as that node's lease: when a node
/// dies, another one's sweep removes its members. Whoever removes a member emits its leave.
#[async_trait]
pub trait Presence: Send + Sync + 'static {
    /// Adds a client; true when it was not there (the caller emits the join).
    ///
    /// # Errors
    /// See [`BrokerError`].
    async fn add(&self, channel: &ChannelName, info: Arc<ClientInfo>) -> Result<bool, BrokerError>;

    /// Removes a client; true when it was there (the caller emits the leave).
    ///
    /// # Errors
    /// See [`BrokerError`].
    async fn remove(&self, channel: &ChannelName, client: ClientId) -> Result<bool, BrokerError>;

    /// Lists who is there.
    ///
    /// # Errors
    /// See [`BrokerError`].
    async fn members(&self, channel: &ChannelName) -> Result<Vec<Arc<ClientInfo>>, BrokerError>;

    /// Counts who is there.
    ///
    /// # Errors
    /// See [`BrokerError`].
    async fn stats(&self, channel: &ChannelName) -> Result<PresenceStats, BrokerError>;

    /// Returns who of `users` is there.
    ///
    /// # Errors
    /// See [`BrokerError`].
    async fn online(
        &self,
        channel: &ChannelName,
        users: &[UserId],
    ) -> Result<HashSet<UserId>, BrokerError>;
}

/// How many are on a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PresenceStats {
    /// Connections.
    pub num_clients: u32,
    /// Different users among them.
    pub num_users: u32,
}
