//! One channel on this node: who is on it, and at which stage of subscribing.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use foldhash::fast::RandomState;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use shared::ids::{ChannelName, ClientId, Epoch, StreamPosition};
use shared::protocol::reply::{Push, push_json};
use shared::protocol::{ClientInfo, Publication, Unsubscribe};

use super::clients::Client;
use crate::broker::Signal;
use crate::session::send_queue::{Pushed, Signal as SessionSignal};
use crate::transport::frame;

/// Bytes kept for a client that is still subscribing. When it is full the subscription fails
/// (insufficient state) and the client subscribes again: its history read was too slow.
const BUFFER_BYTES_MAX: usize = 1 << 20;

/// Whether a subscriber is told who comes and goes.
pub(crate) type WantsSignals = bool;

/// What was kept does not follow on the position without a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("publications were missed while subscribing")]
pub(crate) struct NotContiguous;

/// How an add ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Added {
    /// The broker delivers the channel already.
    Active,
    /// The broker must be asked first.
    Inactive,
}

/// How far a client was that is taken off a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    /// It was not on the channel.
    NotThere,
    /// Its subscribe had not succeeded: the others never learned of it.
    Subscribing,
    /// It was a subscriber.
    Live,
}

/// A channel with at least one subscriber on this node.
#[derive(Debug)]
pub(super) struct Channel {
    name: ChannelName,
    deliveries: Counter,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    // Contiguous, because fan-out walks it for every publication; the index serves the rare
    // remove.
    subscribers: Vec<Subscriber>,
    index: HashMap<ClientId, usize, RandomState>,
    /// The broker delivers the channel.
    is_active: bool,
    /// Removed from the hub: whoever still holds it must look again.
    is_retired: bool,
}

#[derive(Debug)]
struct Subscriber {
    client: Arc<Client>,
    stage: Stage,
    wants_signals: WantsSignals,
}

#[derive(Debug)]
enum Stage {
    /// Its reply is not sent: publications are kept.
    Subscribing(Box<Kept>),
    /// It gets everything above `after` (0: everything).
    Live {
        after: u64,
        /// It has a position, so a loss must be told.
        is_positioned: bool,
    },
    /// It was told that it lost something; its session is about to remove it.
    Lost,
}

/// What arrived for a client that is still subscribing.
#[derive(Debug, Default)]
struct Kept {
    items: Vec<KeptItem>,
    bytes: usize,
    is_lost: bool,
}

#[derive(Debug)]
enum KeptItem {
    Publication(Arc<Publication>, Option<Epoch>),
    Frame(Bytes),
}

impl Channel {
    pub(super) fn new(name: ChannelName, deliveries: Counter) -> Self {
        Self {
            name,
            deliveries,
            state: Mutex::default(),
        }
    }

    pub(super) fn name(&self) -> &ChannelName {
        &self.name
    }

    /// Adds a subscriber if the broker delivers the channel already.
    pub(super) fn add_if_active(&self, client: &Arc<Client>, wants_signals: WantsSignals) -> Added {
        let mut state = self.state.lock();
        if state.is_active && !state.is_retired {
            state.add(client, wants_signals);
            return Added::Active;
        }
        Added::Inactive
    }

    /// Adds a subscriber; only while the channel's interest lock is held.
    pub(super) fn add(&self, client: &Arc<Client>, wants_signals: WantsSignals) -> Added {
        let mut state = self.state.lock();
        debug_assert!(!state.is_retired, "retiring needs the interest lock");
        state.add(client, wants_signals);
        if state.is_active {
            Added::Active
        } else {
            Added::Inactive
        }
    }

    /// Notes that the broker delivers the channel.
    pub(super) fn activate(&self) {
        self.state.lock().is_active = true;
    }

    /// Retires the channel if nobody is on it; true when it is retired now.
    pub(super) fn retire_if_empty(&self) -> bool {
        let mut state = self.state.lock();
        if !state.subscribers.is_empty() || state.is_retired {
            return false;
        }
        state.is_retired = true;
        true
    }

    /// Removes a subscriber: how far was it, is the channel empty now?
    pub(super) fn remove(&self, client: &Arc<Client>) -> (Left, bool) {
        let mut state = self.state.lock();
        let Some(place) = state.index.remove(&client.id) else {
            return (Left::NotThere, state.subscribers.is_empty());
        };
        let left = match state.subscribers.swap_remove(place).stage {
            Stage::Subscribing(_) => Left::Subscribing,
            Stage::Live { .. } | Stage::Lost => Left::Live,
        };
        if let Some(moved) = state.subscribers.get(place) {
            let id = moved.client.id;
            state.index.insert(id, place);
        }
        debug_assert_eq!(state.index.len(), state.subscribers.len());
        (left, state.subscribers.is_empty())
    }

    /// Ends the subscribing stage: hands over what was kept above `after`, then lives on.
    pub(super) fn go_live(
        &self,
        client: &Arc<Client>,
        after: Option<&StreamPosition>,
    ) -> Result<(), NotContiguous> {
        let mut state = self.state.lock();
        let Some(place) = state.index.get(&client.id).copied() else {
            return Ok(());
        };
        let Some(subscriber) = state.subscribers.get_mut(place) else {
            return Ok(());
        };
        let live = Stage::Live {
            after: after.map_or(0, |position| position.offset),
            is_positioned: after.is_some(),
        };
        let Stage::Subscribing(kept) = std::mem::replace(&mut subscriber.stage, live) else {
            return Ok(());
        };
        let frames = kept.frames(&self.name, after);
        match frames {
            Ok(frames) => {
                // Pushed under the channel's lock, so that nothing newer overtakes.
                self.deliveries.inc_by(frames.len() as u64);
                for frame in frames {
                    client.queue.send(frame);
                }
                Ok(())
            }
            Err(error) => {
                subscriber.stage = Stage::Lost;
                Err(error)
            }
        }
    }

    /// Hands a publication to every subscriber; `dirty` collects whose queue must be flushed.
    pub(super) fn publication(
        &self,
        publication: &Arc<Publication>,
        epoch: Option<&Epoch>,
        dirty: &mut Vec<Arc<Client>>,
    ) {
        let mut state = self.state.lock();
        if state.subscribers.is_empty() {
            return;
        }
        // Encoded once; every subscriber gets the same bytes.
        let frame = publication_frame(&self.name, publication, epoch);
        let mut delivered = 0;
        for subscriber in &mut state.subscribers {
            match &mut subscriber.stage {
                Stage::Live { after, .. }
                    if publication.offset == 0 || publication.offset > *after =>
                {
                    delivered += 1;
                    push(&subscriber.client, frame.clone(), dirty);
                }
                Stage::Subscribing(kept) => kept.keep(
                    KeptItem::Publication(Arc::clone(publication), epoch.cloned()),
                    frame.len(),
                ),
                Stage::Live { .. } | Stage::Lost => {}
            }
        }
        self.deliveries.inc_by(delivered);
    }

    /// Tells those who asked for it that a client came or went.
    pub(super) fn signal(&self, signal: &Signal, dirty: &mut Vec<Arc<Client>>) {
        let mut state = self.state.lock();
        let frame = signal_frame(&self.name, signal);
        for subscriber in state.subscribers.iter_mut().filter(|s| s.wants_signals) {
            match &mut subscriber.stage {
                Stage::Live { .. } => push(&subscriber.client, frame.clone(), dirty),
                Stage::Subscribing(kept) => kept.keep(KeptItem::Frame(frame.clone()), frame.len()),
                Stage::Lost => {}
            }
        }
    }

    /// Voids every position; returns how many subscribers were told.
    pub(super) fn lost(&self) -> u64 {
        let mut told = 0;
        for subscriber in &mut self.state.lock().subscribers {
            match &mut subscriber.stage {
                Stage::Subscribing(kept) => kept.is_lost = true,
                Stage::Live {
                    is_positioned: true,
                    ..
                } => {
                    subscriber.stage = Stage::Lost;
                    told += 1;
                    subscriber.client.queue.signal(SessionSignal::Unsubscribe(
                        self.name.clone(),
                        Unsubscribe::INSUFFICIENT_STATE,
                    ));
                }
                Stage::Live { .. } | Stage::Lost => {}
            }
        }
        told
    }
}

impl State {
    fn add(&mut self, client: &Arc<Client>, wants_signals: WantsSignals) {
        let place = self.subscribers.len();
        let before = self.index.insert(client.id, place);
        debug_assert!(before.is_none(), "a session subscribes to a channel once");
        self.subscribers.push(Subscriber {
            client: Arc::clone(client),
            stage: Stage::Subscribing(Box::default()),
            wants_signals,
        });
    }
}

impl Kept {
    fn keep(&mut self, item: KeptItem, bytes: usize) {
        self.bytes += bytes;
        if self.bytes > BUFFER_BYTES_MAX {
            self.is_lost = true;
            self.items = Vec::new();
        }
        if !self.is_lost {
            self.items.push(item);
        }
    }

    /// Returns the frames that follow on `after`.
    fn frames(
        self,
        channel: &ChannelName,
        after: Option<&StreamPosition>,
    ) -> Result<Vec<Bytes>, NotContiguous> {
        // Without a position nothing was promised: what is left is delivered.
        if self.is_lost && after.is_some() {
            return Err(NotContiguous);
        }
        let mut frames = Vec::with_capacity(self.items.len());
        let mut next = after.map(|position| position.offset + 1);
        for item in self.items {
            let (publication, epoch) = match item {
                KeptItem::Frame(frame) => {
                    frames.push(frame);
                    continue;
                }
                KeptItem::Publication(publication, epoch) => (publication, epoch),
            };
            if let (Some(position), Some(expected)) = (after, next) {
                if epoch.as_ref().is_some_and(|epoch| *epoch != position.epoch) {
                    return Err(NotContiguous);
                }
                if publication.offset < expected {
                    continue;
                }
                if publication.offset > expected {
                    return Err(NotContiguous);
                }
                next = Some(expected + 1);
            }
            frames.push(publication_frame(channel, &publication, epoch.as_ref()));
        }
        Ok(frames)
    }
}

fn push(client: &Arc<Client>, frame: Bytes, dirty: &mut Vec<Arc<Client>>) {
    if client.queue.push(frame) == Pushed::NeedsFlush {
        dirty.push(Arc::clone(client));
    }
}

fn publication_frame(
    channel: &ChannelName,
    publication: &Publication,
    epoch: Option<&Epoch>,
) -> Bytes {
    frame::text(|out| push_json(out, channel, Push::Publication(publication, epoch)))
}

fn signal_frame(channel: &ChannelName, signal: &Signal) -> Bytes {
    let push = |info: &Arc<ClientInfo>, make: fn(&ClientInfo) -> Push<'_>| {
        frame::text(|out| push_json(out, channel, make(info)))
    };
    match signal {
        Signal::Join(info) => push(info, |info| Push::Join(info)),
        Signal::Leave(info) => push(info, |info| Push::Leave(info)),
    }
}
