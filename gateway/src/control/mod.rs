//! Between nodes, beside the channels: who the nodes are, and commands that concern all of them.

pub mod memory;
pub mod redis;

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use shared::ids::NodeId;

use crate::broker::BrokerError;

/// Tells every node what to do, and knows which nodes there are.
///
/// A command is delivered to every live node, the sender included, at least once; commands are
/// idempotent. A node that was cut off for a moment reads what it missed.
#[async_trait]
pub trait Control: Send + Sync + 'static {
    /// Sends a command to all nodes.
    ///
    /// # Errors
    /// See [`BrokerError`].
    async fn broadcast(&self, command: ControlCommand) -> Result<(), BrokerError>;

    /// Publishes this node's figures in the registry; an entry lives for three heartbeats.
    ///
    /// # Errors
    /// See [`BrokerError`].
    async fn heartbeat(&self, info: &NodeInfo) -> Result<(), BrokerError>;

    /// Lists the live nodes.
    ///
    /// # Errors
    /// See [`BrokerError`].
    async fn nodes(&self) -> Result<Vec<NodeInfo>, BrokerError>;
}

/// Where commands arrive: the hub's side of this node.
pub trait Obey: Send + Sync + 'static {
    /// Carries a command out on this node's sessions. Never blocks.
    fn obey(&self, command: ControlCommand);
}

/// Shared handle to whoever obeys on this node.
pub type Obeyer = Arc<dyn Obey>;

/// What all nodes must do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ControlCommand {
    /// End a user's connections.
    Disconnect {
        /// Whose.
        user: String,
        /// Only this connection, when set.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        client: Option<String>,
        /// Connections that stay.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        whitelist: Vec<String>,
        /// Public disconnect code.
        code: u16,
        /// Public reason.
        reason: String,
    },
    /// End a user's subscription.
    Unsubscribe {
        /// Whose.
        user: String,
        /// The channel; empty means all.
        channel: String,
        /// Only this connection, when set.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        client: Option<String>,
    },
    /// A user's membership, or what it allows, has changed.
    Membership {
        /// Whose.
        user: String,
        /// The channel; empty means all.
        channel: String,
        /// The user is no member any more: the subscription ends.
        ended: bool,
    },
}

/// One live node, as `info` of the server API lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// The node.
    pub uid: NodeId,
    /// Host name and port, for people.
    pub name: String,
    /// Version of the binary.
    pub version: String,
    /// Open connections.
    pub num_clients: u32,
    /// Different users among them.
    pub num_users: u32,
    /// Channels with a subscriber on this node.
    pub num_channels: u32,
    /// Subscriptions on this node.
    pub num_subs: u32,
    /// Seconds since the node started.
    pub uptime: u32,
}
