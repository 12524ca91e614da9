//! `subscribe` and `unsubscribe`: may the client be on the channel, and with what.

use std::sync::Arc;

use shared::ids::{ChannelName, StreamPosition};
use shared::protocol::command::{ChannelRequest, SubscribeRequest};
use shared::protocol::reply::{Reply, ReplyBody};
use shared::protocol::{ClientError, ClientInfo, Disconnect};

use crate::auth::{SubscriptionToken, TokenError};
use crate::channel::{Action, Asker, Namespace};
use crate::session::Now;
use crate::session::call::{Call, Join};
use crate::session::state::{Effect, SessionState, Subscription};

/// The only delta format there is; it is not granted, but asking for it is no error.
const DELTA_FOSSIL: &str = "fossil";
/// Asks for error 112 instead of `recovered: false`.
const FLAG_STRICT_RECOVERY: i64 = 2;

impl SessionState {
    pub(in crate::session) fn subscribe(
        &mut self,
        id: u32,
        request: &SubscribeRequest,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> Result<Result<(), ClientError>, Disconnect> {
        if !request.delta.is_empty() && request.delta != DELTA_FOSSIL {
            return Err(Disconnect::BAD_REQUEST);
        }
        let (channel, namespace) = match self.subscribable(request) {
            Ok(found) => found,
            Err(error) => return Ok(Err(error)),
        };
        let token = match self.subscription_token(&channel, &namespace, &request.token, now)? {
            Ok(token) => token,
            Err(error) => return Ok(Err(error)),
        };
        Ok(self
            .join(channel, namespace, request, token, false)
            .map(|join| {
                let expiry = self
                    .subscriptions
                    .get(&join.channel)
                    .and_then(|s| s.expire_at);
                let expiry = Self::expiry(expiry, now);
                self.call(Call::Subscribe { id, expiry, join }, effects);
            }))
    }

    /// Makes the subscription, still without its channel's past.
    pub(super) fn join(
        &mut self,
        channel: ChannelName,
        namespace: Arc<Namespace>,
        request: &SubscribeRequest,
        token: Option<SubscriptionToken>,
        is_server_side: bool,
    ) -> Result<Join, ClientError> {
        let client = self.info.clone().ok_or(ClientError::UNAUTHORIZED)?;
        let asker = Asker {
            user: &client.user,
            is_subscribed: true,
        };
        let options = &namespace.options;
        let may = |action| self.rules.channels.may(action, &namespace, asker).is_ok();
        let has_history = namespace.history.is_some();
        let may_recover = options.allow_recovery || may(Action::History);
        let may_position = options.allow_positioning || may(Action::History);
        let is_recoverable =
            has_history && (options.force_recovery || (request.recoverable && may_recover));
        let is_positioned = has_history
            && (is_recoverable
                || options.force_positioning
                || (request.positioned && may_position));
        let wants_signals = options.force_push_join_leave
            || (options.join_leave && request.join_leave && may(Action::Presence));
        let (chan_info, expire_at) =
            token.map_or((None, None), |token| (token.info, token.expire_at));
        let info = match chan_info {
            Some(chan_info) => Arc::new(ClientInfo {
                chan_info: Some(chan_info),
                ..ClientInfo::clone(&client)
            }),
            None => client,
        };
        self.subscriptions.insert(
            channel.clone(),
            Subscription {
                namespace: Arc::clone(&namespace),
                info: Arc::clone(&info),
                expire_at,
                is_server_side,
            },
        );
        Ok(Join {
            channel,
            namespace,
            info,
            is_recoverable,
            is_positioned,
            wants_signals,
            recover: (request.recover && is_recoverable).then(|| StreamPosition {
                offset: request.offset,
                epoch: request.epoch.as_str().into(),
            }),
            is_strict: request.flag & FLAG_STRICT_RECOVERY != 0,
        })
    }

    pub(in crate::session) fn unsubscribe(
        &mut self,
        id: u32,
        request: &ChannelRequest,
        effects: &mut Vec<Effect>,
    ) -> Result<(), ClientError> {
        let reply = Reply {
            id,
            body: ReplyBody::Unsubscribe,
        };
        let (channel, _) = self.rules.channels.resolve(&request.channel)?;
        match self.subscriptions.remove(&channel) {
            Some(subscription) => self.call(
                Call::Leave {
                    reply: Some(reply),
                    channel,
                    namespace: subscription.namespace,
                    info: subscription.info,
                },
                effects,
            ),
            // Being off the channel is what was asked for.
            None => effects.push(Effect::Reply(reply)),
        }
        Ok(())
    }

    fn subscribable(
        &self,
        request: &SubscribeRequest,
    ) -> Result<(ChannelName, Arc<Namespace>), ClientError> {
        let found = self.rules.channels.resolve(&request.channel)?;
        if request.kind != 0 {
            return Err(ClientError::NOT_AVAILABLE);
        }
        if self.subscriptions.contains_key(&found.0) {
            return Err(ClientError::ALREADY_SUBSCRIBED);
        }
        if self.subscriptions.len() >= self.rules.client.channel_limit {
            return Err(ClientError::LIMIT_EXCEEDED);
        }
        Ok(found)
    }

    /// Decides by the token where there is one, else by the rules. A token that names somebody
    /// or something else ends the connection: the application mixes tokens up.
    fn subscription_token(
        &self,
        channel: &ChannelName,
        namespace: &Namespace,
        token: &str,
        now: Now,
    ) -> Result<Result<Option<SubscriptionToken>, ClientError>, Disconnect> {
        let Some(user) = self.user() else {
            return Err(Disconnect::BAD_REQUEST);
        };
        if token.is_empty() {
            let allowed = self.rules.channels.may_subscribe(channel, namespace, user);
            return Ok(allowed.map(|()| None));
        }
        let token = match self.rules.verifier.subscription(token, now.unix) {
            Ok(token) => token,
            Err(TokenError::Expired) => return Ok(Err(ClientError::TOKEN_EXPIRED)),
            Err(TokenError::Invalid) => return Ok(Err(ClientError::PERMISSION_DENIED)),
        };
        if !self.is_ours(&token, channel) {
            return Err(Disconnect::INVALID_TOKEN);
        }
        if token.expire_at.is_some_and(|at| at <= now.unix) {
            return Ok(Err(ClientError::EXPIRED));
        }
        Ok(Ok(Some(token)))
    }

    /// True when a subscription token is for this channel, user and connection.
    pub(super) fn is_ours(&self, token: &SubscriptionToken, channel: &ChannelName) -> bool {
        let is_bound_elsewhere = token
            .client
            .as_ref()
            .is_some_and(|client| *client != self.client.to_string());
        token.channel == channel.as_str()
            && self.user().is_some_and(|user| user.as_str() == token.user)
            && !is_bound_elsewhere
    }
}
