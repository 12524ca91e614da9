//! What both sides of a wire must agree on: configuration, protocol, events, ids, telemetry.
//!
//! This crate is light on purpose: no database driver, no cloud client, no runtime. Whatever the
//! gateway, the workers and the load test must understand in the same way lives here, once.
//! Read `protocol` for the client's side of the wire, `events` for Kafka's, `config` for the rest.

pub mod config;
pub mod events;
pub mod ids;
pub mod protocol;
pub mod telemetry;
