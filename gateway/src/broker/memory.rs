//! The broker of one node: everything in this process, nothing outlives it.
//!
//! A channel's lock is held from giving the offset to the delivery, so that the hub sees every
//! channel in offset order; the hub never waits and never calls back. Outbox entries wait in
//! memory for their relay to the job log: a crash between the two loses what was not yet
//! acknowledged, as it loses the history.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use shared::ids::{ChannelName, Epoch, MessageId, StreamPosition};
use shared::protocol::Publication;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{
    Broker, BrokerError, Deliver, Delivery, HistoryPage, HistoryPolicy, HistoryRange,
    NewPublication, OutboxEntry, Published, Signal,
};
use crate::control::Obeyer;
use crate::outbox::{OutboxStats, OutboxStore, Settled};
use crate::parts::Parts;

/// How often what has expired is removed.
const SWEEP: Duration = Duration::from_secs(1);

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
        presence: Arc::new(crate::presence::memory::MemoryPresence::default()),
        control: Arc::new(crate::control::memory::MemoryControl::new(obeyer)),
    }
}

/// The broker of one node.
pub struct MemoryBroker {
    deliver: Arc<dyn Deliver>,
    streams: Mutex<HashMap<ChannelName, Arc<Mutex<Stream>>>>,
    outbox: Mutex<HashMap<String, (Instant, OutboxEntry)>>,
}

impl std::fmt::Debug for MemoryBroker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryBroker").finish_non_exhaustive()
    }
}

/// One channel.
#[derive(Debug)]
struct Stream {
    /// Epoch and top; `None` without history.
    top: Option<StreamPosition>,
    kept: VecDeque<Arc<Publication>>,
    kept_until: Instant,
    meta_until: Instant,
    results: HashMap<(String, String), KnownResult>,
    is_removed: bool,
}

/// What an idempotency key came to.
#[derive(Debug, Clone)]
struct KnownResult {
    until: Instant,
    data: Bytes,
    published: Published,
    outbox_id: Option<String>,
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

    fn stream(&self, channel: &ChannelName) -> Arc<Mutex<Stream>> {
        let mut streams = self.streams.lock();
        let stream = streams.entry(channel.clone()).or_insert_with(|| {
            let now = Instant::now();
            Arc::new(Mutex::new(Stream {
                top: None,
                kept: VecDeque::new(),
                kept_until: now,
                meta_until: now,
                results: HashMap::new(),
                is_removed: false,
            }))
        });
        Arc::clone(stream)
    }

    /// Runs on a channel's stream; a stream that was swept meanwhile is looked up again.
    fn with<T>(&self, channel: &ChannelName, mut run: impl FnMut(&mut Stream) -> T) -> T {
        loop {
            let stream = self.stream(channel);
            let mut stream = stream.lock();
            if !stream.is_removed {
                return run(&mut stream);
            }
        }
    }

    fn sweep(&self) {
        let now = Instant::now();
        self.streams.lock().retain(|_, stream| {
            // A stream that is in use is not expired.
            let Some(mut stream) = stream.try_lock() else {
                return true;
            };
            stream.expire(now);
            stream.is_removed = stream.top.is_none() && stream.results.is_empty();
            !stream.is_removed
        });
    }

    fn publish_to(
        &self,
        stream: &mut Stream,
        new: &NewPublication,
    ) -> Result<Published, BrokerError> {
        let now = Instant::now();
        stream.expire(now);
        if let Some(known) = stream.known(new)? {
            return Ok(self.repeat(known));
        }
        let position = new.history.as_ref().map(|policy| stream.next(policy, now));
        let publication = Arc::new(Publication {
            offset: position.as_ref().map_or(0, |position| position.offset),
            data: new.data.clone(),
            info: new.info.clone(),
            tags: new.tags.clone(),
            id: new.durable.then_some(new.id),
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
        let delivery = Delivery::Publication { publication, epoch };
        self.deliver.deliver(vec![(new.channel.clone(), delivery)]);
        Ok(published)
    }

    fn put_in_outbox(
        &self,
        new: &NewPublication,
        position: Option<&StreamPosition>,
        publication: &Arc<Publication>,
    ) -> Option<OutboxEntry> {
        let position = position.filter(|_| new.durable)?;
        let entry = OutboxEntry {
            entry_id: format!("{}-{}", publication.published_at_ms, MessageId::now()),
            partition: 0,
            epoch: position.epoch.clone(),
            channel: new.channel.clone(),
            publication: Arc::clone(publication),
        };
        let place = (Instant::now(), entry.clone());
        self.outbox.lock().insert(entry.entry_id.clone(), place);
        Some(entry)
    }

    fn repeat(&self, known: KnownResult) -> Published {
        let outbox = self.outbox.lock();
        let waiting = known.outbox_id.and_then(|id| outbox.get(&id));
        Published {
            is_repeat: true,
            outbox: waiting.map(|(_, entry)| entry.clone()),
            ..known.published
        }
    }
}

impl Stream {
    fn expire(&mut self, now: Instant) {
        if now >= self.kept_until {
            self.kept.clear();
        }
        if now >= self.meta_until {
            self.top = None;
            self.kept.clear();
        }
        self.results.retain(|_, known| now < known.until);
    }

    /// Returns the position, made when there is none.
    fn touch(&mut self, policy: &HistoryPolicy, now: Instant) -> &mut StreamPosition {
        self.meta_until = now + policy.meta_ttl;
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

    fn known(&self, new: &NewPublication) -> Result<Option<KnownResult>, BrokerError> {
        let Some(key) = &new.idempotency else {
            return Ok(None);
        };
        match self.results.get(&(key.scope.clone(), key.key.clone())) {
            Some(known) if known.data != new.data => Err(BrokerError::KeyConflict),
            known => Ok(known.cloned()),
        }
    }

    fn remember(&mut self, new: &NewPublication, published: &Published, now: Instant) {
        if let Some(key) = &new.idempotency {
            let known = KnownResult {
                until: now + key.ttl,
                data: new.data.clone(),
                outbox_id: published
                    .outbox
                    .as_ref()
                    .map(|entry| entry.entry_id.clone()),
                published: published.clone(),
            };
            self.results
                .insert((key.scope.clone(), key.key.clone()), known);
        }
    }

    fn page(&self, top: StreamPosition, range: &HistoryRange) -> Result<HistoryPage, BrokerError> {
        let since = range.since.as_ref();
        let is_other =
            since.is_some_and(|since| !since.epoch.as_str().is_empty() && since.epoch != top.epoch);
        if is_other {
            return Err(BrokerError::UnrecoverablePosition);
        }
        let limit = range.limit.unwrap_or(usize::MAX);
        let publications = if range.reverse {
            let below = |p: &&Arc<Publication>| since.is_none_or(|since| p.offset < since.offset);
            self.kept
                .iter()
                .rev()
                .filter(below)
                .take(limit)
                .cloned()
                .collect()
        } else {
            let above = |p: &&Arc<Publication>| since.is_none_or(|since| p.offset > since.offset);
            self.kept
                .iter()
                .filter(above)
                .take(limit)
                .cloned()
                .collect()
        };
        Ok(HistoryPage { publications, top })
    }
}

#[async_trait]
impl Broker for MemoryBroker {
    async fn publish(&self, publication: NewPublication) -> Result<Published, BrokerError> {
        self.with(&publication.channel, |stream| {
            self.publish_to(stream, &publication)
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
            stream.expire(now);
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
        _channel: &ChannelName,
        _history: Option<&HistoryPolicy>,
    ) -> Result<(), BrokerError> {
        // Everything is delivered to the one node there is; the hub drops what nobody wants.
        Ok(())
    }

    async fn unsubscribe(&self, _channel: &ChannelName) -> Result<(), BrokerError> {
        Ok(())
    }

    async fn signal(&self, channel: &ChannelName, signal: Signal) -> Result<(), BrokerError> {
        self.deliver
            .deliver(vec![(channel.clone(), Delivery::Signal(signal))]);
        Ok(())
    }

    fn is_up(&self) -> bool {
        true
    }
}

#[async_trait]
impl OutboxStore for MemoryBroker {
    async fn settle(&self, entry: &OutboxEntry) -> Result<Settled, BrokerError> {
        self.outbox.lock().remove(&entry.entry_id);
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

    async fn leftovers(
        &self,
        age: Duration,
        limit: usize,
    ) -> Result<Vec<OutboxEntry>, BrokerError> {
        let outbox = self.outbox.lock();
        let mut old: Vec<_> = outbox
            .values()
            .filter(|(since, _)| since.elapsed() >= age)
            .collect();
        old.sort_by_key(|(since, _)| *since);
        Ok(old
            .into_iter()
            .take(limit)
            .map(|(_, entry)| entry.clone())
            .collect())
    }

    async fn stats(&self) -> Result<OutboxStats, BrokerError> {
        let outbox = self.outbox.lock();
        let oldest = outbox.values().map(|(since, _)| since.elapsed()).max();
        Ok(OutboxStats {
            pending: outbox.len() as u64,
            age: oldest.unwrap_or_default(),
        })
    }
}

fn unix_ms() -> u64 {
    u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX)
}

fn unix_us() -> u64 {
    u64::try_from(since_epoch().as_micros()).unwrap_or(u64::MAX)
}

fn since_epoch() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}
