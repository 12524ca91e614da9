//! Step 3 of a message's life: what one client may do, and what follows from it.
//!
//! A pure state machine: commands, outcomes and the time go in, effects come out. It knows no
//! socket, no clock and no runtime. Commands are handled in order; one that needs the broker or
//! a store becomes a [`Call`], and the next command waits for its outcome. Only pongs never
//! wait, and a durable publish gives way as soon as its place in the stream is certain. The next
//! step is `command/publish.rs`.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use shared::ids::{ChannelName, ClientId, UserId};
use shared::protocol::command::{Command, Request, decode_json};
use shared::protocol::reply::{Expiry, Reply, ReplyBody};
use shared::protocol::{ClientError, ClientInfo, Disconnect, Unsubscribe};
use tokio::time::Instant;

use super::call::{Call, Outcome};
use super::{Now, Rules};
use crate::channel::{Asker, Namespace};

/// How long a connection whose `connect` was refused may stay to read the error.
const REFUSED_CLOSE_DELAY: Duration = Duration::from_secs(5);

/// What the task must do.
#[derive(Debug)]
pub(crate) enum Effect {
    /// Send a reply.
    Reply(Reply),
    /// Send a ping.
    Ping,
    /// Tell the client that a subscription has ended.
    Unsubscribed(ChannelName, Unsubscribe),
    /// Make the client known to the node.
    Connected(Arc<ClientInfo>),
    /// Call a service; its outcome comes back by [`SessionState::done`].
    Call(Box<Call>),
}

/// How far the session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Waiting for `connect`.
    New { since: Instant },
    /// `connect` waits for its server-side subscriptions.
    Connecting,
    /// Connected.
    Open,
    /// `connect` was answered with an error: nothing more is read.
    Refused { since: Instant },
}

/// One subscription of the session.
#[derive(Debug)]
pub(super) struct Subscription {
    pub(super) namespace: Arc<Namespace>,
    /// The client as others on this channel see it.
    pub(super) info: Arc<ClientInfo>,
    /// Unix seconds after which it must have been refreshed.
    pub(super) expire_at: Option<u64>,
    pub(super) is_server_side: bool,
}

/// What waits for its turn.
#[derive(Debug)]
enum Work {
    Command(Command),
    End(ChannelName, Unsubscribe),
}

/// One client's session.
#[derive(Debug)]
pub(crate) struct SessionState {
    pub(super) rules: Arc<Rules>,
    pub(super) client: ClientId,
    phase: Phase,
    /// The client as others see it; set by `connect`.
    pub(super) info: Option<Arc<ClientInfo>>,
    /// Unix seconds after which the connection must have been refreshed.
    pub(super) expire_at: Option<u64>,
    pub(super) subscriptions: HashMap<ChannelName, Subscription, RandomState>,
    /// Bounded: the task reads no frame while `may_read` is false, and a frame is bounded; each
    /// subscription ends once.
    waiting: VecDeque<Work>,
    is_busy: bool,
    publishes_in_flight: usize,
    next_ping: Option<Instant>,
    pong_due: Option<Instant>,
}

impl SessionState {
    pub(crate) fn new(rules: Arc<Rules>, client: ClientId, now: Now) -> Self {
        Self {
            rules,
            client,
            phase: Phase::New { since: now.instant },
            info: None,
            expire_at: None,
            subscriptions: HashMap::default(),
            waiting: VecDeque::new(),
            is_busy: false,
            publishes_in_flight: 0,
            next_ping: None,
            pong_due: None,
        }
    }

    /// Takes a frame.
    ///
    /// # Errors
    /// The disconnect that ends the session.
    pub(crate) fn frame(
        &mut self,
        frame: &[u8],
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Disconnect> {
        if matches!(self.phase, Phase::Refused { .. }) {
            return Ok(());
        }
        let commands = decode_json(frame).map_err(|error| {
            tracing::debug!(client = %self.client, %error, "malformed frame");
            Disconnect::BAD_REQUEST
        })?;
        for command in commands {
            match (command.id, &command.request) {
                (0, None) => self.pong()?,
                (0, Some(Request::Send)) => return Err(Disconnect::NOT_AVAILABLE),
                (0, Some(_)) | (_, None | Some(Request::Ping)) => {
                    return Err(Disconnect::BAD_REQUEST);
                }
                (_, Some(Request::Send)) => return Err(Disconnect::NOT_AVAILABLE),
                _ => self.waiting.push_back(Work::Command(command)),
            }
        }
        self.advance(now, effects)
    }

    /// Takes the outcome of a call.
    ///
    /// # Errors
    /// The disconnect that ends the session.
    pub(crate) fn done(
        &mut self,
        outcome: Outcome,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Disconnect> {
        self.is_busy = false;
        match outcome {
            Outcome::Replied(reply) => effects.push(Effect::Reply(reply)),
            Outcome::Finished => {}
            Outcome::PublishBegun => self.publishes_in_flight += 1,
            Outcome::Connected { left_out } => {
                for channel in left_out {
                    self.subscriptions.remove(&channel);
                }
                self.open(now, effects);
            }
            Outcome::SubscribeFailed { id, channel, error } => {
                self.subscriptions.remove(&channel);
                effects.push(Effect::Reply(error_reply(id, error)));
            }
            Outcome::ConnectFailed(disconnect) => return Err(disconnect),
        }
        self.advance(now, effects)
    }

    /// Takes the end of a publish that had begun.
    ///
    /// # Errors
    /// The disconnect that ends the session.
    pub(crate) fn published(
        &mut self,
        reply: Reply,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Disconnect> {
        self.publishes_in_flight -= 1;
        effects.push(Effect::Reply(reply));
        self.advance(now, effects)
    }

    /// Ends a subscription from the server's side.
    ///
    /// # Errors
    /// The disconnect that ends the session: server-side subscriptions end with it when the
    /// client would have to subscribe again.
    pub(crate) fn end_subscription(
        &mut self,
        channel: ChannelName,
        end: Unsubscribe,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Disconnect> {
        self.await_end(channel, end);
        self.advance(now, effects)
    }

    /// Looks at the times: ping, pong, expiry.
    ///
    /// # Errors
    /// The disconnect that ends the session.
    pub(crate) fn tick(&mut self, now: Now, effects: &mut Vec<Effect>) -> Result<(), Disconnect> {
        let client = &self.rules.client;
        let is_over = |since: Instant, delay| now.instant >= since + delay;
        match self.phase {
            Phase::New { since } if is_over(since, client.stale_close_delay) => {
                return Err(Disconnect::STALE);
            }
            Phase::Refused { since } if is_over(since, REFUSED_CLOSE_DELAY) => {
                return Err(Disconnect::STALE);
            }
            Phase::New { .. } | Phase::Refused { .. } | Phase::Connecting | Phase::Open => {}
        }
        if self.pong_due.is_some_and(|due| now.instant >= due) {
            return Err(Disconnect::NO_PONG);
        }
        if self.next_ping.is_some_and(|next| now.instant >= next) {
            effects.push(Effect::Ping);
            self.pong_due = Some(now.instant + client.pong_timeout);
            self.next_ping = Some(now.instant + client.ping_interval);
        }
        let close_at = self
            .expire_at
            .map(|at| at + client.expired_close_delay.as_secs());
        if close_at.is_some_and(|at| now.unix >= at) {
            return Err(Disconnect::EXPIRED);
        }
        for channel in self.expired_subscriptions(now) {
            self.await_end(channel, Unsubscribe::EXPIRED);
        }
        self.advance(now, effects)
    }

    /// Returns when `tick` must be called next.
    pub(crate) fn next_time(&self, now: Now) -> Instant {
        let client = &self.rules.client;
        let phase = match self.phase {
            Phase::New { since } => Some(since + client.stale_close_delay),
            Phase::Refused { since } => Some(since + REFUSED_CLOSE_DELAY),
            Phase::Connecting | Phase::Open => None,
        };
        let expiry = self
            .expire_at
            .map(|at| now.instant_of(at) + client.expired_close_delay);
        let subscriptions = self
            .subscriptions
            .values()
            .filter_map(|s| s.expire_at)
            .min();
        let subscription =
            subscriptions.map(|at| now.instant_of(at) + client.expired_sub_close_delay);
        [phase, self.next_ping, self.pong_due, expiry, subscription]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(now.instant + client.ping_interval)
    }

    /// True when another frame may be read: nothing piles up for a client that does not wait.
    pub(crate) fn may_read(&self) -> bool {
        let waiting = self.waiting.len() + self.publishes_in_flight;
        waiting < self.rules.client.commands_in_flight_max
    }

    /// True when no accepted command waits for its answer.
    pub(crate) fn is_quiet(&self) -> bool {
        !self.is_busy && self.publishes_in_flight == 0
    }

    /// True once `connect` has succeeded.
    pub(crate) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Returns the user, once it is known.
    pub(crate) fn user(&self) -> Option<&UserId> {
        self.info.as_ref().map(|info| &info.user)
    }

    /// Lists the channels the client is on.
    pub(crate) fn channels(&self) -> Vec<ChannelName> {
        self.subscriptions.keys().cloned().collect()
    }

    /// Takes the subscriptions, at the end.
    pub(crate) fn take_subscriptions(
        &mut self,
    ) -> impl Iterator<Item = (ChannelName, Arc<Namespace>, Arc<ClientInfo>)> + use<> {
        let all = std::mem::take(&mut self.subscriptions);
        all.into_iter()
            .map(|(channel, subscription)| (channel, subscription.namespace, subscription.info))
    }

    /// Opens the session without calls, or after them.
    pub(super) fn open(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.phase = Phase::Open;
        let interval = self.rules.client.ping_interval;
        // Spread over the second half of the interval, so that clients that came together are
        // not pinged together. The id is random already.
        let [.., low] = self.client.as_uuid().into_bytes();
        self.next_ping = Some(now.instant + interval / 2 + interval / 512 * u32::from(low));
        effects.extend(self.info.clone().map(Effect::Connected));
    }

    /// Answers `connect` with an error; nothing more is read.
    pub(super) fn refuse(
        &mut self,
        id: u32,
        error: ClientError,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        self.phase = Phase::Refused { since: now.instant };
        self.waiting.clear();
        effects.push(Effect::Reply(error_reply(id, error)));
    }

    /// Says that `connect` waits for calls.
    pub(super) fn connecting(&mut self) {
        self.phase = Phase::Connecting;
    }

    /// Begins a call; the next command waits for its outcome.
    pub(super) fn call(&mut self, call: Call, effects: &mut Vec<Effect>) {
        debug_assert!(!self.is_busy, "one call at a time");
        self.is_busy = true;
        effects.push(Effect::Call(Box::new(call)));
    }

    /// Returns who asks for something on a channel.
    pub(super) fn asker(&self, channel: &ChannelName) -> Option<Asker<'_>> {
        Some(Asker {
            user: self.user()?,
            is_subscribed: self.subscriptions.contains_key(channel),
        })
    }

    /// Returns the seconds that are left until a Unix second.
    pub(super) fn expiry(expire_at: Option<u64>, now: Now) -> Expiry {
        let ttl = expire_at.map(|at| at.saturating_sub(now.unix));
        Expiry {
            ttl: ttl.map(|ttl| u32::try_from(ttl).unwrap_or(u32::MAX)),
        }
    }

    /// Notes that a subscription must end, once: what waits stays bounded by what there is.
    fn await_end(&mut self, channel: ChannelName, end: Unsubscribe) {
        let is_waiting = |work: &Work| matches!(work, Work::End(other, _) if *other == channel);
        if self.subscriptions.contains_key(&channel) && !self.waiting.iter().any(is_waiting) {
            self.waiting.push_back(Work::End(channel, end));
        }
    }

    fn pong(&mut self) -> Result<(), Disconnect> {
        // Nobody asked: the peer does not speak the protocol.
        self.pong_due
            .take()
            .map(|_| ())
            .ok_or(Disconnect::BAD_REQUEST)
    }

    fn expired_subscriptions(&self, now: Now) -> Vec<ChannelName> {
        let delay = self.rules.client.expired_sub_close_delay.as_secs();
        let is_over = |s: &Subscription| s.expire_at.is_some_and(|at| now.unix >= at + delay);
        self.subscriptions
            .iter()
            .filter(|(_, subscription)| is_over(subscription))
            .map(|(channel, _)| channel.clone())
            .collect()
    }

    /// Handles what waits until a call must be waited for.
    fn advance(&mut self, now: Now, effects: &mut Vec<Effect>) -> Result<(), Disconnect> {
        while !self.is_busy
            && let Some(work) = self.waiting.pop_front()
        {
            match work {
                Work::Command(command) => self.command(command, now, effects)?,
                Work::End(channel, end) => self.end(channel, end, effects)?,
            }
        }
        if self.waiting.is_empty() {
            // An idle connection keeps no memory for a burst it once had.
            self.waiting = VecDeque::new();
        }
        Ok(())
    }

    fn command(
        &mut self,
        command: Command,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Disconnect> {
        let Command { id, request } = command;
        let Some(request) = request else {
            return Err(Disconnect::BAD_REQUEST);
        };
        match (self.phase, request) {
            (Phase::New { .. }, Request::Connect(request)) => {
                self.connect(id, request, now, effects)
            }
            (Phase::Open, request) => {
                let answered = self.open_command(id, request, now, effects)?;
                if let Err(error) = answered {
                    effects.push(Effect::Reply(error_reply(id, error)));
                }
                Ok(())
            }
            // Anything before `connect`, a second `connect`.
            (Phase::New { .. } | Phase::Connecting | Phase::Refused { .. }, _) => {
                Err(Disconnect::BAD_REQUEST)
            }
        }
    }

    /// Handles a command of an open session: an inner error is answered, an outer one ends it.
    fn open_command(
        &mut self,
        id: u32,
        request: Request,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> Result<Result<(), ClientError>, Disconnect> {
        match request {
            Request::Subscribe(request) => self.subscribe(id, &request, now, effects),
            Request::Refresh(request) => self.refresh(id, &request, now, effects),
            Request::SubRefresh(request) => self.sub_refresh(id, &request, now, effects),
            Request::Unsubscribe(request) => Ok(self.unsubscribe(id, &request, effects)),
            Request::Publish(request) => Ok(self.publish(id, request, effects)),
            Request::Presence(request) => Ok(self.presence(id, &request, effects)),
            Request::PresenceStats(request) => Ok(self.presence_stats(id, &request, effects)),
            Request::History(request) => Ok(self.history(id, request, effects)),
            Request::Rpc(request) => Ok(self.rpc(id, &request, effects)),
            Request::Connect(_) | Request::Ping | Request::Send => Err(Disconnect::BAD_REQUEST),
        }
    }

    fn end(
        &mut self,
        channel: ChannelName,
        end: Unsubscribe,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Disconnect> {
        let Some(subscription) = self.subscriptions.remove(&channel) else {
            return Ok(());
        };
        if subscription.is_server_side && end == Unsubscribe::INSUFFICIENT_STATE {
            self.subscriptions.insert(channel, subscription);
            return Err(Disconnect::INSUFFICIENT_STATE);
        }
        if subscription.is_server_side && end == Unsubscribe::EXPIRED {
            self.subscriptions.insert(channel, subscription);
            return Err(Disconnect::SUBSCRIPTION_EXPIRED);
        }
        effects.push(Effect::Unsubscribed(channel.clone(), end));
        let call = Call::Leave {
            reply: None,
            channel,
            namespace: subscription.namespace,
            info: subscription.info,
        };
        self.call(call, effects);
        Ok(())
    }
}

/// Builds the reply that carries an error.
pub(super) fn error_reply(id: u32, error: ClientError) -> Reply {
    Reply {
        id,
        body: ReplyBody::Error(error),
    }
}
