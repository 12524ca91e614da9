//! What clients send: one frame holds one or more commands, JSON objects joined by `\n`.
//!
//! Decoding checks the shape only; what a command may do is the session's business.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::ids::StreamPosition;

/// One command of a client. `id` 0 without a request is a pong.
#[derive(Debug)]
pub struct Command {
    /// Numbers the command; its reply carries the same number.
    pub id: u32,
    /// What is asked; `None` for a pong (`{}`) and for `{"id":2}`, which is malformed.
    pub request: Option<Request>,
}

/// What a client asks.
#[derive(Debug)]
pub enum Request {
    /// Opens the session; must be first.
    Connect(ConnectRequest),
    /// Joins a channel.
    Subscribe(SubscribeRequest),
    /// Leaves a channel.
    Unsubscribe(ChannelRequest),
    /// Publishes into a channel.
    Publish(PublishRequest),
    /// Lists who is on a channel.
    Presence(ChannelRequest),
    /// Counts who is on a channel.
    PresenceStats(ChannelRequest),
    /// Reads a channel's history.
    History(HistoryRequest),
    /// Exists in the schema only; a client that sends it is malformed.
    Ping,
    /// A message to the server that expects no reply.
    Send,
    /// Calls a method.
    Rpc(RpcRequest),
    /// Brings a new connection token.
    Refresh(RefreshRequest),
    /// Brings a new subscription token.
    SubRefresh(SubRefreshRequest),
}

/// `connect`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ConnectRequest {
    /// Connection JWT.
    pub token: String,
    /// Server-side subscriptions to restore: only recover, epoch and offset are used.
    pub subs: BTreeMap<String, SubscribeRequest>,
    /// Name of the SDK.
    pub name: String,
    /// Version of the SDK.
    pub version: String,
}

/// `subscribe`.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub struct SubscribeRequest {
    /// The channel.
    pub channel: String,
    /// Subscription JWT.
    pub token: String,
    /// True when the client wants what it missed since the position.
    pub recover: bool,
    /// The epoch it knows; empty matches any.
    pub epoch: String,
    /// The last offset it saw.
    pub offset: u64,
    /// Asks for position checks.
    pub positioned: bool,
    /// Asks to be recoverable.
    pub recoverable: bool,
    /// Asks for joins and leaves.
    pub join_leave: bool,
    /// Delta format; `fossil` or empty.
    pub delta: String,
    /// Bit 1 (value 2): answer error 112 instead of `recovered: false`.
    pub flag: i64,
    /// Kind of subscription; only 0 (stream) is known here.
    #[serde(rename = "type")]
    pub kind: i32,
}

/// Requests that name a channel only.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ChannelRequest {
    /// The channel.
    pub channel: String,
}

/// `publish`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct PublishRequest {
    /// The channel.
    pub channel: String,
    /// The application's JSON value.
    pub data: Option<Box<RawValue>>,
}

/// `history`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct HistoryRequest {
    /// The channel.
    pub channel: String,
    /// 0: only the position; −1: all that is allowed.
    pub limit: i32,
    /// Read from here, excluding it.
    pub since: Option<Since>,
    /// Newest first.
    pub reverse: bool,
}

/// A position as clients write it: zero values may be left out.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub struct Since {
    /// The offset.
    pub offset: u64,
    /// The epoch; empty matches any.
    pub epoch: String,
}

impl From<Since> for StreamPosition {
    fn from(since: Since) -> Self {
        Self {
            offset: since.offset,
            epoch: since.epoch.into(),
        }
    }
}

/// `rpc`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct RpcRequest {
    /// Parameters: the method's own JSON.
    pub data: Option<Box<RawValue>>,
    /// Name of the method.
    pub method: String,
}

/// `refresh`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct RefreshRequest {
    /// New connection JWT.
    pub token: String,
}

/// `sub_refresh`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct SubRefreshRequest {
    /// The channel.
    pub channel: String,
    /// New subscription JWT.
    pub token: String,
}

/// The JSON object of a command: exactly one request counts, the first in this order.
#[derive(Deserialize)]
struct JsonCommand {
    #[serde(default)]
    id: u32,
    connect: Option<ConnectRequest>,
    subscribe: Option<SubscribeRequest>,
    unsubscribe: Option<ChannelRequest>,
    publish: Option<PublishRequest>,
    presence: Option<ChannelRequest>,
    presence_stats: Option<ChannelRequest>,
    history: Option<HistoryRequest>,
    ping: Option<serde::de::IgnoredAny>,
    send: Option<serde::de::IgnoredAny>,
    rpc: Option<RpcRequest>,
    refresh: Option<RefreshRequest>,
    sub_refresh: Option<SubRefreshRequest>,
}

impl JsonCommand {
    fn into_command(self) -> Command {
        let request = None
            .or(self.connect.map(Request::Connect))
            .or(self.subscribe.map(Request::Subscribe))
            .or(self.unsubscribe.map(Request::Unsubscribe))
            .or(self.publish.map(Request::Publish))
            .or(self.presence.map(Request::Presence))
            .or(self.presence_stats.map(Request::PresenceStats))
            .or(self.history.map(Request::History))
            .or(self.ping.map(|_| Request::Ping))
            .or(self.send.map(|_| Request::Send))
            .or(self.rpc.map(Request::Rpc))
            .or(self.refresh.map(Request::Refresh))
            .or(self.sub_refresh.map(Request::SubRefresh));
        Command {
            id: self.id,
            request,
        }
    }
}

/// A frame that is not the protocol's JSON (close 3501).
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Nothing in it, or an empty line between commands.
    #[error("empty command")]
    Empty,
    /// Not UTF-8, not JSON, or not a command.
    #[error("malformed command: {0}")]
    Malformed(String),
}

/// Decodes the commands of one JSON frame; one trailing line break is allowed.
///
/// # Errors
/// [`DecodeError`] at the first command that is malformed.
pub fn decode_json(frame: &[u8]) -> Result<Vec<Command>, DecodeError> {
    // Checked once for the whole frame: serde_json is then spared it for every string.
    let text = simdutf8::basic::from_utf8(frame)
        .map_err(|error| DecodeError::Malformed(error.to_string()))?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    text.split('\n').map(decode_one).collect()
}

fn decode_one(line: &str) -> Result<Command, DecodeError> {
    if line.trim().is_empty() {
        return Err(DecodeError::Empty);
    }
    serde_json::from_str::<JsonCommand>(line)
        .map(JsonCommand::into_command)
        .map_err(|error| DecodeError::Malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_holds_several_commands() {
        let frame =
            b"{\"id\":1,\"connect\":{}}\n{\"id\":2,\"subscribe\":{\"channel\":\"a\"}}\n{}\n";
        let commands = decode_json(frame).unwrap();
        assert_eq!(commands.len(), 3);
        assert!(matches!(commands[0].request, Some(Request::Connect(_))));
        assert!(matches!(&commands[1].request, Some(Request::Subscribe(s)) if s.channel == "a"));
        assert!(commands[2].id == 0 && commands[2].request.is_none());
    }

    #[test]
    fn malformed_frames_are_refused() {
        for bad in [
            &b""[..],
            b"\n",
            b"{oops",
            b"{}\n\n{}",
            b"[]",
            b"1",
            b"\xff",
            b"{\"id\":-1}",
        ] {
            assert!(decode_json(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn unknown_fields_are_accepted() {
        let commands = decode_json(b"{\"id\":1,\"new\":1,\"rpc\":{\"method\":\"m\",\"x\":2}}");
        assert!(matches!(&commands.unwrap()[0].request, Some(Request::Rpc(r)) if r.method == "m"));
    }
}
