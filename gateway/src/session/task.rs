//! Drives one session: all waiting happens here, `SessionState` only decides.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use shared::protocol::Disconnect;
use shared::protocol::reply::{PING_JSON, Push, Reply, push_json, reply_json};
use tokio::time::Instant;

use super::call::{Begun, Call, Outcome};
use super::send_queue::Signal;
use super::state::{Effect, SessionState};
use super::{Now, Services};
use crate::hub::Client;
use crate::metrics::{CodeLabel, NamespaceLabel, ResultLabel};
use crate::transport::frame;

/// How long the end of a session may take to tell broker and presence.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(5);

type CallFuture = Pin<Box<dyn Future<Output = (Outcome, Option<Begun>)> + Send>>;
type PublishFuture = Pin<Box<dyn Future<Output = (Reply, String, Instant)> + Send>>;

/// One session with what it waits for. Boxed futures exist only while something is under way:
/// an idle session holds none.
pub(crate) struct SessionTask {
    services: Arc<Services>,
    client: Arc<Client>,
    state: SessionState,
    call: Option<CallFuture>,
    /// Bounded by `commands_in_flight_max`: past it no frame is read.
    publishes: Option<Box<FuturesUnordered<PublishFuture>>>,
    is_draining: bool,
}

/// What a session waits for besides its transport.
pub(crate) enum Event {
    /// A call has its outcome.
    Done(Box<(Outcome, Option<Begun>)>),
    /// A publish is safe, or failed.
    Published(Reply, String, Instant),
    /// There may be signals.
    Woken,
}

impl SessionTask {
    pub(crate) fn new(services: Arc<Services>, client: Arc<Client>, now: Now) -> Self {
        let state = SessionState::new(Arc::clone(&services.rules), client.id, now);
        let task = Self {
            services,
            client,
            state,
            call: None,
            publishes: None,
            is_draining: false,
        };
        task.schedule(now);
        task
    }

    /// Returns the client's face to the rest of the node.
    pub(crate) fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// True when the transport may read another frame.
    pub(crate) fn may_read(&self) -> bool {
        self.state.may_read() && !self.is_draining
    }

    /// Takes a frame.
    ///
    /// # Errors
    /// The disconnect that ends the session.
    pub(crate) fn frame(&mut self, frame: &[u8]) -> Result<(), Disconnect> {
        let now = Now::read();
        let mut effects = Vec::new();
        self.state.frame(frame, now, &mut effects)?;
        self.apply(effects, now)
    }

    /// Waits for what is under way. Cancel safe: a future that is dropped here is polled again
    /// by the next call, and the wake-up stays until it is taken.
    pub(crate) async fn next(&mut self) -> Event {
        tokio::select! {
            (outcome, begun) = async {
                match &mut self.call {
                    Some(call) => call.await,
                    None => std::future::pending().await,
                }
            } => {
                self.call = None;
                Event::Done(Box::new((outcome, begun)))
            }
            Some((reply, namespace, since)) = async {
                match &mut self.publishes {
                    Some(publishes) => publishes.next().await,
                    None => std::future::pending().await,
                }
            } => Event::Published(reply, namespace, since),
            () = self.client.queue.woken() => Event::Woken,
        }
    }

    /// Takes what `next` brought.
    ///
    /// # Errors
    /// The disconnect that ends the session.
    pub(crate) fn take(&mut self, event: Event) -> Result<(), Disconnect> {
        let now = Now::read();
        let mut effects = Vec::new();
        match event {
            Event::Done(done) => {
                let (outcome, begun) = *done;
                self.begin_waiting(begun, now);
                self.state.done(outcome, now, &mut effects)?;
                // A new subscription may expire before anything else is due.
                self.schedule(now);
            }
            Event::Published(reply, namespace, since) => {
                if self
                    .publishes
                    .as_ref()
                    .is_some_and(|publishes| publishes.is_empty())
                {
                    self.publishes = None;
                }
                self.observe_publish(namespace, now.instant - since);
                self.state.published(reply, now, &mut effects)?;
            }
            Event::Woken => self.signals(now, &mut effects)?,
        }
        self.apply(effects, now)?;
        if self.is_draining && self.state.is_quiet() {
            return Err(Disconnect::SHUTDOWN);
        }
        Ok(())
    }

    /// Ends the session on the node: subscriptions, presence, registry.
    pub(crate) async fn end(mut self, disconnect: &Disconnect) {
        let metrics = &self.services.metrics;
        let code = u32::from(disconnect.code);
        metrics.disconnects.get_or_create(&CodeLabel { code }).inc();
        if !self.state.is_open() {
            metrics
                .connects
                .get_or_create(&ResultLabel { result: "refused" })
                .inc();
        }
        let clients = &self.services.hub.clients;
        clients.remove(self.state.user(), self.client.id);
        // A call that was under way may hold or await a lock that others want.
        self.call = None;
        self.publishes = None;
        // This node forgets the client at once, whatever the broker does meanwhile.
        let subscriptions = self.state.take_subscriptions();
        let subscriptions: Vec<_> = subscriptions
            .map(|(channel, namespace, info)| {
                let left = self.services.hub.unsubscribe(&channel, &self.client);
                (channel, namespace, info, left)
            })
            .collect();
        let told = async {
            for (channel, namespace, info, left) in subscriptions {
                self.services
                    .leave(&self.client, &channel, &namespace, info, left)
                    .await;
            }
        };
        if tokio::time::timeout(FAREWELL_TIMEOUT, told).await.is_err() {
            tracing::debug!(client = %self.client.id, "broker did not hear of a session's end in time");
        }
    }

    fn signals(&mut self, now: Now, effects: &mut Vec<Effect>) -> Result<(), Disconnect> {
        let (signals, is_due) = self.client.queue.take_signals();
        for signal in signals {
            match signal {
                Signal::Disconnect(disconnect) => return Err(disconnect),
                Signal::Unsubscribe(channel, end) => {
                    self.state.end_subscription(channel, end, now, effects)?;
                }
                Signal::UnsubscribeAll(end) => {
                    for channel in self.state.channels() {
                        self.state
                            .end_subscription(channel, end.clone(), now, effects)?;
                    }
                }
                Signal::Drain => self.is_draining = true,
            }
        }
        if is_due {
            self.state.tick(now, effects)?;
            self.schedule(now);
        }
        Ok(())
    }

    fn apply(&mut self, effects: Vec<Effect>, now: Now) -> Result<(), Disconnect> {
        let client = Arc::clone(&self.client);
        let queue = &client.queue;
        for effect in effects {
            match effect {
                Effect::Reply(reply) => queue.send(frame::text(|out| reply_json(out, &reply))),
                Effect::Ping => queue.send(frame::text(|out| out.extend_from_slice(PING_JSON))),
                Effect::Unsubscribed(channel, end) => queue.send(frame::text(|out| {
                    push_json(out, &channel, Push::Unsubscribe(&end));
                })),
                Effect::Connected(info) => {
                    self.services
                        .hub
                        .clients
                        .insert(&info.user, Arc::clone(&self.client));
                    let label = ResultLabel { result: "ok" };
                    self.services.metrics.connects.get_or_create(&label).inc();
                    self.schedule(now);
                }
                Effect::Call(call) => self.start(*call),
            }
        }
        Ok(())
    }

    fn start(&mut self, call: Call) {
        self.services.metrics.count_command(call.name());
        let services = Arc::clone(&self.services);
        let client = Arc::clone(&self.client);
        let user = self.state.user().cloned();
        self.call = Some(Box::pin(services.carry_out(client, user, call)));
    }

    fn begin_waiting(&mut self, begun: Option<Begun>, now: Now) {
        let Some(begun) = begun else {
            return;
        };
        let namespace = begun.namespace.clone();
        let publishes = self.publishes.get_or_insert_default();
        publishes.push(Box::pin(async move {
            (begun.finish().await, namespace, now.instant)
        }));
    }

    fn observe_publish(&self, namespace: String, took: Duration) {
        let histograms = &self.services.metrics.publish_seconds;
        let histogram = histograms.get_or_create(&NamespaceLabel { namespace });
        histogram.observe(took.as_secs_f64());
    }

    fn schedule(&self, now: Now) {
        let at = self.state.next_time(now);
        self.services.ticks.schedule(&self.client, at, now.instant);
    }
}
