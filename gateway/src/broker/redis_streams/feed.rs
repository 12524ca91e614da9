//! One channel on this node: what was delivered, and what must come next. Decides, waits for
//! nothing.

use shared::ids::{ChannelName, Epoch, StreamPosition};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::history::Page;
use crate::broker::{BrokerError, Delivery, HistoryPolicy};

/// One channel that this node follows.
pub(super) struct Feed {
    pub(super) channel: ChannelName,
    /// Without history there is no position to follow.
    pub(super) policy: Option<HistoryPolicy>,
    /// Tells this feed from an earlier one of the same channel.
    pub(super) serial: u64,
    pub(super) state: State,
    /// When something was last heard or checked.
    pub(super) heard: Instant,
    /// Everything up to here was delivered, or came before the first subscribe.
    pub(super) last: Option<StreamPosition>,
    /// The furthest that was heard and not delivered.
    ahead: Option<StreamPosition>,
    waiters: Vec<oneshot::Sender<Result<(), BrokerError>>>,
    /// Somebody was told that the channel is followed.
    pub(super) is_wanted: bool,
    /// Its position is compared with the stream's from time to time.
    pub(super) is_checked: bool,
}

/// What a feed waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// The bell: subscribing is under way, again after a broken connection.
    Joining,
    /// The next bell.
    Live,
    /// The stream: something was missed.
    Repairing,
}

/// What to do with a publication that was heard.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// It is next: deliver it.
    Next,
    /// It was delivered already, or comes with the repair.
    Skip,
    /// Something before it is missing: repair, for this reason.
    Missing(&'static str),
}

/// What a repair brought.
#[derive(Debug)]
pub(super) struct Repaired {
    /// What to deliver, in order.
    pub(super) deliveries: Vec<Delivery>,
    pub(super) has_new_epoch: bool,
    /// More is known to be in the stream.
    pub(super) again: bool,
}

impl Feed {
    pub(super) fn new(channel: ChannelName, policy: Option<HistoryPolicy>, serial: u64) -> Self {
        Self {
            channel,
            policy,
            serial,
            state: State::Joining,
            heard: Instant::now(),
            last: None,
            ahead: None,
            waiters: Vec::new(),
            is_wanted: false,
            is_checked: false,
        }
    }

    pub(super) fn wait(&mut self, waiter: oneshot::Sender<Result<(), BrokerError>>) {
        self.waiters.push(waiter);
    }

    /// Answers everybody who waits for the subscribe.
    pub(super) fn answer(&mut self, mut result: impl FnMut() -> Result<(), BrokerError>) {
        for waiter in self.waiters.drain(..) {
            let result = result();
            let is_ok = result.is_ok();
            self.is_wanted |= waiter.send(result).is_ok() && is_ok;
        }
    }

    /// Decides about a publication that the bell brought.
    pub(super) fn hear(&mut self, epoch: Option<&Epoch>, offset: u64) -> Heard {
        self.heard = Instant::now();
        // Without a position there is no order to keep.
        let (true, Some(epoch)) = (self.policy.is_some(), epoch) else {
            return Heard::Next;
        };
        let Some(last) = &mut self.last else {
            self.note(epoch, offset);
            return Heard::Skip;
        };
        let is_same_epoch = last.epoch == *epoch;
        if is_same_epoch && offset <= last.offset {
            return Heard::Skip;
        }
        if is_same_epoch && offset == last.offset + 1 && self.state != State::Repairing {
            last.offset = offset;
            return Heard::Next;
        }
        self.note(epoch, offset);
        match self.state {
            State::Live if is_same_epoch => Heard::Missing("gap"),
            State::Live => Heard::Missing("epoch"),
            State::Joining | State::Repairing => Heard::Skip,
        }
    }

    /// Takes the position that was read after the bell was subscribed; returns why a repair is
    /// needed, if it is.
    pub(super) fn joined(&mut self, epoch: &Epoch, top: u64) -> Option<&'static str> {
        self.state = State::Live;
        self.heard = Instant::now();
        let is_first = self.last.is_none();
        let last = self.last.get_or_insert_with(|| StreamPosition {
            offset: top,
            epoch: epoch.clone(),
        });
        let is_behind = last.epoch != *epoch || last.offset < top;
        let is_ahead_heard = self
            .ahead
            .as_ref()
            .is_some_and(|ahead| is_after(ahead, last));
        match (is_first, is_behind, is_ahead_heard) {
            (true, _, true) => Some("gap"),
            (false, true, _) | (false, _, true) => Some("reconnect"),
            _ => None,
        }
    }

    /// Takes a part of the stream that was read after [`Feed::last`]; in a new epoch, from its
    /// beginning.
    pub(super) fn repaired(&mut self, page: Page) -> Repaired {
        let mut deliveries = Vec::new();
        let mut last = self.last.take().unwrap_or(StreamPosition {
            offset: page.base,
            epoch: page.epoch.clone(),
        });
        let has_new_epoch = last.epoch != page.epoch;
        // What is lost is told once, before what there still is.
        let mut is_told = has_new_epoch;
        if has_new_epoch {
            deliveries.push(Delivery::Lost);
            last = StreamPosition {
                offset: page.base,
                epoch: page.epoch.clone(),
            };
        }
        let start = last.offset;
        for item in page.items {
            let offset = item.offset;
            if offset <= last.offset {
                continue;
            }
            let delivery = match item.into_delivery() {
                Ok(Some(delivery)) => delivery,
                Ok(None) => continue,
                Err(error) => {
                    // The next one shows the gap.
                    tracing::error!(channel = %self.channel, offset, %error, "publication cannot be read");
                    continue;
                }
            };
            if offset != last.offset + 1 && !std::mem::replace(&mut is_told, true) {
                deliveries.push(Delivery::Lost);
            }
            last.offset = offset;
            deliveries.push(delivery);
        }
        if last.offset == start && start < page.top {
            // The stream does not hold, or not readably, what its meta counted.
            if !is_told {
                deliveries.push(Delivery::Lost);
            }
            last.offset = page.top;
        }
        // A bell of another epoch may be a late one of the past: one more look tells.
        let is_ahead_heard = self
            .ahead
            .take()
            .is_some_and(|ahead| is_after(&ahead, &last));
        let again = last.offset < page.top || is_ahead_heard;
        self.last = Some(last);
        self.heard = Instant::now();
        self.state = State::Live;
        Repaired {
            deliveries,
            has_new_epoch,
            again,
        }
    }

    fn note(&mut self, epoch: &Epoch, offset: u64) {
        let position = StreamPosition {
            offset,
            epoch: epoch.clone(),
        };
        let is_further = self
            .ahead
            .as_ref()
            .is_none_or(|ahead| is_after(&position, ahead));
        if is_further {
            self.ahead = Some(position);
        }
    }
}

/// True when `position` is not covered by having everything up to `other`.
fn is_after(position: &StreamPosition, other: &StreamPosition) -> bool {
    position.epoch != other.epoch || position.offset > other.offset
}

#[cfg(test)]
mod tests {
    use super::super::wire::Item;
    use super::*;
    use std::time::Duration;

    fn feed(last: u64) -> Feed {
        let policy = HistoryPolicy {
            size: 10,
            ttl: Duration::from_secs(60),
            meta_ttl: Duration::from_secs(120),
            durable: false,
        };
        let mut feed = Feed::new(ChannelName::new("c").unwrap(), Some(policy), 1);
        assert_eq!(feed.joined(&"e".into(), last), None);
        feed
    }

    fn page(epoch: &str, base: u64, top: u64, offsets: &[u64]) -> Page {
        let item = |offset: &u64| Item {
            offset: *offset,
            epoch: epoch.to_owned(),
            ..Item::default()
        };
        Page {
            epoch: epoch.into(),
            base,
            top,
            items: offsets.iter().map(item).collect(),
        }
    }

    fn delivered(repaired: &Repaired) -> Vec<Option<u64>> {
        let offset = |delivery: &Delivery| match delivery {
            Delivery::Publication { publication, .. } => Some(publication.offset),
            Delivery::Lost | Delivery::Signal(_) => None,
        };
        repaired.deliveries.iter().map(offset).collect()
    }

    #[test]
    fn only_the_next_offset_is_delivered() {
        let mut feed = feed(5);
        let epoch = Epoch::from("e");
        assert_eq!(feed.hear(Some(&epoch), 5), Heard::Skip);
        assert_eq!(feed.hear(Some(&epoch), 6), Heard::Next);
        assert_eq!(feed.hear(Some(&epoch), 8), Heard::Missing("gap"));
        assert_eq!(
            feed.hear(Some(&Epoch::from("f")), 1),
            Heard::Missing("epoch")
        );
        assert_eq!(feed.hear(None, 0), Heard::Next);
    }

    #[test]
    fn a_gap_is_filled_from_the_stream() {
        let mut feed = feed(5);
        let epoch = Epoch::from("e");
        assert_eq!(feed.hear(Some(&epoch), 8), Heard::Missing("gap"));
        feed.state = State::Repairing;
        assert_eq!(feed.hear(Some(&epoch), 9), Heard::Skip);
        let first = feed.repaired(page("e", 0, 8, &[6, 7, 8]));
        assert_eq!(delivered(&first), [Some(6), Some(7), Some(8)]);
        assert!(first.again, "9 was heard after the stream was read");
        let second = feed.repaired(page("e", 0, 9, &[9]));
        assert_eq!((delivered(&second), second.again), (vec![Some(9)], false));
        assert_eq!(feed.hear(Some(&epoch), 10), Heard::Next);
    }

    #[test]
    fn what_is_gone_is_told_once_before_what_there_is() {
        let mut feed = feed(5);
        let repaired = feed.repaired(page("e", 0, 9, &[8, 9]));
        assert_eq!(delivered(&repaired), [None, Some(8), Some(9)]);
        let repaired = feed.repaired(page("e", 0, 20, &[]));
        assert_eq!((delivered(&repaired), repaired.again), (vec![None], false));
        assert_eq!(feed.hear(Some(&Epoch::from("e")), 21), Heard::Next);
    }

    #[test]
    fn a_new_epoch_begins_at_its_base() {
        let mut feed = feed(5);
        let repaired = feed.repaired(page("f", 100, 102, &[101, 102]));
        assert!(repaired.has_new_epoch);
        assert_eq!(delivered(&repaired), [None, Some(101), Some(102)]);
        assert_eq!(feed.hear(Some(&Epoch::from("f")), 103), Heard::Next);
    }

    #[test]
    fn what_rang_while_subscribing_is_not_missed() {
        let mut feed = feed(5);
        feed.last = None;
        feed.state = State::Joining;
        assert_eq!(feed.hear(Some(&Epoch::from("e")), 7), Heard::Skip);
        assert_eq!(feed.joined(&"e".into(), 6), Some("gap"));
        assert_eq!(feed.last.as_ref().map(|last| last.offset), Some(6));
    }

    #[test]
    fn a_rejoin_repairs_only_what_is_behind() {
        let mut feed = feed(5);
        feed.state = State::Joining;
        assert_eq!(feed.joined(&"e".into(), 5), None);
        assert_eq!(feed.joined(&"e".into(), 6), Some("reconnect"));
        assert_eq!(feed.joined(&"f".into(), 0), Some("reconnect"));
    }
}
