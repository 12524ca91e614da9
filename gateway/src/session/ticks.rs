//! The one clock of all sessions: a wheel, so that no connection needs a timer of its own.
//!
//! Each session has one place in the wheel: its next time (ping, pong, expiry). A time that
//! changes leaves the old place behind, which is then skipped. Times are met to within a slot.

use std::sync::Weak;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::hub::Client;

const SLOT: Duration = Duration::from_millis(100);
/// Slots of the wheel: 51 s. A later time wakes its session early, which then asks again.
const SLOTS: u64 = 512;

/// The wheel.
#[derive(Debug)]
pub(crate) struct Ticks {
    start: Instant,
    slots: Vec<Mutex<Vec<Place>>>,
}

#[derive(Debug)]
struct Place {
    client: Weak<Client>,
    turn: u64,
}

/// A session's place in the wheel.
#[derive(Debug, Default)]
pub(crate) struct NextTick {
    /// The turn of the one place that counts; 0: none.
    turn: AtomicU64,
}

impl Ticks {
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            slots: (0..SLOTS).map(|_| Mutex::default()).collect(),
        }
    }

    /// Wakes the client's session at `at`, or up to a slot later; an earlier call is forgotten.
    pub(crate) fn schedule(&self, client: &std::sync::Arc<Client>, at: Instant, now: Instant) {
        let turn = self
            .turn_of(at)
            .clamp(self.turn_of(now) + 1, self.turn_of(now) + SLOTS - 1);
        if client.next_tick.turn.swap(turn, Ordering::Relaxed) == turn {
            return;
        }
        self.slot(turn).lock().push(Place {
            client: std::sync::Arc::downgrade(client),
            turn,
        });
    }

    /// Turns the wheel until cancelled.
    pub(crate) async fn run(&self, cancel: CancellationToken) {
        let mut interval = tokio::time::interval(SLOT);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut next = self.turn_of(Instant::now());
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                now = interval.tick() => {
                    // After a stall every turn is made up for.
                    while next <= self.turn_of(now) {
                        self.turn(next);
                        next += 1;
                    }
                }
            }
        }
    }

    fn turn(&self, turn: u64) {
        let places = std::mem::take(&mut *self.slot(turn).lock());
        for place in places {
            let Some(client) = place.client.upgrade() else {
                continue;
            };
            // The swap makes the place count once, and leaves a newer one alone.
            let is_current = client
                .next_tick
                .turn
                .compare_exchange(place.turn, 0, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
            if is_current {
                client.queue.tick();
            }
        }
    }

    fn turn_of(&self, at: Instant) -> u64 {
        let since_start = at.saturating_duration_since(self.start);
        u64::try_from(since_start.as_millis() / SLOT.as_millis()).unwrap_or(u64::MAX)
    }

    fn slot(&self, turn: u64) -> &Mutex<Vec<Place>> {
        let place = usize::try_from(turn % SLOTS).unwrap_or_default();
        &self.slots[place]
    }
}
