//! What a client remembers of one channel: its position, and how far a subscribe has come.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::event::Position;
use super::wire::SubscribeRequest;

/// Longest wait before a subscription that the server ended is asked for again.
const RESUBSCRIBE_WAIT_MAX: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct Subscription {
    pub(crate) channel: Arc<str>,
    /// Set by the first subscribe that answers with one; asks for recovery from then on.
    pub(crate) position: Option<Position>,
    pub(crate) state: SubscriptionState,
}

#[derive(Debug)]
pub(crate) enum SubscriptionState {
    /// To be asked for as soon as there is a connection.
    Idle,
    /// Asked for; answered by the reply with this id, in time.
    Asked { id: u32, until: Instant },
    /// Publications arrive.
    Live,
    /// The server ended it; to be asked for again at this moment.
    Waiting { until: Instant },
    /// The server ended it for good.
    Ended,
}

impl Subscription {
    pub(crate) fn new(channel: &str) -> Self {
        Self {
            channel: channel.into(),
            position: None,
            state: SubscriptionState::Idle,
        }
    }

    pub(crate) fn request(&self) -> SubscribeRequest<'_> {
        let (epoch, offset) = match &self.position {
            Some(position) => (&*position.epoch, position.offset),
            None => ("", 0),
        };
        SubscribeRequest {
            channel: &self.channel,
            recover: self.position.is_some(),
            epoch,
            offset,
            positioned: true,
            recoverable: true,
        }
    }

    pub(crate) fn unsubscribed(&mut self, comes_back: bool) {
        let wait = RESUBSCRIBE_WAIT_MAX.mul_f64(rand::random::<f64>());
        self.state = if comes_back {
            SubscriptionState::Waiting {
                until: Instant::now() + wait,
            }
        } else {
            SubscriptionState::Ended
        };
    }

    pub(crate) fn is_due(&self, now: Instant) -> bool {
        match self.state {
            SubscriptionState::Idle => true,
            SubscriptionState::Waiting { until } => until <= now,
            _ => false,
        }
    }

    pub(crate) fn is_overdue(&self, now: Instant) -> bool {
        matches!(self.state, SubscriptionState::Asked { until, .. } if until <= now)
    }

    pub(crate) fn is_asked_with(&self, reply_id: u32) -> bool {
        matches!(self.state, SubscriptionState::Asked { id, .. } if id == reply_id)
    }

    pub(crate) fn wakes_at(&self) -> Option<Instant> {
        match self.state {
            SubscriptionState::Asked { until, .. } | SubscriptionState::Waiting { until } => {
                Some(until)
            }
            _ => None,
        }
    }
}
