//! Putting a client on a channel, with what it missed, and taking it off.

use std::sync::Arc;

use shared::ids::{ChannelName, StreamPosition};
use shared::protocol::reply::{
    ConnectResult, Expiry, Reply, ReplyBody, SubscribeResult, reply_json,
};
use shared::protocol::{ClientError, ClientInfo, Disconnect, Unsubscribe};

use super::{Join, Outcome, client_error};
use crate::broker::{
    BrokerError, HistoryPage, HistoryPolicy, HistoryRange, Signal as ChannelSignal,
};
use crate::channel::Namespace;
use crate::hub::{Client, Left};
use crate::metrics::RecoveryLabel;
use crate::session::send_queue::Signal;
use crate::session::{Services, recovery};
use crate::transport::frame;

impl Services {
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

    pub(super) async fn connect(
        &self,
        client: &Arc<Client>,
        id: u32,
        mut result: ConnectResult,
        joins: Vec<Join>,
    ) -> Outcome {
        let mut entered = Vec::with_capacity(joins.len());
        let mut left_out = Vec::new();
        // Known to the node before it is asked whether the user is a member: who is removed after
        // the answer is taken off the channel like anybody else.
        if let Some(join) = joins.first() {
            let user = &join.info.user;
            self.hub.clients.insert(user, Arc::clone(client));
        }
        for join in joins {
            match self.may_read(&join.channel, Some(&join.info.user)).await {
                Ok(()) => {}
                Err(error) if error.temporary => {
                    return Outcome::ConnectFailed(Disconnect::SERVER_ERROR);
                }
                // The token may be older than the removal: the rest of it is good.
                Err(_) => {
                    left_out.push(join.channel);
                    continue;
                }
            }
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
        Outcome::Connected { left_out }
    }

    pub(super) async fn subscribe(
        &self,
        client: &Arc<Client>,
        id: u32,
        expiry: Expiry,
        join: Join,
    ) -> Outcome {
        if let Err(error) = self.may_read(&join.channel, Some(&join.info.user)).await {
            let channel = join.channel;
            return Outcome::SubscribeFailed { id, channel, error };
        }
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
                HistoryPage {
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
}

fn send(client: &Client, reply: &Reply) {
    client.queue.send(frame::text(|out| reply_json(out, reply)));
}
