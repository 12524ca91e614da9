//! Stops all calls for a while after an error that more calls would only repeat.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// First and longest time that nothing is sent.
const OPEN_MIN: Duration = Duration::from_secs(60);
const OPEN_MAX: Duration = Duration::from_secs(600);
/// How long the others wait for the one call that tries whether it is over.
const PROBE: Duration = Duration::from_secs(10);

/// Lets calls through, or says how long not.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    until: Option<Instant>,
    /// How long it was open the last time.
    last: Duration,
}

impl Breaker {
    /// Lets a call through; when the time is over, one call first.
    ///
    /// # Errors
    /// How long to wait.
    pub(super) fn pass(&self, now: Instant) -> Result<(), Duration> {
        let mut state = self.state.lock();
        match state.until {
            None => Ok(()),
            Some(until) if now < until => Err(until - now),
            Some(_) => {
                // Closed by this call's success; should it never end, another one tries.
                state.until = Some(now + PROBE);
                Ok(())
            }
        }
    }

    /// Opens it, twice as long as the time before; returns how long.
    pub(super) fn open(&self, now: Instant) -> Duration {
        let mut state = self.state.lock();
        // Calls that were under way when it opened tell nothing new.
        if let Some(until) = state.until.filter(|until| *until > now + PROBE) {
            return until - now;
        }
        state.last = (state.last * 2).clamp(OPEN_MIN, OPEN_MAX);
        state.until = Some(now + state.last);
        state.last
    }

    /// Notes a success.
    pub(super) fn close(&self) {
        *self.state.lock() = State::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_call_tries_whether_it_is_over() {
        let breaker = Breaker::default();
        let start = Instant::now();
        assert_eq!(breaker.pass(start), Ok(()));
        assert_eq!(breaker.open(start), OPEN_MIN);
        assert_eq!(breaker.open(start), OPEN_MIN, "the same fault");
        assert_eq!(breaker.pass(start), Err(OPEN_MIN));
        let later = start + OPEN_MIN;
        assert_eq!(breaker.pass(later), Ok(()));
        assert_eq!(breaker.pass(later), Err(PROBE), "one is enough");
        assert_eq!(breaker.open(later), OPEN_MIN * 2);
        breaker.close();
        assert_eq!(breaker.pass(later), Ok(()));
        assert_eq!(breaker.open(later), OPEN_MIN);
    }
}
