//! What a session asks of the broker, presence and the archive: carried out here, one at a time.
//!
//! `subscribe` puts a client on channels and takes it off, `publish` publishes, `rpc` hands the
//! chat part's methods on.

mod publish;
mod rpc;
mod subscribe;

use std::sync::Arc;

use bytes::Bytes;
use shared::ids::{ChannelName, StreamPosition, UserId};
use shared::protocol::reply::{ConnectResult, Expiry, Reply, ReplyBody};
use shared::protocol::{ClientError, ClientInfo, Disconnect};

use super::Services;
use super::state::error_reply;
use crate::broker::{BrokerError, HistoryPolicy, HistoryRange, NewPublication};
use crate::channel::Namespace;
use crate::chat::Caller;
use crate::chat::operation::Operation;
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
    /// Publish, then send the reply.
    Publish {
        publication: NewPublication,
        reply: Reply,
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
    /// Do what the chat part offers.
    Rpc {
        id: u32,
        operation: &'static Operation,
        caller: Caller,
        request: Bytes,
    },
}

impl Call {
    /// Returns the command's name, for the metric.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "connect",
            Self::Subscribe { .. } => "subscribe",
            Self::Leave { .. } => "unsubscribe",
            Self::Publish { .. } => "publish",
            Self::Rpc { .. } => "rpc",
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
    Connected {
        /// Channels of the token that the user is no member of.
        left_out: Vec<ChannelName>,
    },
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
        user: Option<UserId>,
        call: Call,
    ) -> (Outcome, Option<Begun>) {
        let outcome = match call {
            Call::Publish { publication, reply } => {
                let may = self.may_write(&publication.channel, user.as_ref()).await;
                return match may {
                    Ok(()) => {
                        self.publish(reply.id, publication, Answer::Fixed(reply))
                            .await
                    }
                    Err(error) => (Outcome::Replied(error_reply(reply.id, error)), None),
                };
            }
            Call::Rpc {
                id,
                operation,
                caller,
                request,
            } => return self.rpc(id, operation, caller, request).await,
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
                let members = self.presence.members(&channel);
                let members = self.for_member(&channel, user.as_ref(), members).await;
                replied(id, members.map(ReplyBody::Presence))
            }
            Call::PresenceStats { id, channel } => {
                let stats = self.presence.stats(&channel);
                let stats = self.for_member(&channel, user.as_ref(), stats).await;
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
                let page = self.broker.history(&channel, &policy, range);
                let page = self.for_member(&channel, user.as_ref(), page).await;
                replied(
                    id,
                    page.map(|page| ReplyBody::History {
                        publications: page.publications,
                        epoch: page.top.epoch,
                        offset: page.top.offset,
                    }),
                )
            }
        };
        (outcome, None)
    }

    /// Reads from a channel, unless the user must be a member of it and is none.
    async fn for_member<T>(
        &self,
        channel: &ChannelName,
        user: Option<&UserId>,
        read: impl Future<Output = Result<T, BrokerError>>,
    ) -> Result<T, ClientError> {
        self.may_read(channel, user).await?;
        read.await.map_err(|error| client_error(&error))
    }

    async fn may_read(
        &self,
        channel: &ChannelName,
        user: Option<&UserId>,
    ) -> Result<(), ClientError> {
        let (_, namespace) = self.rules.channels.resolve(channel.as_str())?;
        if !self.rules.channels.needs_membership(&namespace) {
            return Ok(());
        }
        let user = user.ok_or(ClientError::UNAUTHORIZED)?;
        self.chat.memberships.may_read(channel, user).await
    }

    async fn may_write(
        &self,
        channel: &ChannelName,
        user: Option<&UserId>,
    ) -> Result<(), ClientError> {
        let (_, namespace) = self.rules.channels.resolve(channel.as_str())?;
        if !self.rules.channels.needs_membership(&namespace) {
            return Ok(());
        }
        let user = user.ok_or(ClientError::UNAUTHORIZED)?;
        self.chat.memberships.may_write(channel, user).await
    }
}

fn replied(id: u32, answer: Result<ReplyBody, ClientError>) -> Outcome {
    let body = answer.unwrap_or_else(ReplyBody::Error);
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
