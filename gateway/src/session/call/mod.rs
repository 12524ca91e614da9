//! What a session asks of the broker, presence and the archive: carried out here, one at a time.
//!
//! `subscribe` puts a client on channels and takes it off, `publish` publishes, `list` reads the
//! archive.

mod list;
mod publish;
mod subscribe;

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use shared::ids::{ChannelName, StreamPosition};
use shared::protocol::reply::{ConnectResult, Expiry, Reply, ReplyBody};
use shared::protocol::{ClientError, ClientInfo, Disconnect};
use store::archive::PageQuery;

use super::Services;
use crate::broker::{BrokerError, HistoryPolicy, HistoryRange, NewPublication};
use crate::channel::Namespace;
use crate::hub::Client;

pub(crate) use publish::{Answer, Begun};

/// A call of a session.
#[derive(Debug)]
pub(crate) enum Call {
    /// Put the client on its token's channels, then answer `connect`.
    Connect {
        id: u32,
        result: ConnectResult,
        joins: Vec<Join>,
    },
    /// Put the client on a channel, then answer `subscribe`.
    Subscribe { id: u32, expiry: Expiry, join: Join },
    /// Take the client off a channel.
    Leave {
        reply: Option<Reply>,
        channel: ChannelName,
        namespace: Arc<Namespace>,
        info: Arc<ClientInfo>,
    },
    /// Publish.
    Publish {
        id: u32,
        publication: NewPublication,
        answer: Answer,
    },
    /// List who is there.
    Presence { id: u32, channel: ChannelName },
    /// Count who is there.
    PresenceStats { id: u32, channel: ChannelName },
    /// Read the history.
    History {
        id: u32,
        channel: ChannelName,
        policy: HistoryPolicy,
        range: HistoryRange,
    },
    /// Read the archive.
    List {
        id: u32,
        channel: ChannelName,
        query: PageQuery,
        newest_first: bool,
    },
}

impl Call {
    /// Returns the command's name, for the metric.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "connect",
            Self::Subscribe { .. } => "subscribe",
            Self::Leave { .. } => "unsubscribe",
            Self::Publish {
                answer: Answer::Fixed(_),
                ..
            } => "publish",
            Self::Publish { .. } | Self::List { .. } => "rpc",
            Self::Presence { .. } => "presence",
            Self::PresenceStats { .. } => "presence_stats",
            Self::History { .. } => "history",
        }
    }
}

/// What a subscription is made with.
#[derive(Debug)]
pub(crate) struct Join {
    pub(crate) channel: ChannelName,
    pub(crate) namespace: Arc<Namespace>,
    pub(crate) info: Arc<ClientInfo>,
    pub(crate) is_recoverable: bool,
    pub(crate) is_positioned: bool,
    pub(crate) wants_signals: bool,
    /// The position the client comes back with.
    pub(crate) recover: Option<StreamPosition>,
    /// Error 112 instead of `recovered: false`.
    pub(crate) is_strict: bool,
}

/// What a call came to.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Send this.
    Replied(Reply),
    /// The reply is sent already, or none was wanted.
    Finished,
    /// The publication has its place; its reply follows when it is safe.
    PublishBegun,
    /// `connect` is answered.
    Connected,
    /// `connect` cannot be answered.
    ConnectFailed(Disconnect),
    /// The client is not on the channel.
    SubscribeFailed {
        id: u32,
        channel: ChannelName,
        error: ClientError,
    },
}

impl Services {
    /// Carries a call out. A publish that has begun is put into `begun`.
    pub(crate) async fn carry_out(
        self: Arc<Self>,
        client: Arc<Client>,
        call: Call,
    ) -> (Outcome, Option<Begun>) {
        let outcome = match call {
            Call::Publish {
                id,
                publication,
                answer,
            } => {
                return self.publish(id, publication, answer).await;
            }
            Call::Connect { id, result, joins } => self.connect(&client, id, result, joins).await,
            Call::Subscribe { id, expiry, join } => self.subscribe(&client, id, expiry, join).await,
            Call::Leave {
                reply,
                channel,
                namespace,
                info,
            } => {
                let left = self.hub.unsubscribe(&channel, &client);
                self.leave(&client, &channel, &namespace, info, left).await;
                reply.map_or(Outcome::Finished, Outcome::Replied)
            }
            Call::Presence { id, channel } => {
                let members = self.presence.members(&channel).await;
                replied(id, members.map(ReplyBody::Presence))
            }
            Call::PresenceStats { id, channel } => {
                let stats = self.presence.stats(&channel).await;
                replied(
                    id,
                    stats.map(|stats| ReplyBody::PresenceStats {
                        num_clients: stats.num_clients,
                        num_users: stats.num_users,
                    }),
                )
            }
            Call::History {
                id,
                channel,
                policy,
                range,
            } => {
                let page = self.broker.history(&channel, &policy, range).await;
                replied(
                    id,
                    page.map(|page| ReplyBody::History {
                        publications: page.publications,
                        epoch: page.top.epoch,
                        offset: page.top.offset,
                    }),
                )
            }
            Call::List {
                id,
                channel,
                query,
                newest_first,
            } => self.list(id, &channel, query, newest_first).await,
        };
        (outcome, None)
    }
}

fn rpc(answer: &impl Serialize) -> ReplyBody {
    match serde_json::to_vec(answer) {
        Ok(json) => ReplyBody::Rpc(Bytes::from(json)),
        Err(error) => {
            tracing::error!(%error, "an answer could not be written");
            ReplyBody::Error(ClientError::INTERNAL)
        }
    }
}

fn replied(id: u32, answer: Result<ReplyBody, BrokerError>) -> Outcome {
    let body = answer.unwrap_or_else(|error| ReplyBody::Error(client_error(&error)));
    Outcome::Replied(Reply { id, body })
}

/// Maps a broker's error to the protocol's.
pub(crate) fn client_error(error: &BrokerError) -> ClientError {
    match error {
        BrokerError::Unavailable(_) | BrokerError::Refused(_) => {
            tracing::debug!(%error, "broker call failed");
            ClientError::INTERNAL
        }
        BrokerError::Corrupt(_) | BrokerError::Incompatible(_) => {
            tracing::error!(%error, "broker holds a value that cannot be read");
            ClientError::INTERNAL
        }
        BrokerError::TooLarge => ClientError::LIMIT_EXCEEDED,
        BrokerError::KeyConflict => ClientError::CONFLICT,
        BrokerError::UnrecoverablePosition => ClientError::UNRECOVERABLE_POSITION,
    }
}
