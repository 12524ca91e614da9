//! Step 6 of a message's life: every node hears the bell and hands what rang to its hub, in
//! order. The next step is `hub/fanout.rs`.
//!
//! One task owns all feeds. It never waits for Redis itself: subscribing, repairing and checking
//! are tasks whose results come back to it, so bells are always drained.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use shared::ids::{ChannelName, Epoch, StreamPosition};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::bell::{Bell, BellEvent, BellKeeper, Bells};
use super::feed::{Feed, Heard, State};
use super::history::{Page, history_call};
use super::keys::Keys;
use super::link::{Connector, Link, checked, command, missing_answer};
use super::reply::{self, Fields};
use super::scripts::Call;
use super::wire::Item;
use crate::broker::{BrokerError, BrokerMetrics, Deliver, Delivery, HistoryPolicy, HistoryRange};

/// Bells handed over in one batch at most.
const BATCH: usize = 1_024;
/// Subscribes and unsubscribes that may wait; more make the callers wait.
const REQUESTS: usize = 4_096;
/// Subscribes and unsubscribes sent in one go.
const JOINS: usize = 256;
/// Repairs under way at once; the others wait for their turn in a queue of feeds.
const REPAIRS: usize = 32;
/// Publications one repair reads at once.
const REPAIR_PAGE: usize = 256;
/// How soon a repair that failed is tried again.
const REPAIR_RETRY: Duration = Duration::from_millis(200);
/// Silence after which a channel's position is compared with its stream: a bell that got lost
/// without a broken connection is noticed within this and a tick.
const CHECK_AFTER: Duration = Duration::from_millis(1_500);
/// Positions compared in one go; a node with more channels than this a tick checks them in turn.
const CHECKS: usize = 4_096;
const TICK: Duration = Duration::from_millis(250);

/// The side of the reader that the broker calls.
pub(super) struct Subscriptions {
    requests: mpsc::Sender<Request>,
    timeout: Duration,
}

pub(super) enum Request {
    Subscribe {
        channel: ChannelName,
        policy: Option<HistoryPolicy>,
        answer: oneshot::Sender<Result<(), BrokerError>>,
    },
    Unsubscribe(ChannelName),
}

impl Subscriptions {
    pub(super) fn new(command_timeout: Duration) -> (Self, mpsc::Receiver<Request>) {
        let (requests, receiver) = mpsc::channel(REQUESTS);
        // Two commands, one after the other, and a moment for the queue.
        (
            Self {
                requests,
                timeout: command_timeout * 2 + TICK,
            },
            receiver,
        )
    }

    pub(super) async fn subscribe(
        &self,
        channel: &ChannelName,
        policy: Option<&HistoryPolicy>,
    ) -> Result<(), BrokerError> {
        let (answer, answered) = oneshot::channel();
        let request = Request::Subscribe {
            channel: channel.clone(),
            policy: policy.cloned(),
            answer,
        };
        let subscribed = async {
            self.requests.send(request).await.map_err(|_| stopped())?;
            answered.await.map_err(|_| stopped())?
        };
        match tokio::time::timeout(self.timeout, subscribed).await {
            Ok(subscribed) => subscribed,
            Err(error) => Err(BrokerError::Unavailable(error.into())),
        }
    }

    pub(super) async fn unsubscribe(&self, channel: &ChannelName) -> Result<(), BrokerError> {
        let sent = self.requests.send(Request::Unsubscribe(channel.clone()));
        match tokio::time::timeout(self.timeout, sent).await {
            Ok(sent) => sent.map_err(|_| stopped()),
            Err(error) => Err(BrokerError::Unavailable(error.into())),
        }
    }
}

fn stopped() -> BrokerError {
    BrokerError::Unavailable("the broker was stopped".into())
}

/// Follows this node's channels.
pub(super) struct Reader {
    keys: Keys,
    link: Link,
    deliver: Arc<dyn Deliver>,
    metrics: BrokerMetrics,
    is_up: Arc<AtomicBool>,
    requests: mpsc::Receiver<Request>,
    /// By the name of their bell.
    feeds: HashMap<Arc<str>, Feed>,
    last_serial: u64,
    connection: Option<(u64, MultiplexedConnection)>,
    bell_broken: Arc<Notify>,
    /// Bells to subscribe (where there is a feed) or to unsubscribe (where there is none).
    dirty: VecDeque<Arc<str>>,
    is_joining: bool,
    to_repair: VecDeque<Arc<str>>,
    repairs: usize,
    to_retry: Vec<(Instant, Arc<str>)>,
    /// When each feed's position is to be compared, soonest first.
    to_check: VecDeque<(Instant, Arc<str>, u64)>,
    is_checking: bool,
    work: JoinSet<Done>,
}

/// What a task of the reader came to.
enum Done {
    Joined {
        generation: u64,
        joined: Result<Vec<Joined>, BrokerError>,
    },
    Repaired {
        name: Arc<str>,
        serial: u64,
        page: Result<Page, BrokerError>,
    },
    Checked {
        started: Instant,
        checked: Result<Vec<Checked>, BrokerError>,
    },
}

/// A feed whose bell is subscribed, with the position read after that.
struct Joined {
    name: Arc<str>,
    serial: u64,
    position: Result<Option<(Epoch, u64)>, BrokerError>,
}

/// A feed's position in Redis; `None`: its epoch is over.
struct Checked {
    name: Arc<str>,
    serial: u64,
    position: Option<StreamPosition>,
}

impl Reader {
    pub(super) fn new(
        keys: Keys,
        link: Link,
        deliver: Arc<dyn Deliver>,
        metrics: BrokerMetrics,
        is_up: Arc<AtomicBool>,
        requests: mpsc::Receiver<Request>,
    ) -> Self {
        Self {
            keys,
            link,
            deliver,
            metrics,
            is_up,
            requests,
            feeds: HashMap::new(),
            last_serial: 0,
            connection: None,
            bell_broken: Arc::new(Notify::new()),
            dirty: VecDeque::new(),
            is_joining: false,
            to_repair: VecDeque::new(),
            repairs: 0,
            to_retry: Vec::new(),
            to_check: VecDeque::new(),
            is_checking: false,
            work: JoinSet::new(),
        }
    }

    /// Starts the reader and the keeper of its connection.
    pub(super) fn start(
        self,
        connector: Connector,
        tasks: &TaskTracker,
        cancel: &CancellationToken,
    ) {
        let (events, received) = mpsc::channel(4);
        let broken = Arc::clone(&self.bell_broken);
        let (keeper, bells) = BellKeeper::new(connector, events, broken);
        let stop = cancel.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = keeper.run() => {}
            }
        });
        let stop = cancel.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.run(bells, received) => {}
            }
        });
    }

    async fn run(mut self, mut bells: Bells, mut events: mpsc::Receiver<BellEvent>) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Vec::with_capacity(BATCH);
        loop {
            // Every branch is cancel safe: queues and the set of tasks keep what is not taken.
            tokio::select! {
                count = bells.hear(&mut heard, BATCH) => {
                    if count == 0 {
                        return;
                    }
                    self.hear(&mut heard);
                    if bells.has_dropped() {
                        self.check_all_now();
                    }
                }
                event = events.recv() => match event {
                    Some(BellEvent::Up { generation, connection }) => self.up(generation, connection),
                    Some(BellEvent::Down) => self.down(),
                    None => return,
                },
                request = self.requests.recv() => match request {
                    Some(request) => self.request(request),
                    None => return,
                },
                Some(done) = self.work.join_next() => match done {
                    Ok(done) => self.done(done),
                    Err(error) if error.is_cancelled() => {}
                    // A task that panicked took its slot with it: begin anew.
                    Err(error) => {
                        tracing::error!(%error, "a task of the broker's reader failed");
                        self.restart();
                    }
                },
                _ = ticks.tick() => self.tick(),
            }
            self.join_more();
            self.repair_more();
        }
    }

    /// Hands over what rang, in order, as one batch.
    fn hear(&mut self, heard: &mut Vec<Bell>) {
        let mut batch = Vec::with_capacity(heard.len());
        for bell in heard.drain(..) {
            let Some((name, feed)) = std::str::from_utf8(&bell.name)
                .ok()
                .and_then(|name| self.feeds.get_key_value(name))
                .map(|(name, _)| Arc::clone(name))
                .and_then(|name| self.feeds.get_mut(&name).map(|feed| (name, feed)))
            else {
                // Unsubscribed while it was on its way.
                continue;
            };
            let delivery = match Item::read(bell.item).and_then(Item::into_delivery) {
                Ok(Some(delivery)) => delivery,
                Ok(None) => continue,
                Err(error) => {
                    // With history the position check finds what was meant.
                    tracing::error!(channel = %feed.channel, %error, "bell cannot be read");
                    continue;
                }
            };
            let decided = match &delivery {
                Delivery::Publication { publication, epoch } => {
                    feed.hear(epoch.as_ref(), publication.offset)
                }
                Delivery::Signal(_) | Delivery::Lost => Heard::Next,
            };
            match decided {
                Heard::Next => batch.push((feed.channel.clone(), delivery)),
                Heard::Skip => {}
                Heard::Missing(reason) => self.want_repair(&name, reason),
            }
        }
        if !batch.is_empty() {
            self.deliver.deliver(batch);
        }
    }

    fn request(&mut self, request: Request) {
        match request {
            Request::Subscribe {
                channel,
                policy,
                answer,
            } => self.subscribe(channel, policy, answer),
            Request::Unsubscribe(channel) => {
                let name = self.keys.bell(&channel);
                if let Some((name, _)) = self.feeds.remove_entry(name.as_str()) {
                    self.dirty.push_back(name);
                }
            }
        }
    }

    fn subscribe(
        &mut self,
        channel: ChannelName,
        policy: Option<HistoryPolicy>,
        answer: oneshot::Sender<Result<(), BrokerError>>,
    ) {
        let name = self.keys.bell(&channel);
        if let Some(feed) = self.feeds.get_mut(name.as_str()) {
            let has_no_position = policy.is_some() && feed.last.is_none();
            feed.policy = policy;
            if feed.state == State::Joining || has_no_position {
                feed.wait(answer);
            } else {
                // The caller may have gone: the feed stays until it is unsubscribed.
                drop(answer.send(Ok(())));
                return;
            }
            if feed.state != State::Joining {
                feed.state = State::Joining;
                self.dirty.push_back(name.into());
            }
            return;
        }
        self.last_serial += 1;
        let mut feed = Feed::new(channel, policy, self.last_serial);
        feed.wait(answer);
        let name: Arc<str> = name.into();
        self.feeds.insert(Arc::clone(&name), feed);
        self.dirty.push_back(name);
    }

    fn up(&mut self, generation: u64, connection: MultiplexedConnection) {
        self.connection = Some((generation, connection));
        // What was under way on the old connection is answered for another generation.
        self.is_joining = false;
        self.dirty.clear();
        for (name, feed) in &mut self.feeds {
            feed.state = State::Joining;
            self.dirty.push_back(Arc::clone(name));
        }
        self.is_up.store(true, Ordering::Relaxed);
    }

    fn down(&mut self) {
        self.connection = None;
        self.is_up.store(false, Ordering::Relaxed);
    }

    fn restart(&mut self) {
        self.work.abort_all();
        self.is_joining = false;
        self.is_checking = false;
        self.repairs = 0;
        self.bell_broken.notify_one();
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Joined { generation, joined } => {
                let is_current = self
                    .connection
                    .as_ref()
                    .is_some_and(|(current, _)| *current == generation);
                if !is_current {
                    return;
                }
                self.is_joining = false;
                match joined {
                    Ok(joined) => joined.into_iter().for_each(|joined| self.joined(joined)),
                    Err(error) => {
                        tracing::warn!(%error, "bells could not be subscribed");
                        self.bell_broken.notify_one();
                    }
                }
            }
            Done::Repaired { name, serial, page } => {
                self.repairs = self.repairs.saturating_sub(1);
                self.repaired(&name, serial, page);
            }
            Done::Checked { started, checked } => {
                self.is_checking = false;
                // Unreachable now: the next round asks again.
                for checked in checked.unwrap_or_default() {
                    self.checked(started, &checked);
                }
            }
        }
    }

    fn joined(&mut self, joined: Joined) {
        let Some(feed) = self.feeds.get_mut(&joined.name) else {
            return;
        };
        if feed.serial != joined.serial {
            return;
        }
        let reason = match joined.position {
            Ok(Some((epoch, top))) => feed.joined(&epoch, top),
            Ok(None) => {
                feed.state = State::Live;
                None
            }
            Err(error) => return self.join_failed(&joined.name, error),
        };
        feed.answer(|| Ok(()));
        if !feed.is_wanted {
            // Everybody who asked has given up, and nobody will unsubscribe.
            self.feeds.remove(&joined.name);
            self.dirty.push_back(joined.name);
            return;
        }
        if feed.policy.is_some() && !std::mem::replace(&mut feed.is_checked, true) {
            let at = Instant::now() + CHECK_AFTER;
            self.to_check
                .push_back((at, Arc::clone(&joined.name), joined.serial));
        }
        if let Some(reason) = reason {
            self.want_repair(&joined.name, reason);
        }
    }

    /// A feed's position could not be read.
    fn join_failed(&mut self, name: &Arc<str>, error: BrokerError) {
        let Some(feed) = self.feeds.get_mut(name) else {
            return;
        };
        tracing::warn!(channel = %feed.channel, %error, "position could not be read");
        let error = Arc::new(error);
        feed.answer(|| Err(BrokerError::Unavailable(Box::new(Arc::clone(&error)))));
        if feed.last.is_some() {
            // It was followed before: its repair is tried until it succeeds.
            feed.state = State::Live;
            self.want_repair(name, "reconnect");
        } else {
            self.feeds.remove(name);
            self.dirty.push_back(Arc::clone(name));
        }
    }

    fn repaired(&mut self, name: &Arc<str>, serial: u64, page: Result<Page, BrokerError>) {
        let Some(feed) = self
            .feeds
            .get_mut(name)
            .filter(|feed| feed.serial == serial)
        else {
            return;
        };
        let page = match page {
            Ok(page) => page,
            Err(error) => {
                tracing::debug!(channel = %feed.channel, %error, "repair failed, trying again");
                self.to_retry
                    .push((Instant::now() + REPAIR_RETRY, Arc::clone(name)));
                return;
            }
        };
        let was_joining = feed.state == State::Joining;
        let repaired = feed.repaired(page);
        if was_joining {
            feed.state = State::Joining;
        }
        let channel = feed.channel.clone();
        if repaired.again && !was_joining {
            feed.state = State::Repairing;
            self.to_repair.push_back(Arc::clone(name));
        }
        if repaired.has_new_epoch {
            self.metrics.epoch_changes.inc();
            tracing::info!(%channel, "channel has a new epoch");
        }
        if !repaired.deliveries.is_empty() {
            let deliveries = repaired.deliveries.into_iter();
            self.deliver.deliver(
                deliveries
                    .map(|delivery| (channel.clone(), delivery))
                    .collect(),
            );
        }
    }

    fn checked(&mut self, started: Instant, checked: &Checked) {
        let Some(feed) = self.feeds.get(&checked.name) else {
            return;
        };
        // What was heard since may be what the position counts.
        let is_comparable =
            feed.serial == checked.serial && feed.state == State::Live && feed.heard < started;
        if is_comparable && feed.last != checked.position {
            self.want_repair(&checked.name, "position_check");
        }
    }

    fn want_repair(&mut self, name: &Arc<str>, reason: &'static str) {
        if let Some(feed) = self.feeds.get_mut(name)
            && feed.state == State::Live
        {
            feed.state = State::Repairing;
            self.metrics.repaired(reason);
            tracing::debug!(channel = %feed.channel, reason, "repairing");
            self.to_repair.push_back(Arc::clone(name));
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        for (at, name) in std::mem::take(&mut self.to_retry) {
            if at <= now {
                self.to_repair.push_back(name);
            } else {
                self.to_retry.push((at, name));
            }
        }
        self.check_more(now);
    }

    fn check_all_now(&mut self) {
        tracing::warn!("bells came faster than they could be delivered: comparing all positions");
        let now = Instant::now();
        for (at, ..) in &mut self.to_check {
            *at = now;
        }
        for feed in self.feeds.values_mut() {
            feed.heard = now.checked_sub(CHECK_AFTER).unwrap_or(feed.heard);
        }
    }

    /// Subscribes and unsubscribes bells, one batch at a time: a bell's last word wins.
    fn join_more(&mut self) {
        let Some((generation, connection)) = self.connection.clone() else {
            return;
        };
        if self.is_joining || self.dirty.is_empty() {
            return;
        }
        self.is_joining = true;
        let count = self.dirty.len().min(JOINS);
        let names: Vec<Arc<str>> = self.dirty.drain(..count).collect();
        let batch = names
            .into_iter()
            .map(|name| {
                let wanted = self.feeds.get(&name).map(|feed| Wanted {
                    serial: feed.serial,
                    read: feed
                        .policy
                        .as_ref()
                        .map(|policy| self.position_call(feed, policy)),
                });
                (name, wanted)
            })
            .collect();
        let link = self.link.clone();
        self.work.spawn(async move {
            Done::Joined {
                generation,
                joined: join(connection, link, batch).await,
            }
        });
    }

    fn position_call(&self, feed: &Feed, policy: &HistoryPolicy) -> Call {
        let range = HistoryRange {
            since: None,
            limit: Some(0),
            reverse: false,
        };
        history_call(self.keys, &feed.channel, policy, &range)
    }

    fn repair_more(&mut self) {
        while self.repairs < REPAIRS {
            let Some(name) = self.to_repair.pop_front() else {
                return;
            };
            let Some(feed) = self.feeds.get(&name) else {
                continue;
            };
            let (Some(policy), Some(since)) = (feed.policy.clone(), feed.last.clone()) else {
                continue;
            };
            self.repairs += 1;
            let (link, keys) = (self.link.clone(), self.keys);
            let (channel, serial) = (feed.channel.clone(), feed.serial);
            self.work.spawn(async move {
                let page = read_missing(&link, keys, &channel, &policy, since).await;
                Done::Repaired { name, serial, page }
            });
        }
    }

    /// Compares positions of channels that have been silent for a while.
    fn check_more(&mut self, now: Instant) {
        if self.is_checking {
            return;
        }
        let mut batch = Vec::new();
        while batch.len() < CHECKS
            && let Some((at, name, serial)) = self.to_check.pop_front_if(|(at, ..)| *at <= now)
        {
            debug_assert!(at <= now, "only what is due is taken");
            let Some(feed) = self.feeds.get(&name).filter(|feed| feed.serial == serial) else {
                continue;
            };
            if feed.heard + CHECK_AFTER > now {
                self.to_check
                    .push_back((feed.heard + CHECK_AFTER, name, serial));
                continue;
            }
            let mut read = command("HMGET");
            read.arg(self.keys.meta(&feed.channel))
                .arg(&["epoch", "top", "replid"]);
            batch.push((Arc::clone(&name), serial, Call::from(read)));
            self.to_check.push_back((now + CHECK_AFTER, name, serial));
        }
        if batch.is_empty() {
            return;
        }
        self.is_checking = true;
        let link = self.link.clone();
        self.work.spawn(async move {
            let started = Instant::now();
            Done::Checked {
                started,
                checked: check(&link, batch).await,
            }
        });
    }
}

/// A bell to subscribe, and how to read its channel's position.
struct Wanted {
    serial: u64,
    read: Option<Call>,
}

/// Subscribes and unsubscribes bells, then reads the positions of the subscribed ones: what is
/// accepted after that rings.
async fn join(
    mut connection: MultiplexedConnection,
    link: Link,
    batch: Vec<(Arc<str>, Option<Wanted>)>,
) -> Result<Vec<Joined>, BrokerError> {
    let mut pipeline = redis::pipe();
    for (name, wanted) in &batch {
        let mut change = command(if wanted.is_some() {
            "SSUBSCRIBE"
        } else {
            "SUNSUBSCRIBE"
        });
        change.arg(&**name);
        pipeline.add_command(change);
    }
    let answers = connection
        .send_packed_commands(&pipeline, 0, batch.len())
        .await
        .map_err(|error| BrokerError::Unavailable(error.into()))?;
    if answers.len() != batch.len() {
        return Err(missing_answer());
    }
    let mut joined = Vec::new();
    let mut reads = Vec::new();
    let mut readers = Vec::new();
    for ((name, wanted), answer) in batch.into_iter().zip(answers) {
        let Some(Wanted { serial, read }) = wanted else {
            continue;
        };
        let position = checked(answer).map(|_| None);
        if let (Ok(_), Some(read)) = (&position, read) {
            readers.push(joined.len());
            reads.push(read);
        }
        joined.push(Joined {
            name,
            serial,
            position,
        });
    }
    for (i, answer) in readers.into_iter().zip(link.call_all(&reads).await?) {
        let page = answer.and_then(Page::read);
        joined[i].position = page.map(|page| Some((page.epoch, page.top)));
    }
    Ok(joined)
}

/// Reads what follows on a position; from the beginning of its epoch when the position's is over.
async fn read_missing(
    link: &Link,
    keys: Keys,
    channel: &ChannelName,
    policy: &HistoryPolicy,
    since: StreamPosition,
) -> Result<Page, BrokerError> {
    let read = async |since: StreamPosition| {
        let range = HistoryRange {
            since: Some(since),
            limit: Some(REPAIR_PAGE),
            reverse: false,
        };
        Page::read(
            link.call(history_call(keys, channel, policy, &range))
                .await?,
        )
    };
    let page = read(since.clone()).await?;
    if page.epoch == since.epoch {
        return Ok(page);
    }
    read(StreamPosition {
        offset: page.base,
        epoch: page.epoch,
    })
    .await
}

/// Reads positions as Redis has them, without touching them.
async fn check(
    link: &Link,
    batch: Vec<(Arc<str>, u64, Call)>,
) -> Result<Vec<Checked>, BrokerError> {
    let mut info = command("INFO");
    info.arg("replication");
    let mut calls: Vec<Call> = vec![info.into()];
    let mut names = Vec::with_capacity(batch.len());
    for (name, serial, call) in batch {
        calls.push(call);
        names.push((name, serial));
    }
    let mut answers = link.call_all(&calls).await?.into_iter();
    let info = super::info_text(answers.next().unwrap_or_else(|| Err(missing_answer()))?)?;
    let replid = info
        .lines()
        .find_map(|line| line.strip_prefix("master_replid:"))
        .map(str::trim);
    let mut checked = Vec::with_capacity(names.len());
    for ((name, serial), answer) in names.into_iter().zip(answers) {
        let mut fields = Fields::of(answer?)?;
        let (epoch, top) = (fields.value()?, fields.value()?);
        let stored = reply::text(fields.value()?).ok();
        let position = match (reply::text(epoch), reply::number(top)) {
            (Ok(epoch), Ok(offset)) if stored.as_deref() == replid => Some(StreamPosition {
                offset,
                epoch: epoch.into(),
            }),
            _ => None,
        };
        checked.push(Checked {
            name,
            serial,
            position,
        });
    }
    Ok(checked)
}
