//! Connections, channels, fan-out and the server API of a wyd gateway node.

pub mod auth;
pub mod broker;
pub mod channel;
pub mod control;
pub mod metrics;
pub mod presence;
mod transport;
