//! How bytes move: the public port and its transports.
//!
//! `server` accepts connections and speaks HTTP on them, `websocket` runs a session on an
//! upgraded one, `frame` is the WebSocket's wire. Transports move bytes and know the session's
//! task; they decide nothing about commands.

pub(crate) mod frame;
mod origin;
pub(crate) mod server;
pub(crate) mod websocket;
