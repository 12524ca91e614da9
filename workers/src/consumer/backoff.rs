//! Pauses that double, with jitter so that workers do not retry in step.

use std::time::Duration;

use rand::RngExt;

/// Bounds of the pause between two tries in place.
pub(super) const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// The pauses of one batch.
#[derive(Debug)]
pub(super) struct Backoff {
    /// The try that comes next, from 1.
    pub(super) attempt: u32,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { attempt: 1 }
    }
}

impl Backoff {
    /// Returns how long to wait now.
    pub(super) fn next(&mut self) -> Duration {
        let pause = doubled(PAUSE_MIN, self.attempt, PAUSE_MAX);
        self.attempt = self.attempt.saturating_add(1);
        pause
    }
}

/// Returns `first` doubled for every attempt, bounded, less up to a half.
pub(super) fn doubled(first: Duration, attempt: u32, longest: Duration) -> Duration {
    let pause = first.saturating_mul(1 << attempt.min(16)).min(longest);
    pause.mul_f64(rand::rng().random_range(0.5..1.0))
}
