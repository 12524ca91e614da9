//! What happens to a client, as its owner sees it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde_json::value::RawValue;

use super::subscription::{Subscription, SubscriptionState};
use super::wire::{ErrorReply, Info, PublicationWire, SubscribeResult};

/// Something that happened to a client.
#[derive(Debug)]
pub enum Event {
    /// A connection is open; subscribes are on their way.
    Connected {
        /// The connection's id.
        client: String,
        /// Number of the address it is connected to.
        endpoint: usize,
    },
    /// A try to connect failed; the client tries the next address by itself.
    ConnectFailed {
        /// What went wrong.
        reason: String,
    },
    /// The connection ended; the client comes back by itself unless `is_terminal`.
    Disconnected {
        /// The close frame's code; 0 when there was none.
        code: u16,
        /// What the server said, or what went wrong.
        reason: String,
        /// True when the server said not to come back.
        is_terminal: bool,
    },
    /// A subscribe was answered. What it recovered follows as [`Event::Publication`].
    Subscribed {
        /// The channel.
        channel: Arc<str>,
        /// Where the client was when it asked for recovery.
        from: Option<Position>,
        /// True when the server claims that nothing was missed after `from`.
        recovered: bool,
        /// Where the client is after what was recovered.
        position: Position,
    },
    /// A subscribe was refused.
    SubscribeFailed {
        /// The channel.
        channel: Arc<str>,
        /// Why.
        error: ErrorReply,
    },
    /// The server ended a subscription; from code 2500 on the client asks again by itself.
    Unsubscribed {
        /// The channel.
        channel: Arc<str>,
        /// The public number.
        code: u32,
        /// The public text.
        reason: String,
    },
    /// A publication arrived.
    Publication(Publication),
    /// A command was answered.
    Reply {
        /// The command's id.
        id: u32,
        /// The result (of an RPC: its `data`), or the error.
        outcome: Result<Option<Box<RawValue>>, ErrorReply>,
    },
}

/// A place in a channel's stream, as the wire names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The stream's identity; empty without history.
    pub epoch: Arc<str>,
    /// Number of the last publication seen.
    pub offset: u64,
}

/// A publication that arrived.
#[derive(Debug)]
pub struct Publication {
    /// The channel.
    pub channel: Arc<str>,
    /// Place in the stream; 0 in channels without history.
    pub offset: u64,
    /// Identity of the stream, of the subscription's position.
    pub epoch: Arc<str>,
    /// The JSON value as published.
    pub data: Box<str>,
    /// Labels; durable channels carry the message id in `id`.
    pub tags: BTreeMap<String, String>,
    /// Who published.
    pub info: Option<Info>,
    /// True when it came with the answer to a subscribe.
    pub is_recovered: bool,
}

/// Applies a publication to its subscription.
pub(crate) fn publication_of(
    subscription: &mut Subscription,
    wire: PublicationWire<'_>,
    is_recovered: bool,
) -> Event {
    let position = subscription.position.get_or_insert_with(|| Position {
        epoch: "".into(),
        offset: 0,
    });
    if let Some(epoch) = wire.epoch.filter(|epoch| **epoch != *position.epoch) {
        position.epoch = epoch.into();
    }
    let epoch = Arc::clone(&position.epoch);
    if wire.offset > 0 {
        position.offset = wire.offset;
    }
    Event::Publication(Publication {
        channel: Arc::clone(&subscription.channel),
        offset: wire.offset,
        epoch,
        data: wire.data.map(RawValue::get).unwrap_or_default().into(),
        tags: wire.tags,
        info: wire.info,
        is_recovered,
    })
}

/// Applies the answer to a subscribe.
pub(crate) fn subscribed_of(
    subscription: &mut Subscription,
    result: SubscribeResult<'_>,
    events: &mut VecDeque<Event>,
) {
    let from = subscription
        .position
        .take()
        .filter(|_| result.was_recovering);
    let epoch: Arc<str> = match &from {
        Some(from) if *from.epoch == *result.epoch => Arc::clone(&from.epoch),
        _ => (&*result.epoch).into(),
    };
    // A recovered subscription goes on from where it was; its offset is the one asked from, or
    // absent when that is 0.
    let start = Position {
        epoch,
        offset: match &from {
            Some(from) if result.recovered => from.offset,
            _ => result.offset,
        },
    };
    let end = result
        .publications
        .last()
        .map_or(start.offset, |last| last.offset);
    events.push_back(Event::Subscribed {
        channel: Arc::clone(&subscription.channel),
        from,
        recovered: result.recovered,
        position: Position {
            offset: end,
            ..start.clone()
        },
    });
    subscription.position = Some(start);
    for publication in result.publications {
        events.push_back(publication_of(subscription, publication, true));
    }
    if !result.recoverable {
        // Nothing to come back to: the next subscribe starts afresh.
        subscription.position = None;
    }
    subscription.state = SubscriptionState::Live;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscribe(subscription: &mut Subscription, reply: &str) -> Vec<Event> {
        let mut events = VecDeque::new();
        subscribed_of(
            subscription,
            serde_json::from_str(reply).unwrap(),
            &mut events,
        );
        events.into()
    }

    #[test]
    fn a_recovered_subscription_goes_on_where_it_was() {
        let mut subscription = Subscription::new("r1");
        subscribe(
            &mut subscription,
            r#"{"recoverable":true,"epoch":"E","positioned":true,"offset":2}"#,
        );
        assert!(subscription.request().recover);
        assert_eq!(subscription.request().offset, 2);

        let events = subscribe(
            &mut subscription,
            r#"{"recoverable":true,"epoch":"E","publications":[{"data":1,"offset":3},{"data":2,"offset":4}],"recovered":true,"offset":2,"positioned":true,"was_recovering":true}"#,
        );
        let [
            Event::Subscribed {
                from,
                recovered,
                position,
                ..
            },
            Event::Publication(first),
            _,
        ] = &events[..]
        else {
            panic!("{events:?}");
        };
        assert!(*recovered && first.is_recovered);
        assert_eq!(from.as_ref().map(|from| from.offset), Some(2));
        assert_eq!((position.offset, first.offset), (4, 3));
        assert_eq!(subscription.request().offset, 4);
    }

    #[test]
    fn a_lost_position_starts_at_the_top() {
        let mut subscription = Subscription::new("r1");
        subscribe(
            &mut subscription,
            r#"{"recoverable":true,"epoch":"old","offset":9}"#,
        );
        let events = subscribe(
            &mut subscription,
            r#"{"recoverable":true,"epoch":"new","offset":2,"positioned":true,"was_recovering":true}"#,
        );
        let [
            Event::Subscribed {
                from: Some(from),
                recovered: false,
                position,
                ..
            },
        ] = &events[..]
        else {
            panic!("{events:?}");
        };
        assert_eq!((&*from.epoch, from.offset), ("old", 9));
        assert_eq!((&*position.epoch, position.offset), ("new", 2));
    }

    #[test]
    fn a_channel_without_history_has_no_position() {
        let mut subscription = Subscription::new("live");
        subscribe(&mut subscription, "{}");
        assert!(!subscription.request().recover);
    }
}
