//! What clients get: replies and pushes, and how JSON writes them.
//!
//! Written by hand, not by serde: payloads are already JSON and are copied as they are, zero
//! values are left out, and a publication is encoded once for all its subscribers.

use std::sync::Arc;

use bytes::Bytes;

use super::{ClientError, ClientInfo, Publication, Tags, Unsubscribe};
use crate::ids::{ChannelName, ClientId, Epoch};

/// The answer to one command.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The command's number.
    pub id: u32,
    /// The answer.
    pub body: ReplyBody,
}

/// What a command came to.
#[derive(Debug, Clone)]
pub enum ReplyBody {
    /// It failed.
    Error(ClientError),
    /// The session is open.
    Connect(ConnectResult),
    /// The client is on the channel.
    Subscribe(SubscribeResult),
    /// The client is off the channel.
    Unsubscribe,
    /// The publication is accepted.
    Publish,
    /// Who is on the channel.
    Presence(Vec<Arc<ClientInfo>>),
    /// How many are on the channel.
    PresenceStats {
        /// Connections.
        num_clients: u32,
        /// Different users.
        num_users: u32,
    },
    /// A part of the channel's history.
    History {
        /// What was asked for.
        publications: Vec<Arc<Publication>>,
        /// The stream's identity.
        epoch: Epoch,
        /// The stream's top.
        offset: u64,
    },
    /// The method's answer: one JSON value.
    Rpc(Bytes),
    /// The new connection token is accepted.
    Refresh(Expiry),
    /// The new subscription token is accepted.
    SubRefresh(Expiry),
}

/// When a token that was accepted ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Expiry {
    /// Seconds until the client must bring a new one; `None`: never.
    pub ttl: Option<u32>,
}

/// The answer to `connect`.
#[derive(Debug, Clone)]
pub struct ConnectResult {
    /// The connection's id.
    pub client: ClientId,
    /// Name and version of the server.
    pub version: &'static str,
    /// When the token ends.
    pub expiry: Expiry,
    /// Server-side subscriptions.
    pub subs: Vec<(ChannelName, SubscribeResult)>,
    /// Seconds between pings.
    pub ping: u32,
    /// True when pings want an answer.
    pub pong: bool,
}

/// The answer to `subscribe`.
#[derive(Debug, Clone, Default)]
pub struct SubscribeResult {
    /// When the subscription's token ends.
    pub expiry: Expiry,
    /// The client may come back with its position.
    pub recoverable: bool,
    /// The stream's identity; `None` without a position.
    pub epoch: Option<Epoch>,
    /// What the client missed.
    pub publications: Vec<Arc<Publication>>,
    /// True when `publications` is all it missed.
    pub recovered: bool,
    /// Where the client stands before it applies `publications`.
    pub offset: u64,
    /// Positions are checked.
    pub positioned: bool,
    /// True when the client asked for what it missed.
    pub was_recovering: bool,
}

/// A message from the server that answers no command.
#[derive(Debug, Clone, Copy)]
pub enum Push<'a> {
    /// A publication.
    Publication(&'a Publication, Option<&'a Epoch>),
    /// A client came.
    Join(&'a ClientInfo),
    /// A client went.
    Leave(&'a ClientInfo),
    /// The server ended the subscription.
    Unsubscribe(&'a Unsubscribe),
}

/// The server's ping.
pub const PING_JSON: &[u8] = b"{}";

/// Writes a reply as JSON, appended to `out`.
pub fn reply_json(out: &mut Vec<u8>, reply: &Reply) {
    object(out, |o| {
        o.number("id", u64::from(reply.id));
        match &reply.body {
            ReplyBody::Error(error) => o.object("error", |o| {
                o.number("code", u64::from(error.code));
                o.string("message", error.message);
                o.flag("temporary", error.temporary);
            }),
            ReplyBody::Connect(result) => o.object("connect", |o| connect(o, result)),
            ReplyBody::Subscribe(result) => o.object("subscribe", |o| subscribe(o, result)),
            ReplyBody::Unsubscribe => o.object("unsubscribe", |_| {}),
            ReplyBody::Publish => o.object("publish", |_| {}),
            ReplyBody::Presence(members) => o.object("presence", |o| {
                o.object("presence", |o| presence(o, members));
            }),
            ReplyBody::PresenceStats {
                num_clients,
                num_users,
            } => o.object("presence_stats", |o| {
                o.number("num_clients", u64::from(*num_clients));
                o.number("num_users", u64::from(*num_users));
            }),
            ReplyBody::History {
                publications: list,
                epoch,
                offset,
            } => o.object("history", |o| {
                o.array("publications", list, |out, item| {
                    publication(out, item, None)
                });
                o.string("epoch", epoch.as_str());
                o.number("offset", *offset);
            }),
            ReplyBody::Rpc(data) => o.object("rpc", |o| o.raw("data", data)),
            ReplyBody::Refresh(expiry) => o.object("refresh", |o| expires(o, *expiry)),
            ReplyBody::SubRefresh(expiry) => o.object("sub_refresh", |o| expires(o, *expiry)),
        }
    });
}

/// Writes a push as JSON, appended to `out`.
pub fn push_json(out: &mut Vec<u8>, channel: &ChannelName, push: Push<'_>) {
    object(out, |o| {
        o.object("push", |o| {
            o.string("channel", channel.as_str());
            match push {
                Push::Publication(item, epoch) => {
                    o.key("pub");
                    publication(o.out, item, epoch);
                }
                Push::Join(info) => {
                    o.object("join", |o| o.object("info", |o| client_info(o, info)))
                }
                Push::Leave(info) => {
                    o.object("leave", |o| o.object("info", |o| client_info(o, info)));
                }
                Push::Unsubscribe(end) => o.object("unsubscribe", |o| {
                    o.number("code", u64::from(end.code));
                    o.string("reason", end.reason);
                }),
            }
        });
    });
}

/// Writes members as the map client id → info, appended to `out`; the server API writes it too.
pub fn presence_json(out: &mut Vec<u8>, members: &[Arc<ClientInfo>]) {
    object(out, |o| presence(o, members));
}

/// Writes publications as an array, appended to `out`; the server API writes it too.
pub fn publications_json(out: &mut Vec<u8>, publications: &[Arc<Publication>]) {
    array(out, publications, |out, item| publication(out, item, None));
}

fn connect(o: &mut Object<'_>, result: &ConnectResult) {
    o.string("client", &result.client.to_string());
    o.string("version", result.version);
    expires(o, result.expiry);
    if !result.subs.is_empty() {
        o.object("subs", |o| {
            for (channel, result) in &result.subs {
                o.object(channel.as_str(), |o| subscribe(o, result));
            }
        });
    }
    o.number("ping", u64::from(result.ping));
    o.flag("pong", result.pong);
}

fn subscribe(o: &mut Object<'_>, result: &SubscribeResult) {
    expires(o, result.expiry);
    o.flag("recoverable", result.recoverable);
    if let Some(epoch) = &result.epoch {
        o.string("epoch", epoch.as_str());
    }
    if !result.publications.is_empty() {
        o.array("publications", &result.publications, |out, item| {
            publication(out, item, None);
        });
    }
    o.flag("recovered", result.recovered);
    o.number("offset", result.offset);
    o.flag("positioned", result.positioned);
    o.flag("was_recovering", result.was_recovering);
}

fn expires(o: &mut Object<'_>, expiry: Expiry) {
    if let Some(ttl) = expiry.ttl {
        o.flag("expires", true);
        o.number("ttl", u64::from(ttl));
    }
}

fn presence(o: &mut Object<'_>, members: &[Arc<ClientInfo>]) {
    for info in members {
        o.object(&info.client.to_string(), |o| client_info(o, info));
    }
}

/// Writes one publication. The epoch goes out only with the first of a stream, so that a
/// positioned client that saw an empty epoch learns it.
fn publication(out: &mut Vec<u8>, item: &Publication, epoch: Option<&Epoch>) {
    object(out, |o| {
        o.raw("data", &item.data);
        if let Some(info) = &item.info {
            o.object("info", |o| client_info(o, info));
        }
        o.number("offset", item.offset);
        if !item.tags.is_empty() || item.id.is_some() {
            o.object("tags", |o| tags(o, item));
        }
        if let Some(epoch) = epoch.filter(|_| item.offset == 1) {
            o.string("epoch", epoch.as_str());
        }
    });
}

fn tags(o: &mut Object<'_>, item: &Publication) {
    const RESERVED: &str = "id";
    if let Some(id) = &item.id {
        o.string(RESERVED, &id.to_string());
    }
    let application: &Tags = &item.tags;
    for (name, value) in application {
        if item.id.is_none() || name != RESERVED {
            o.string_always(name, value);
        }
    }
}

fn client_info(o: &mut Object<'_>, info: &ClientInfo) {
    o.string("user", info.user.as_str());
    o.string("client", &info.client.to_string());
    if let Some(conn_info) = &info.conn_info {
        o.raw("conn_info", conn_info);
    }
    if let Some(chan_info) = &info.chan_info {
        o.raw("chan_info", chan_info);
    }
}

/// Writes one JSON object; zero values are left out, as the protocol wants.
struct Object<'a> {
    out: &'a mut Vec<u8>,
    is_empty: bool,
}

fn object(out: &mut Vec<u8>, write: impl FnOnce(&mut Object<'_>)) {
    out.push(b'{');
    let mut object = Object {
        out,
        is_empty: true,
    };
    write(&mut object);
    object.out.push(b'}');
}

fn array<T>(out: &mut Vec<u8>, items: &[T], mut write: impl FnMut(&mut Vec<u8>, &T)) {
    out.push(b'[');
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(out, item);
    }
    out.push(b']');
}

impl Object<'_> {
    fn key(&mut self, key: &str) {
        if !self.is_empty {
            self.out.push(b',');
        }
        self.is_empty = false;
        quoted(self.out, key);
        self.out.push(b':');
    }

    fn object(&mut self, key: &str, write: impl FnOnce(&mut Object<'_>)) {
        self.key(key);
        object(self.out, write);
    }

    fn array<T>(&mut self, key: &str, items: &[T], write: impl FnMut(&mut Vec<u8>, &T)) {
        self.key(key);
        array(self.out, items, write);
    }

    fn number(&mut self, key: &str, value: u64) {
        if value != 0 {
            self.key(key);
            self.out.extend_from_slice(value.to_string().as_bytes());
        }
    }

    fn flag(&mut self, key: &str, value: bool) {
        if value {
            self.key(key);
            self.out.extend_from_slice(b"true");
        }
    }

    fn string(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            self.string_always(key, value);
        }
    }

    fn string_always(&mut self, key: &str, value: &str) {
        self.key(key);
        quoted(self.out, value);
    }

    fn raw(&mut self, key: &str, json: &[u8]) {
        self.key(key);
        self.out.extend_from_slice(json);
    }
}

/// Writes a JSON string.
fn quoted(out: &mut Vec<u8>, text: &str) {
    // Writing a string into memory cannot fail: both the key and the sink are infallible.
    serde_json::to_writer(out, text).expect("a string is always valid JSON");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::UserId;

    fn json(reply: &Reply) -> String {
        let mut out = Vec::new();
        reply_json(&mut out, reply);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn empty_results_are_empty_objects() {
        let reply = Reply {
            id: 3,
            body: ReplyBody::Publish,
        };
        assert_eq!(json(&reply), r#"{"id":3,"publish":{}}"#);
        let body = ReplyBody::Subscribe(SubscribeResult::default());
        assert_eq!(json(&Reply { id: 2, body }), r#"{"id":2,"subscribe":{}}"#);
    }

    #[test]
    fn golden_subscribe_and_history() {
        let body = ReplyBody::Subscribe(SubscribeResult {
            recoverable: true,
            epoch: Some("MvaNXReJ".into()),
            positioned: true,
            ..SubscribeResult::default()
        });
        assert_eq!(
            json(&Reply { id: 2, body }),
            r#"{"id":2,"subscribe":{"recoverable":true,"epoch":"MvaNXReJ","positioned":true}}"#
        );
        let body = ReplyBody::History {
            publications: vec![],
            epoch: "MvaNXReJ".into(),
            offset: 2,
        };
        assert_eq!(
            json(&Reply { id: 6, body }),
            r#"{"id":6,"history":{"publications":[],"epoch":"MvaNXReJ","offset":2}}"#
        );
    }

    #[test]
    fn golden_publication_push() {
        let client = ClientId::random();
        let item = Publication {
            offset: 1,
            data: Bytes::from_static(br#"{"a":1}"#),
            info: Some(Arc::new(ClientInfo {
                user: UserId::from("42"),
                client,
                conn_info: Some(Bytes::from_static(br#"{"name":"n"}"#)),
                chan_info: None,
            })),
            tags: Tags::new(),
            id: None,
            published_at_ms: 0,
        };
        let mut out = Vec::new();
        let channel = ChannelName::new("plain").unwrap();
        push_json(
            &mut out,
            &channel,
            Push::Publication(&item, Some(&"RTSczdaC".into())),
        );
        assert_eq!(
            String::from_utf8(out).unwrap(),
            format!(
                r#"{{"push":{{"channel":"plain","pub":{{"data":{{"a":1}},"info":{{"user":"42","client":"{client}","conn_info":{{"name":"n"}}}},"offset":1,"epoch":"RTSczdaC"}}}}}}"#
            )
        );
    }

    #[test]
    fn errors_say_when_they_are_temporary() {
        let body = ReplyBody::Error(ClientError::INTERNAL);
        assert_eq!(
            json(&Reply { id: 1, body }),
            r#"{"id":1,"error":{"code":100,"message":"internal server error","temporary":true}}"#
        );
    }
}
