//! Connections, channels, fan-out and the server API of a wyd gateway node.
//!
//! Reading order, along the life of a message: `transport` (a frame arrives) → `session` (may
//! this client do this?) → `outbox` and `broker` (it gets its place, reaches every node and
//! Kafka) → `hub` (every subscriber's send queue) → `transport` (it is written). `node` joins
//! the parts; `api` is what backends call; `presence` and `control` are the rest between nodes.

mod api;
pub mod auth;
pub mod broker;
pub mod channel;
mod chat;
pub mod control;
mod drain;
pub mod health;
pub mod hub;
pub mod metrics;
pub mod node;
pub mod outbox;
pub mod parts;
pub mod presence;
pub mod server_publisher;
mod session;
mod transport;

pub use node::{Node, NodeParts, NodeStats, StartError};
pub use server_publisher::{ServerPublishError, ServerPublisher};
