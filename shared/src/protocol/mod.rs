//! The client protocol: what a command, a reply and a push say, and how JSON writes them.
//!
//! This room knows no socket and no session. `types` holds what publications and clients are,
//! `command` decodes what clients send, `reply` encodes what they get, `codes` the public numbers.
//! Payloads (`data`, `conn_info`) are never parsed into a tree: they are [`bytes::Bytes`] that
//! [`payload`] checked once where they entered.

pub mod codes;
pub mod command;
pub mod payload;
pub mod reply;
mod types;

pub use codes::{ClientError, Disconnect, Unsubscribe};
pub use types::{ClientInfo, Publication, Tags};
