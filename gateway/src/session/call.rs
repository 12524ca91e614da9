//! What a session asks of the broker, presence and the archive: carried out here, one at a time.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;
use shared::events::{EventClientInfo, PublicationEvent};
use shared::ids::{ChannelName, StreamPosition};
use shared::protocol::reply::{
    ConnectResult, Expiry, Reply, ReplyBody, SubscribeResult, reply_json,
};
use shared::protocol::{ClientError, ClientInfo, Disconnect, Tags, Unsubscribe};
use store::archive::PageQuery;

use super::Services;
use super::recovery;
use super::send_queue::Signal;
use super::state::error_reply;
use crate::broker::{
    BrokerError, HistoryPolicy, HistoryRange, NewPublication, Published, Signal as ChannelSignal,
};
use crate::channel::Namespace;
use crate::hub::{Client, Left};
use crate::metrics::RecoveryLabel;
use crate::outbox::PendingPublish;
use crate::transport::frame;

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

/// How a publish is answered.
#[derive(Debug)]
pub(crate) enum Answer {
    /// By this reply.
    Fixed(Reply),
    /// By an RPC result that says where the message is.
    Position,
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

/// A publish that has its place in the stream and waits to be safe.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) id: u32,
    pub(crate) namespace: String,
    pub(crate) pending: PendingPublish,
    pub(crate) answer: Answer,
}

impl Begun {
    /// Waits until the publication is safe; the reply for its command.
    pub(crate) async fn finish(self) -> Reply {
        match self.pending.finish().await {
            Ok(published) => self.answer.reply(self.id, &published),
            Err(error) => error_reply(self.id, client_error(&error)),
        }
    }
}

impl Answer {
    fn reply(self, id: u32, published: &Published) -> Reply {
        match self {
            Self::Fixed(reply) => reply,
            Self::Position => {
                let body = rpc(&SentMessage {
                    id: published.id.to_string(),
                    epoch: published.position.as_ref().map_or("", |p| p.epoch.as_str()),
                    offset: published.position.as_ref().map_or(0, |p| p.offset),
                    time: published.published_at_ms,
                });
                Reply { id, body }
            }
        }
    }
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

    /// Tells presence and the others of a client that was taken off a channel.
    pub(crate) async fn leave(
        &self,
        client: &Arc<Client>,
        channel: &ChannelName,
        namespace: &Namespace,
        info: Arc<ClientInfo>,
        left: Left,
    ) {
        if !namespace.options.presence && !namespace.options.join_leave {
            return;
        }
        let was_there = if namespace.options.presence {
            self.presence.remove(channel, client.id).await
        } else {
            Ok(true)
        };
        let told = match was_there {
            Ok(true) if namespace.options.join_leave && left == Left::WasLive => {
                self.broker
                    .signal(channel, ChannelSignal::Leave(info))
                    .await
            }
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = told {
            // The node's presence lease cleans up what could not be removed here.
            tracing::debug!(client = %client.id, %channel, %error, "leave could not be told");
        }
    }

    async fn publish(
        &self,
        id: u32,
        publication: NewPublication,
        answer: Answer,
    ) -> (Outcome, Option<Begun>) {
        let namespace = namespace_of(&self.rules, &publication.channel);
        match self.publisher.begin(publication).await {
            Ok(pending) => {
                let begun = Begun {
                    id,
                    namespace,
                    pending,
                    answer,
                };
                (Outcome::PublishBegun, Some(begun))
            }
            Err(error) => (
                Outcome::Replied(error_reply(id, client_error(&error))),
                None,
            ),
        }
    }

    async fn connect(
        &self,
        client: &Arc<Client>,
        id: u32,
        mut result: ConnectResult,
        joins: Vec<Join>,
    ) -> Outcome {
        let mut entered = Vec::with_capacity(joins.len());
        for join in joins {
            match self.enter(client, &join).await {
                Ok(subscribed) => {
                    result.subs.push((join.channel.clone(), subscribed));
                    entered.push(join);
                }
                Err(error) if error.temporary => {
                    return Outcome::ConnectFailed(Disconnect::SERVER_ERROR);
                }
                Err(_) => return Outcome::ConnectFailed(Disconnect::INSUFFICIENT_STATE),
            }
        }
        let results: Vec<SubscribeResult> = result.subs.iter().map(|(_, r)| r.clone()).collect();
        send(
            client,
            &Reply {
                id,
                body: ReplyBody::Connect(result),
            },
        );
        for (join, result) in entered.into_iter().zip(&results) {
            self.live(client, join, result).await;
        }
        Outcome::Connected
    }

    async fn subscribe(
        &self,
        client: &Arc<Client>,
        id: u32,
        expiry: Expiry,
        join: Join,
    ) -> Outcome {
        match self.enter(client, &join).await {
            Ok(result) => {
                let result = SubscribeResult { expiry, ..result };
                // The reply goes first, what was kept meanwhile after it, then what is live.
                let body = ReplyBody::Subscribe(result.clone());
                send(client, &Reply { id, body });
                self.live(client, join, &result).await;
                Outcome::Finished
            }
            Err(error) => {
                let left = self.hub.unsubscribe(&join.channel, client);
                let info = Arc::clone(&join.info);
                self.leave(client, &join.channel, &join.namespace, info, left)
                    .await;
                let channel = join.channel;
                Outcome::SubscribeFailed { id, channel, error }
            }
        }
    }

    /// Puts a client on a channel, still without live publications: what is its past?
    async fn enter(
        &self,
        client: &Arc<Client>,
        join: &Join,
    ) -> Result<SubscribeResult, ClientError> {
        let Join {
            channel, namespace, ..
        } = join;
        self.hub
            .subscribe(channel, namespace, client, join.wants_signals)
            .await
            .map_err(|error| client_error(&error))?;
        if namespace.options.presence {
            let added = self.presence.add(channel, Arc::clone(&join.info)).await;
            added.map_err(|error| client_error(&error))?;
        }
        let (Some(policy), true) = (&namespace.history, join.is_positioned) else {
            return Ok(SubscribeResult::default());
        };
        let result = SubscribeResult {
            recoverable: join.is_recoverable,
            positioned: true,
            was_recovering: join.recover.is_some(),
            ..SubscribeResult::default()
        };
        let Some(since) = &join.recover else {
            let top = self.top(channel, policy).await?;
            return Ok(SubscribeResult {
                epoch: Some(top.epoch),
                offset: top.offset,
                ..result
            });
        };
        self.recover(join, policy, since, result).await
    }

    async fn recover(
        &self,
        join: &Join,
        policy: &HistoryPolicy,
        since: &StreamPosition,
        result: SubscribeResult,
    ) -> Result<SubscribeResult, ClientError> {
        let range = HistoryRange {
            since: Some(since.clone()),
            limit: Some(self.rules.client.recovery_max_publication_limit),
            reverse: false,
        };
        let page = match self.broker.history(&join.channel, policy, range).await {
            Ok(page) => page,
            Err(BrokerError::UnrecoverablePosition) => {
                let top = self.top(&join.channel, policy).await?;
                crate::broker::HistoryPage {
                    publications: Vec::new(),
                    top,
                }
            }
            Err(error) => return Err(client_error(&error)),
        };
        let epoch = page.top.epoch.clone();
        let recovery = recovery::decide(since, page, policy.durable);
        let label = RecoveryLabel {
            result: if recovery.recovered {
                "recovered"
            } else {
                "unrecovered"
            },
            source: "history",
        };
        self.metrics.recoveries.get_or_create(&label).inc();
        if join.is_strict && !recovery.recovered {
            return Err(ClientError::UNRECOVERABLE_POSITION);
        }
        Ok(SubscribeResult {
            epoch: Some(epoch),
            publications: recovery.publications,
            recovered: recovery.recovered,
            offset: recovery.offset,
            ..result
        })
    }

    /// Begins to hand publications on, after the reply is queued.
    async fn live(&self, client: &Arc<Client>, join: Join, result: &SubscribeResult) {
        // The client stands at the last publication it was given.
        let last = result
            .publications
            .last()
            .map_or(result.offset, |last| last.offset);
        let after = result.epoch.clone().map(|epoch| StreamPosition {
            offset: last,
            epoch,
        });
        if self
            .hub
            .go_live(&join.channel, client, after.as_ref())
            .is_err()
        {
            self.metrics.insufficient_state.inc();
            client.queue.signal(Signal::Unsubscribe(
                join.channel.clone(),
                Unsubscribe::INSUFFICIENT_STATE,
            ));
        }
        if join.namespace.options.join_leave {
            let signal = ChannelSignal::Join(join.info);
            if let Err(error) = self.broker.signal(&join.channel, signal).await {
                tracing::debug!(client = %client.id, channel = %join.channel, %error, "join could not be told");
            }
        }
    }

    async fn top(
        &self,
        channel: &ChannelName,
        policy: &HistoryPolicy,
    ) -> Result<StreamPosition, ClientError> {
        let range = HistoryRange {
            since: None,
            limit: Some(0),
            reverse: false,
        };
        let page = self.broker.history(channel, policy, range).await;
        page.map(|page| page.top)
            .map_err(|error| client_error(&error))
    }

    async fn list(
        &self,
        id: u32,
        channel: &ChannelName,
        query: PageQuery,
        newest_first: bool,
    ) -> Outcome {
        let Some(archive) = &self.archive else {
            return Outcome::Replied(error_reply(id, ClientError::NOT_AVAILABLE));
        };
        let is_reversed = query.reverse;
        match archive.page(channel, query).await {
            Ok(mut events) => {
                if is_reversed != newest_first {
                    events.reverse();
                }
                let messages = events.iter().map(ListedMessage::from).collect();
                let body = rpc(&ListedMessages { messages });
                Outcome::Replied(Reply { id, body })
            }
            Err(error) => {
                tracing::warn!(%channel, %error, "archive could not be read");
                Outcome::Replied(error_reply(id, ClientError::INTERNAL))
            }
        }
    }
}

/// The answer of `message.send`.
#[derive(Debug, Serialize)]
struct SentMessage<'a> {
    id: String,
    epoch: &'a str,
    offset: u64,
    /// Unix milliseconds.
    time: u64,
}

/// The answer of `message.list`.
#[derive(Debug, Serialize)]
struct ListedMessages<'a> {
    messages: Vec<ListedMessage<'a>>,
}

#[derive(Debug, Serialize)]
struct ListedMessage<'a> {
    id: String,
    epoch: &'a str,
    offset: u64,
    user: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    info: Option<&'a EventClientInfo>,
    data: &'a RawValue,
    #[serde(skip_serializing_if = "Tags::is_empty")]
    tags: &'a Tags,
    /// Unix milliseconds.
    time: u64,
}

impl<'a> From<&'a PublicationEvent> for ListedMessage<'a> {
    fn from(event: &'a PublicationEvent) -> Self {
        Self {
            id: event.id.to_string(),
            epoch: event.epoch.as_str(),
            offset: event.offset,
            user: &event.user,
            info: event.info.as_ref(),
            data: &event.data,
            tags: &event.tags,
            time: event.published_at_ms,
        }
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

fn send(client: &Client, reply: &Reply) {
    client.queue.send(frame::text(|out| reply_json(out, reply)));
}

fn namespace_of(rules: &super::Rules, channel: &ChannelName) -> String {
    let found = rules.channels.resolve(channel.as_str());
    found.map_or_else(|_| String::new(), |(_, namespace)| namespace.name.clone())
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
