//! Connections, channels, fan-out and the server API of a wyd gateway node.

pub mod broker;
pub mod control;
pub mod presence;
