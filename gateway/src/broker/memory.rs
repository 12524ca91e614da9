//! The broker of a node that is alone: everything in this process, nothing outlives it.
//!
//! A channel's lock is held from giving the offset to the end of its delivery. Order demands it:
//! released in between, the next publication could reach the sink first. The sink never waits and
//! never calls back, so the lock is short; it is the only one that is held while another is taken
//! (the outbox's, for a moment).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use parking_lot::Mutex;
use shared::ids::{ChannelName, Epoch, StreamPosition};
use shared::protocol::Publication;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::fingerprint::fingerprint;
use super::{
    Broker, BrokerError, BrokerMetrics, Deliver, Delivery, HistoryPage, HistoryPolicy,
    HistoryRange, NewPublication, OutboxEntry, Published, Signal,
};
use crate::control::Obeyer;
use crate::control::memory::MemoryControl;
use crate::outbox::{OutboxStats, OutboxStore, Settled};
use crate::parts::Parts;
use crate::presence::memory::MemoryPresence;

/// How often what has expired is removed.
const SWEEP: Duration = Duration::from_secs(1);
/// Entries the outbox may hold before durable publishes are refused.
const OUTBOX_ENTRIES_MAX: usize = 10_000;

/// Makes everything between nodes for a node that is alone.
pub fn parts(
    deliver: Arc<dyn Deliver>,
    obeyer: Obeyer,
    tasks: &TaskTracker,
    cancel: CancellationToken,
) -> Parts {
    let broker = Arc::new(MemoryBroker::new(deliver));
    let swept = Arc::clone(&broker);
    tasks.spawn(async move {
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(SWEEP) => swept.sweep(),
            }
        }
    });
    Parts {
        outbox: Arc::clone(&broker) as Arc<dyn OutboxStore>,
        broker,
        presence: Arc::new(MemoryPresence::default()),
        control: Arc::new(MemoryControl::new(obeyer)),
        metrics: BrokerMetrics::default(),
    }
}

/// The broker of one node.
pub struct MemoryBroker {
    deliver: Arc<dyn Deliver>,
    streams: Mutex<HashMap<ChannelName, Arc<Mutex<Stream>>>>,
    outbox: Mutex<Outbox>,
}

impl std::fmt::Debug for MemoryBroker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryBroker").finish_non_exhaustive()
    }
}

/// Entries by the order in which they came.
#[derive(Default)]
struct Outbox {
    last: u64,
    entries: BTreeMap<u64, (Instant, OutboxEntry)>,
}

/// One channel.
struct Stream {
    /// Epoch and top; `None` before the first history, and once it has expired.
    top: Option<StreamPosition>,
    kept: VecDeque<Arc<Publication>>,
    kept_until: Instant,
    meta_until: Instant,
    results: HashMap<Key, KnownResult>,
    /// The keys of `results` in the order in which they came, with the end of their time.
    result_ends: VecDeque<(Instant, Key)>,
    is_subscribed: bool,
    /// A position was given once, and its epoch has expired: subscribers must hear of it.
    has_lost_epoch: bool,
    /// Taken off the map: look again.
    is_removed: bool,
}

/// Scope and key.
type Key = Arc<(String, String)>;

/// What an idempotency key came to.
#[derive(Clone)]
struct KnownResult {
    until: Instant,
    payload: [u8; 16],
    published: Published,
}

/// What a key that is known means for a publish.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keys {
    /// The first result stands.
    Honoured,
    /// It stands only when it belongs to the current epoch.
    OfThisEpoch,
}

impl MemoryBroker {
    /// Makes an empty broker.
    pub fn new(deliver: Arc<dyn Deliver>) -> Self {
        Self {
            deliver,
            streams: Mutex::default(),
            outbox: Mutex::default(),
        }
    }

    /// Removes what has expired.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.streams.lock().retain(|_, stream| {
            // A stream that is in use can wait for the next round.
            let Some(mut stream) = stream.try_lock() else {
                return true;
            };
            stream.expire(now);
            stream.is_removed = stream.is_forgettable();
            !stream.is_removed
        });
    }

    /// Runs on a channel's stream; a stream that was swept meanwhile is looked up again.
    fn with<T>(&self, channel: &ChannelName, run: impl FnOnce(&mut Stream) -> T) -> T {
        loop {
            let stream = {
                let mut streams = self.streams.lock();
                Arc::clone(streams.entry(channel.clone()).or_default())
            };
            let mut stream = stream.lock();
            if !stream.is_removed {
                stream.expire(Instant::now());
                return run(&mut stream);
            }
        }
    }

    fn publish_to(
        &self,
        stream: &mut Stream,
        new: &NewPublication,
        keys: Keys,
    ) -> Result<Published, BrokerError> {
        if new.durable && new.history.is_none() {
            return Err(BrokerError::Refused("a durable channel needs history"));
        }
        let now = Instant::now();
        if let Some(policy) = &new.history {
            self.open(stream, &new.channel, policy, now);
        }
        if let Some(known) = stream.known(new, keys)? {
            return Ok(self.repeat(known));
        }
        if new.durable && self.outbox.lock().entries.len() >= OUTBOX_ENTRIES_MAX {
            return Err(BrokerError::Refused("the outbox is full"));
        }
        let position = new.history.as_ref().map(|policy| stream.next(policy, now));
        let publication = Arc::new(Publication {
            offset: position.as_ref().map_or(0, |position| position.offset),
            data: new.data.clone(),
            info: new.info.clone(),
            tags: new.tags.clone(),
            id: Some(new.id),
            published_at_ms: unix_ms(),
        });
        if let Some(policy) = &new.history {
            stream.keep(Arc::clone(&publication), policy);
        }
        let published = Published {
            id: new.id,
            published_at_ms: publication.published_at_ms,
            is_repeat: false,
            outbox: self.put_in_outbox(new, position.as_ref(), &publication),
            position,
        };
        stream.remember(new, &published, now);
        let epoch = published
            .position
            .as_ref()
            .map(|position| position.epoch.clone());
        self.hand_over(
            stream,
            &new.channel,
            Delivery::Publication { publication, epoch },
        );
        Ok(published)
    }

    /// Makes sure that the channel has an epoch.
    fn open(
        &self,
        stream: &mut Stream,
        channel: &ChannelName,
        policy: &HistoryPolicy,
        now: Instant,
    ) {
        stream.touch(policy, now);
        if std::mem::take(&mut stream.has_lost_epoch) {
            self.hand_over(stream, channel, Delivery::Lost);
        }
    }

    fn hand_over(&self, stream: &Stream, channel: &ChannelName, delivery: Delivery) {
        if stream.is_subscribed {
            self.deliver.deliver(vec![(channel.clone(), delivery)]);
        }
    }

    fn put_in_outbox(
        &self,
        new: &NewPublication,
        position: Option<&StreamPosition>,
        publication: &Arc<Publication>,
    ) -> Option<OutboxEntry> {
        let position = position.filter(|_| new.durable)?;
        let mut outbox = self.outbox.lock();
        outbox.last += 1;
        let number = outbox.last;
        let entry = OutboxEntry {
            entry_id: number.to_string(),
            partition: 0,
            epoch: position.epoch.clone(),
            channel: new.channel.clone(),
            publication: Arc::clone(publication),
        };
        outbox
            .entries
            .insert(number, (Instant::now(), entry.clone()));
        Some(entry)
    }

    fn repeat(&self, known: KnownResult) -> Published {
        let outbox = self.outbox.lock();
        let is_waiting = |entry: &OutboxEntry| outbox.entries.contains_key(&number_of(entry));
        Published {
            is_repeat: true,
            outbox: known.published.outbox.filter(is_waiting),
            ..known.published
        }
    }
}

impl Default for Stream {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            top: None,
            kept: VecDeque::new(),
            kept_until: now,
            meta_until: now,
            results: HashMap::new(),
            result_ends: VecDeque::new(),
            is_subscribed: false,
            has_lost_epoch: false,
            is_removed: false,
        }
    }
}

impl Stream {
    fn expire(&mut self, now: Instant) {
        if now >= self.kept_until {
            self.kept.clear();
        }
        if now >= self.meta_until && self.top.take().is_some() {
            self.kept.clear();
            self.has_lost_epoch = self.is_subscribed;
        }
        while let Some((until, key)) = self.result_ends.front() {
            if now < *until {
                break;
            }
            if self
                .results
                .get(key)
                .is_some_and(|known| known.until <= now)
            {
                self.results.remove(key);
            }
            self.result_ends.pop_front();
        }
    }

    fn is_forgettable(&self) -> bool {
        self.top.is_none() && self.results.is_empty() && !self.is_subscribed
    }

    /// Returns the position, made when there is none.
    fn touch(&mut self, policy: &HistoryPolicy, now: Instant) -> &mut StreamPosition {
        self.meta_until = now + policy.meta_ttl.max(policy.ttl);
        self.top.get_or_insert_with(|| StreamPosition {
            // Offsets of durable channels never restart: the clock is above all that was given.
            offset: if policy.durable { unix_us() } else { 0 },
            epoch: Epoch::random(),
        })
    }

    fn next(&mut self, policy: &HistoryPolicy, now: Instant) -> StreamPosition {
        self.kept_until = now + policy.ttl;
        let top = self.touch(policy, now);
        top.offset += 1;
        top.clone()
    }

    fn keep(&mut self, publication: Arc<Publication>, policy: &HistoryPolicy) {
        self.kept.push_back(publication);
        while self.kept.len() > policy.size {
            self.kept.pop_front();
        }
    }

    fn known(&self, new: &NewPublication, keys: Keys) -> Result<Option<KnownResult>, BrokerError> {
        let Some(asked) = &new.idempotency else {
            return Ok(None);
        };
        let key = (asked.scope.clone(), asked.key.clone());
        let known = self
            .results
            .get(&key)
            .filter(|known| Instant::now() < known.until);
        let is_of_this_epoch = |known: &&KnownResult| {
            let epoch = known
                .published
                .position
                .as_ref()
                .map(|position| &position.epoch);
            epoch == self.top.as_ref().map(|top| &top.epoch)
        };
        match known.filter(|known| keys == Keys::Honoured || is_of_this_epoch(known)) {
            Some(known) if known.payload != fingerprint(new) => Err(BrokerError::KeyConflict),
            known => Ok(known.cloned()),
        }
    }

    fn remember(&mut self, new: &NewPublication, published: &Published, now: Instant) {
        if let Some(asked) = &new.idempotency {
            let key: Key = Arc::new((asked.scope.clone(), asked.key.clone()));
            let known = KnownResult {
                until: now + asked.ttl,
                payload: fingerprint(new),
                published: published.clone(),
            };
            self.result_ends.push_back((known.until, Arc::clone(&key)));
            self.results.insert(key, known);
        }
    }

    fn page(&self, top: StreamPosition, range: &HistoryRange) -> Result<HistoryPage, BrokerError> {
        let since = range.since.as_ref();
        let is_other =
            |since: &StreamPosition| !since.epoch.as_str().is_empty() && since.epoch != top.epoch;
        if since.is_some_and(is_other) {
            return Err(BrokerError::UnrecoverablePosition);
        }
        let limit = range.limit.unwrap_or(usize::MAX);
        let publications = if range.reverse {
            let is_before =
                |p: &&Arc<Publication>| since.is_none_or(|since| p.offset < since.offset);
            self.kept
                .iter()
                .rev()
                .filter(is_before)
                .take(limit)
                .cloned()
                .collect()
        } else {
            let is_after =
                |p: &&Arc<Publication>| since.is_none_or(|since| p.offset > since.offset);
            self.kept
                .iter()
                .filter(is_after)
                .take(limit)
                .cloned()
                .collect()
        };
        Ok(HistoryPage { publications, top })
    }
}

#[async_trait]
impl Broker for MemoryBroker {
    async fn publish(&self, new: NewPublication) -> Result<Published, BrokerError> {
        self.with(&new.channel, |stream| {
            self.publish_to(stream, &new, Keys::Honoured)
        })
    }

    async fn history(
        &self,
        channel: &ChannelName,
        policy: &HistoryPolicy,
        range: HistoryRange,
    ) -> Result<HistoryPage, BrokerError> {
        self.with(channel, |stream| {
            let now = Instant::now();
            self.open(stream, channel, policy, now);
            let top = stream.touch(policy, now).clone();
            stream.page(top, &range)
        })
    }

    async fn history_remove(&self, channel: &ChannelName) -> Result<(), BrokerError> {
        self.with(channel, |stream| stream.kept.clear());
        Ok(())
    }

    async fn subscribe(
        &self,
        channel: &ChannelName,
        history: Option<&HistoryPolicy>,
    ) -> Result<(), BrokerError> {
        self.with(channel, |stream| {
            if let Some(policy) = history {
                stream.touch(policy, Instant::now());
            }
            stream.is_subscribed = true;
        });
        Ok(())
    }

    async fn unsubscribe(&self, channel: &ChannelName) -> Result<(), BrokerError> {
        self.with(channel, |stream| {
            stream.is_subscribed = false;
            stream.has_lost_epoch = false;
        });
        Ok(())
    }

    async fn signal(&self, channel: &ChannelName, signal: Signal) -> Result<(), BrokerError> {
        self.with(channel, |stream| {
            self.hand_over(stream, channel, Delivery::Signal(signal))
        });
        Ok(())
    }

    fn is_up(&self) -> bool {
        true
    }
}

#[async_trait]
impl OutboxStore for MemoryBroker {
    async fn settle(&self, entry: &OutboxEntry) -> Result<Settled, BrokerError> {
        self.outbox.lock().entries.remove(&number_of(entry));
        let is_current = self.with(&entry.channel, |stream| {
            stream
                .top
                .as_ref()
                .is_some_and(|top| top.epoch == entry.epoch)
        });
        Ok(if is_current {
            Settled::Current
        } else {
            Settled::Superseded
        })
    }

    async fn publish_again(&self, new: NewPublication) -> Result<Published, BrokerError> {
        self.with(&new.channel, |stream| {
            self.publish_to(stream, &new, Keys::OfThisEpoch)
        })
    }

    async fn leftovers(
        &self,
        age: Duration,
        limit: usize,
    ) -> Result<Vec<OutboxEntry>, BrokerError> {
        let outbox = self.outbox.lock();
        let old = outbox
            .entries
            .values()
            .filter(|(since, _)| since.elapsed() >= age);
        Ok(old.take(limit).map(|(_, entry)| entry.clone()).collect())
    }

    async fn stats(&self) -> Result<OutboxStats, BrokerError> {
        let outbox = self.outbox.lock();
        let oldest = outbox.entries.values().next();
        Ok(OutboxStats {
            pending: outbox.entries.len() as u64,
            age: oldest.map(|(since, _)| since.elapsed()).unwrap_or_default(),
        })
    }
}

/// The number that [`MemoryBroker::put_in_outbox`] wrote; 0, which none has, for a foreign id.
fn number_of(entry: &OutboxEntry) -> u64 {
    entry.entry_id.parse().unwrap_or_default()
}

fn unix_ms() -> u64 {
    u64::try_from(since_1970().as_millis()).unwrap_or(u64::MAX)
}

fn unix_us() -> u64 {
    u64::try_from(since_1970().as_micros()).unwrap_or(u64::MAX)
}

fn since_1970() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}
