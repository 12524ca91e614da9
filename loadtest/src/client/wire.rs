//! The client's half of the protocol: commands as JSON out, replies and pushes as JSON in.
//!
//! The other half (decoding commands, encoding replies) is `shared::protocol`'s. It is written
//! apart from it on purpose: a mistake there must not cancel itself out here.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// A command on its way to the server.
#[derive(Debug, Serialize)]
pub(crate) struct Command<'a> {
    pub(crate) id: u32,
    #[serde(flatten)]
    pub(crate) request: Request<'a>,
}

/// What a command asks for.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request<'a> {
    Connect {
        token: &'a str,
        name: &'a str,
    },
    Subscribe(SubscribeRequest<'a>),
    Unsubscribe {
        channel: &'a str,
    },
    Publish {
        channel: &'a str,
        data: &'a RawValue,
    },
    History {
        channel: &'a str,
        limit: i32,
    },
    Presence {
        channel: &'a str,
    },
    Rpc {
        method: &'a str,
        data: &'a RawValue,
    },
}

#[derive(Debug, Serialize)]
pub(crate) struct SubscribeRequest<'a> {
    pub(crate) channel: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) recover: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(crate) epoch: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) offset: u64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) positioned: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) recoverable: bool,
}

impl<'a> SubscribeRequest<'a> {
    /// A subscribe that asks for nothing but the publications.
    pub(crate) fn plain(channel: &'a str) -> Self {
        Self {
            channel,
            recover: false,
            epoch: "",
            offset: 0,
            positioned: false,
            recoverable: false,
        }
    }
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls skip functions with a reference"
)]
fn is_zero(offset: &u64) -> bool {
    *offset == 0
}

/// Everything that one object from the server can hold.
#[derive(Debug, Deserialize)]
pub(crate) struct Reply<'a> {
    #[serde(default)]
    pub(crate) id: u32,
    pub(crate) error: Option<ErrorReply>,
    #[serde(borrow)]
    pub(crate) push: Option<Push<'a>>,
    #[serde(borrow)]
    pub(crate) connect: Option<ConnectResult<'a>>,
    #[serde(borrow)]
    pub(crate) subscribe: Option<SubscribeResult<'a>>,
    #[serde(borrow)]
    pub(crate) unsubscribe: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(crate) publish: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(crate) history: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(crate) presence: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(crate) rpc: Option<RpcResult<'a>>,
}

/// An error that a command was answered with.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, thiserror::Error)]
#[error("error {code}: {message}")]
pub struct ErrorReply {
    /// The public number.
    pub code: u32,
    /// The public text.
    #[serde(default)]
    pub message: String,
    /// True when the same command may succeed later.
    #[serde(default)]
    pub temporary: bool,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ConnectResult<'a> {
    #[serde(borrow)]
    pub(crate) client: Cow<'a, str>,
    #[serde(default)]
    pub(crate) ping: u32,
    #[serde(default)]
    pub(crate) pong: bool,
}

#[derive(Debug, Deserialize)]
pub(crate) struct SubscribeResult<'a> {
    #[serde(borrow, default)]
    pub(crate) epoch: Cow<'a, str>,
    #[serde(default)]
    pub(crate) offset: u64,
    #[serde(default)]
    pub(crate) recoverable: bool,
    #[serde(default)]
    pub(crate) recovered: bool,
    #[serde(default)]
    pub(crate) was_recovering: bool,
    #[serde(borrow, default)]
    pub(crate) publications: Vec<PublicationWire<'a>>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct RpcResult<'a> {
    #[serde(borrow)]
    pub(crate) data: Option<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Push<'a> {
    #[serde(borrow, default)]
    pub(crate) channel: Cow<'a, str>,
    #[serde(borrow, rename = "pub")]
    pub(crate) publication: Option<PublicationWire<'a>>,
    pub(crate) unsubscribe: Option<UnsubscribePush>,
    pub(crate) disconnect: Option<DisconnectPush>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct UnsubscribePush {
    #[serde(default)]
    pub(crate) code: u32,
    #[serde(default)]
    pub(crate) reason: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct DisconnectPush {
    #[serde(default)]
    pub(crate) code: u16,
    #[serde(default)]
    pub(crate) reason: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct PublicationWire<'a> {
    #[serde(borrow)]
    pub(crate) data: Option<&'a RawValue>,
    #[serde(default)]
    pub(crate) offset: u64,
    #[serde(borrow, default)]
    pub(crate) epoch: Option<Cow<'a, str>>,
    #[serde(default)]
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) info: Option<Info>,
}

/// Who published, as subscribers see it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Info {
    /// The user.
    #[serde(default)]
    pub user: String,
    /// The user's connection.
    #[serde(default)]
    pub client: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(text: &str) -> Reply<'_> {
        serde_json::from_str(text).unwrap()
    }

    fn json(request: Request<'_>) -> String {
        serde_json::to_string(&Command { id: 7, request }).unwrap()
    }

    /// The public golden vectors of the protocol.
    #[test]
    fn golden_replies_are_read() {
        let connect = reply(
            r#"{"id":1,"connect":{"client":"6be1","version":"golden 0.40.1","ping":2,"pong":true}}"#,
        );
        let connect = connect.connect.unwrap();
        assert!(connect.pong && connect.ping == 2 && connect.client == "6be1");

        let push = reply(
            r#"{"push":{"channel":"plain","pub":{"data":{"a":1},"info":{"user":"42","client":"6be1","conn_info":{"name":"n"}},"offset":1,"epoch":"RTSczdaC"}}}"#,
        );
        let push = push.push.unwrap();
        let publication = push.publication.unwrap();
        assert_eq!(push.channel, "plain");
        assert_eq!(publication.data.unwrap().get(), r#"{"a":1}"#);
        assert_eq!(publication.epoch.as_deref(), Some("RTSczdaC"));
        assert_eq!(publication.info.unwrap().user, "42");

        let fresh = reply(
            r#"{"id":2,"subscribe":{"recoverable":true,"epoch":"MvaNXReJ","positioned":true}}"#,
        );
        let fresh = fresh.subscribe.unwrap();
        assert!(fresh.recoverable && !fresh.recovered && fresh.offset == 0);

        let recovered = reply(
            r#"{"id":2,"subscribe":{"recoverable":true,"epoch":"E","publications":[{"data":1,"offset":3},{"data":2,"offset":4}],"recovered":true,"offset":2,"positioned":true,"was_recovering":true}}"#,
        );
        let recovered = recovered.subscribe.unwrap();
        assert!(recovered.recovered && recovered.was_recovering);
        assert_eq!(recovered.publications.len(), 2);

        let error = reply(r#"{"id":34,"error":{"code":112,"message":"unrecoverable position"}}"#);
        assert_eq!(error.error.unwrap().code, 112);
        let unsubscribe = reply(
            r#"{"push":{"channel":"r","unsubscribe":{"code":2500,"reason":"insufficient state"}}}"#,
        );
        assert_eq!(unsubscribe.push.unwrap().unsubscribe.unwrap().code, 2500);
        assert!(reply(r#"{"id":3,"publish":{}}"#).publish.is_some());
        // Pushes that are of no use here must not be errors.
        for other in [
            r#"{"push":{"message":{"data":{"async":1}}}}"#,
            r#"{"push":{"refresh":{"expires":true,"ttl":100}}}"#,
            r#"{"push":{"channel":"j","join":{"info":{"user":"42","client":"9"}}}}"#,
        ] {
            assert!(reply(other).push.unwrap().publication.is_none());
        }
    }

    #[test]
    fn commands_are_written_as_the_protocol_wants_them() {
        let data: Box<RawValue> = serde_json::from_str(r#"{"a":1}"#).unwrap();
        assert_eq!(
            json(Request::Publish {
                channel: "plain",
                data: &data
            }),
            r#"{"id":7,"publish":{"channel":"plain","data":{"a":1}}}"#
        );
        let mut subscribe = SubscribeRequest {
            channel: "r1",
            recover: false,
            epoch: "",
            offset: 0,
            positioned: true,
            recoverable: true,
        };
        assert_eq!(
            json(Request::Subscribe(SubscribeRequest { ..subscribe })),
            r#"{"id":7,"subscribe":{"channel":"r1","positioned":true,"recoverable":true}}"#
        );
        subscribe = SubscribeRequest {
            recover: true,
            epoch: "E",
            offset: 2,
            ..subscribe
        };
        assert_eq!(
            json(Request::Subscribe(subscribe)),
            r#"{"id":7,"subscribe":{"channel":"r1","recover":true,"epoch":"E","offset":2,"positioned":true,"recoverable":true}}"#
        );
        assert_eq!(
            json(Request::History {
                channel: "r1",
                limit: -1
            }),
            r#"{"id":7,"history":{"channel":"r1","limit":-1}}"#
        );
    }
}
