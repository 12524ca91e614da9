//! A small client of the protocol: connects, subscribes, publishes, calls, recovers.
//!
//! [`Client`] is what a phone's SDK is: it keeps its subscriptions with their positions, comes
//! back through the next address after a loss, with jitter, and asks for what it missed. It has no
//! task and no queue of its own: whoever owns it waits in [`Client::next`], and TCP holds back a
//! server that is faster than its owner. [`Connection`] below it is one connection without memory,
//! for the measurements that hold ten thousand of them.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;
use tokio::time::{Instant, Sleep, sleep_until};

mod connection;
mod endpoint;
mod event;
mod frame;
mod handshake;
mod subscription;
mod token;
mod wire;

pub use connection::{Closed, Connection, OpenError, OpenOptions};
pub use endpoint::{Endpoint, EndpointError};
pub use event::{Event, Position, Publication};
pub use handshake::HandshakeError;
pub use token::TokenSigner;
pub use wire::{ErrorReply, Info};

pub(crate) use connection::parse as parse_reply;
pub(crate) use wire::{Request as WireRequest, SubscribeRequest};

use event::{publication_of, subscribed_of};
use subscription::{Subscription, SubscriptionState};
use wire::{Reply, Request};

/// What many clients have in common.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// The addresses; a client that lost one goes on with the next.
    pub endpoints: Vec<Endpoint>,
    /// How long opening a connection, or a subscribe, may take (the SDKs' 5 s).
    pub timeout: Duration,
    /// Shortest wait before coming back (the SDKs' 500 ms).
    pub backoff_min: Duration,
    /// Longest wait before coming back (the SDKs' 20 s).
    pub backoff_max: Duration,
}

impl ClientOptions {
    /// The usual options for these addresses.
    pub fn new(endpoints: Vec<Endpoint>) -> Self {
        Self {
            endpoints,
            timeout: Duration::from_secs(5),
            backoff_min: Duration::from_millis(200),
            backoff_max: Duration::from_secs(5),
        }
    }
}

/// A server is given up when it is silent for its ping interval and this (the SDKs' 10 s).
const PING_GRACE: Duration = Duration::from_secs(10);
/// A moment that never comes, for a timer with nothing to wait for.
const NEVER: Duration = Duration::from_secs(86_400);

/// One user's client.
pub struct Client {
    options: Arc<ClientOptions>,
    token: String,
    next_endpoint: usize,
    /// Tries since the last connection that opened.
    attempts: u32,
    link: Link,
    subscriptions: Vec<Subscription>,
    /// Bounded by what one read brings: it is emptied before the socket is read again.
    events: VecDeque<Event>,
    timer: Pin<Box<Sleep>>,
}

type Opening = Pin<Box<dyn Future<Output = Result<Connection, OpenError>> + Send>>;

enum Link {
    /// Waits in `timer` before the next try.
    Down,
    Opening(Opening),
    Open(Box<Connection>),
    /// The server said not to come back.
    Ended,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("is_connected", &self.is_connected())
            .field("subscriptions", &self.subscriptions)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Makes a client that begins with the address of the given number, as soon as
    /// [`Self::next`] is awaited.
    pub fn new(options: Arc<ClientOptions>, token: String, first_endpoint: usize) -> Self {
        Self {
            options,
            token,
            next_endpoint: first_endpoint,
            attempts: 0,
            link: Link::Down,
            subscriptions: Vec::new(),
            events: VecDeque::new(),
            timer: Box::pin(sleep_until(Instant::now())),
        }
    }

    /// Subscribes to a channel now and after every reconnect, with recovery where it can.
    pub fn subscribe(&mut self, channel: &str) {
        self.subscriptions.push(Subscription::new(channel));
        if self.is_connected() {
            self.send_subscribes();
        }
    }

    /// Where the client is in a channel it subscribed to.
    pub fn position(&self, channel: &str) -> Option<&Position> {
        let subscription = self
            .subscriptions
            .iter()
            .find(|subscription| &*subscription.channel == channel)?;
        subscription.position.as_ref()
    }

    /// True between [`Event::Connected`] and [`Event::Disconnected`].
    pub fn is_connected(&self) -> bool {
        matches!(self.link, Link::Open(_))
    }

    /// Sends an RPC; its [`Event::Reply`] has the id returned here. `None` while not connected.
    pub fn rpc(&mut self, method: &str, data: &RawValue) -> Option<u32> {
        self.send(Request::Rpc { method, data })
    }

    /// Publishes with the protocol's own command, which has no idempotency key.
    pub fn publish(&mut self, channel: &str, data: &RawValue) -> Option<u32> {
        self.send(Request::Publish { channel, data })
    }

    /// Asks for a channel's history; a `limit` of 0 asks for the position only.
    pub fn history(&mut self, channel: &str, limit: i32) -> Option<u32> {
        self.send(Request::History { channel, limit })
    }

    /// Asks who is on a channel.
    pub fn presence(&mut self, channel: &str) -> Option<u32> {
        self.send(Request::Presence { channel })
    }

    /// Leaves a channel.
    pub fn unsubscribe(&mut self, channel: &str) -> Option<u32> {
        self.subscriptions
            .retain(|subscription| &*subscription.channel != channel);
        self.send(Request::Unsubscribe { channel })
    }

    fn send(&mut self, request: Request<'_>) -> Option<u32> {
        let Link::Open(connection) = &mut self.link else {
            return None;
        };
        match connection.send(request) {
            Ok(id) => Some(id),
            Err(closed) => {
                self.lost(closed);
                None
            }
        }
    }

    /// Returns an event that has arrived already.
    pub fn buffered(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Waits for the next event; `None` when the server said not to come back.
    ///
    /// Cancel safe: what is half done stays in the client.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            match &mut self.link {
                Link::Ended => return None,
                Link::Down => {
                    self.timer.as_mut().await;
                    self.open();
                }
                Link::Opening(opening) => match opening.as_mut().await {
                    Ok(connection) => self.opened(connection),
                    Err(error) => self.not_opened(error),
                },
                Link::Open(connection) => {
                    let waited = tokio::select! {
                        waited = connection.wait() => Some(waited),
                        () = self.timer.as_mut() => None,
                    };
                    match waited {
                        Some(Ok(())) => self.take_messages(),
                        Some(Err(closed)) => self.lost(closed),
                        None => self.on_timer(),
                    }
                }
            }
        }
    }

    fn open(&mut self) {
        let endpoints = &self.options.endpoints;
        let Some(endpoint) = endpoints.get(self.next_endpoint % endpoints.len().max(1)) else {
            self.link = Link::Ended;
            return;
        };
        let endpoint = endpoint.clone();
        let options = OpenOptions {
            token: self.token.clone(),
            name: "loadtest",
            timeout: self.options.timeout,
            from: None,
        };
        self.link = Link::Opening(Box::pin(async move {
            Connection::open(&endpoint, &options).await
        }));
    }

    fn opened(&mut self, connection: Connection) {
        self.attempts = 0;
        self.events.push_back(Event::Connected {
            client: connection.client().to_owned(),
            endpoint: self.next_endpoint % self.options.endpoints.len().max(1),
        });
        self.link = Link::Open(Box::new(connection));
        self.send_subscribes();
    }

    fn not_opened(&mut self, error: OpenError) {
        let closed = match error {
            OpenError::Closed(closed) => closed,
            OpenError::Refused(error) => Closed {
                // SDKs give up on an error of `connect` unless it is temporary.
                code: if error.temporary { 0 } else { 3500 },
                reason: error.to_string(),
            },
            other => Closed::lost(other),
        };
        if closed.is_terminal() {
            self.lost(closed);
        } else {
            self.events.push_back(Event::ConnectFailed {
                reason: closed.reason,
            });
            self.back_off();
        }
    }

    /// The connection is gone: says so, and comes back through the next address unless told not
    /// to.
    fn lost(&mut self, closed: Closed) {
        for subscription in &mut self.subscriptions {
            subscription.state = SubscriptionState::Idle;
        }
        let is_terminal = closed.is_terminal();
        self.events.push_back(Event::Disconnected {
            code: closed.code,
            reason: closed.reason,
            is_terminal,
        });
        if is_terminal {
            self.link = Link::Ended;
        } else {
            self.back_off();
        }
    }

    /// Full jitter, as the SDKs do: `min(max, min + rand(0, min·2^n))`.
    fn back_off(&mut self) {
        let options = &self.options;
        let ceiling = options
            .backoff_min
            .saturating_mul(1 << self.attempts.min(10))
            .min(options.backoff_max);
        let wait = options.backoff_min + ceiling.mul_f64(rand::random::<f64>());
        let wait = wait.min(options.backoff_max);
        self.attempts += 1;
        self.next_endpoint += 1;
        self.link = Link::Down;
        self.timer.as_mut().reset(Instant::now() + wait);
    }

    fn take_messages(&mut self) {
        let Link::Open(connection) = &mut self.link else {
            return;
        };
        let subscriptions = &mut self.subscriptions;
        let events = &mut self.events;
        let taken = connection
            .take_messages(|message| handle(connection::parse(message)?, subscriptions, events));
        match taken {
            Err(closed) => self.lost(closed),
            Ok(_) => self.arm_timer(),
        }
    }

    fn send_subscribes(&mut self) {
        let Link::Open(connection) = &mut self.link else {
            return;
        };
        let now = Instant::now();
        let mut failure = None;
        for subscription in &mut self.subscriptions {
            if !subscription.is_due(now) {
                continue;
            }
            match connection.send(Request::Subscribe(subscription.request())) {
                Ok(id) => {
                    subscription.state = SubscriptionState::Asked {
                        id,
                        until: now + self.options.timeout,
                    };
                }
                Err(closed) => failure = Some(closed),
            }
        }
        match failure {
            Some(closed) => self.lost(closed),
            None => self.arm_timer(),
        }
    }

    fn on_timer(&mut self) {
        let now = Instant::now();
        let silent_since = self.silence_deadline();
        let has_overdue = self
            .subscriptions
            .iter()
            .any(|subscription| subscription.is_overdue(now));
        if silent_since.is_some_and(|deadline| deadline <= now) {
            self.lost(Closed::lost("no ping"));
        } else if has_overdue {
            // The SDKs drop the whole connection for it, too.
            self.lost(Closed::lost("subscribe was not answered in time"));
        } else {
            self.send_subscribes();
        }
    }

    fn silence_deadline(&self) -> Option<Instant> {
        let Link::Open(connection) = &self.link else {
            return None;
        };
        Some(connection.last_read() + connection.ping_interval()? + PING_GRACE)
    }

    /// Sets the timer to what comes first, unless it is set to an earlier moment already: an early
    /// tick is harmless and spares setting it again with every read.
    fn arm_timer(&mut self) {
        let now = Instant::now();
        let next = self
            .subscriptions
            .iter()
            .filter_map(Subscription::wakes_at)
            .chain(self.silence_deadline())
            .min()
            .unwrap_or(now + NEVER);
        let is_set = self.timer.deadline() > now && self.timer.deadline() <= next;
        if !is_set {
            self.timer.as_mut().reset(next);
        }
    }
}

/// Turns one message into events, and keeps the subscriptions' positions.
fn handle(
    reply: Reply<'_>,
    subscriptions: &mut [Subscription],
    events: &mut VecDeque<Event>,
) -> Result<(), Closed> {
    if let Some(push) = reply.push {
        if let Some(disconnect) = push.disconnect {
            return Err(Closed {
                code: disconnect.code,
                reason: disconnect.reason,
            });
        }
        let found = subscriptions
            .iter_mut()
            .find(|subscription| *subscription.channel == *push.channel);
        let Some(subscription) = found else {
            return Ok(());
        };
        if let Some(publication) = push.publication {
            events.push_back(publication_of(subscription, publication, false));
        }
        if let Some(unsubscribe) = push.unsubscribe {
            let comes_back = unsubscribe.code >= 2500;
            subscription.unsubscribed(comes_back);
            events.push_back(Event::Unsubscribed {
                channel: Arc::clone(&subscription.channel),
                code: unsubscribe.code,
                reason: unsubscribe.reason,
            });
        }
        return Ok(());
    }
    let asked = subscriptions
        .iter_mut()
        .find(|subscription| subscription.is_asked_with(reply.id));
    match (asked, reply.subscribe, reply.error) {
        (Some(subscription), Some(result), _) => subscribed_of(subscription, result, events),
        (Some(subscription), None, Some(error)) => {
            subscription.unsubscribed(error.temporary);
            events.push_back(Event::SubscribeFailed {
                channel: Arc::clone(&subscription.channel),
                error,
            });
        }
        (Some(_), None, None) => return Err(Closed::lost("empty reply to subscribe")),
        (None, _, Some(error)) => events.push_back(Event::Reply {
            id: reply.id,
            outcome: Err(error),
        }),
        (None, _, None) => {
            let result = reply
                .rpc
                .and_then(|rpc| rpc.data)
                .or(reply.publish)
                .or(reply.history)
                .or(reply.presence)
                .or(reply.unsubscribe);
            events.push_back(Event::Reply {
                id: reply.id,
                outcome: Ok(result.map(ToOwned::to_owned)),
            });
        }
    }
    Ok(())
}
