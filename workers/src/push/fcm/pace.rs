//! How fast pushes are sent: below the project's quota, slowly at first, not at all while FCM
//! says so.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use parking_lot::Mutex;
use rand::RngExt;
use tokio::time::Instant;

/// Over which time the rate grows to its whole: sudden peaks are answered with 429.
const RAMP: Duration = Duration::from_secs(60);
const RAMP_STEPS: u32 = 6;
/// Parts of a minute's pushes that may be sent at once: a tenth of a second's.
const BURST: u32 = 600;
/// How long a 429 without `Retry-After` is waited out.
const QUOTA_PAUSE: Duration = Duration::from_secs(60);
/// First and longest pause after a failure; at random up to half of it more.
const FAILURE_PAUSE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));

/// The pace of all calls.
pub(super) struct Pace {
    /// One for each step of the ramp.
    steps: Vec<DefaultDirectRateLimiter>,
    state: Mutex<State>,
}

struct State {
    ramp_began: Instant,
    paused_until: Option<Instant>,
    failures: u32,
}

impl Pace {
    /// Makes a pace of at most so many pushes a minute.
    pub(super) fn new(per_minute: NonZeroU32) -> Self {
        let step = |step: u32| {
            let rate = u64::from(per_minute.get()) * u64::from(step) / u64::from(RAMP_STEPS);
            limiter(u32::try_from(rate).unwrap_or(u32::MAX))
        };
        Self {
            steps: (1..=RAMP_STEPS).map(step).collect(),
            state: Mutex::new(State {
                ramp_began: Instant::now(),
                paused_until: None,
                failures: 0,
            }),
        }
    }

    /// Waits for this call's turn.
    ///
    /// # Errors
    /// How long nothing may be sent.
    pub(super) async fn turn(&self) -> Result<(), Duration> {
        self.check(Instant::now())?;
        let elapsed = self.state.lock().ramp_began.elapsed();
        let step = elapsed.as_secs() * u64::from(RAMP_STEPS) / RAMP.as_secs();
        let last = self.steps.len() - 1;
        let step = usize::try_from(step).unwrap_or(last).min(last);
        self.steps[step].until_ready().await;
        self.check(Instant::now())
    }

    fn check(&self, now: Instant) -> Result<(), Duration> {
        let mut state = self.state.lock();
        match state.paused_until {
            Some(until) if now < until => Err(until - now),
            Some(_) => {
                state.paused_until = None;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Stops everything for as long as FCM says; returns how long.
    pub(super) fn over_quota(&self, now: Instant, retry_after: Option<Duration>) -> Duration {
        let pause = retry_after.unwrap_or_else(|| QUOTA_PAUSE.mul_f64(jitter()));
        self.pause(now, pause);
        self.state.lock().ramp_began = now + pause;
        pause
    }

    /// Stops everything for as long as FCM says, else for the time of a failure.
    pub(super) fn overloaded(&self, now: Instant, retry_after: Option<Duration>) -> Duration {
        let pause = self.failure_pause();
        let pause = retry_after.unwrap_or(pause);
        self.pause(now, pause);
        pause
    }

    /// Returns how long a push waits that failed; longer with every failure in a row.
    pub(super) fn failure_pause(&self) -> Duration {
        let mut state = self.state.lock();
        let doubled = FAILURE_PAUSE.0 * 2_u32.pow(state.failures.min(6));
        state.failures += 1;
        doubled.min(FAILURE_PAUSE.1).mul_f64(jitter())
    }

    /// Returns how long a device waits that gets too many.
    pub(super) fn device_pause(retry_after: Option<Duration>) -> Duration {
        retry_after.unwrap_or_else(|| QUOTA_PAUSE.mul_f64(jitter()))
    }

    /// Notes that a push was taken.
    pub(super) fn succeeded(&self) {
        self.state.lock().failures = 0;
    }

    fn pause(&self, now: Instant, pause: Duration) {
        let until = now + pause;
        let mut state = self.state.lock();
        // The longest pause counts.
        state.paused_until = state.paused_until.max(Some(until));
    }
}

fn jitter() -> f64 {
    rand::rng().random_range(1.0..1.5)
}

fn limiter(per_minute: u32) -> DefaultDirectRateLimiter {
    let per_minute = per_minute.max(1);
    let at_least_one = |number| NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN);
    let period = Duration::from_secs(60) / per_minute;
    // `None` is only for a period of zero, and a minute has fewer nanoseconds than a u32 can be.
    let quota = Quota::with_period(period.max(Duration::from_nanos(1)));
    let quota = quota.unwrap_or(Quota::per_minute(at_least_one(per_minute)));
    RateLimiter::direct(quota.allow_burst(at_least_one(per_minute / BURST)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_sent_before_the_pause_is_over() {
        let pace = Pace::new(NonZeroU32::MAX);
        let (now, pause) = (Instant::now(), Duration::from_secs(7));
        assert_eq!(pace.check(now), Ok(()));
        assert_eq!(pace.over_quota(now, Some(pause)), pause);
        pace.overloaded(now, Some(Duration::from_secs(3)));
        assert_eq!(pace.check(now), Err(pause));
        assert_eq!(pace.check(now + pause), Ok(()));
        assert!(pace.over_quota(now, None) >= QUOTA_PAUSE);
    }

    #[test]
    fn failures_in_a_row_wait_longer() {
        let pace = Pace::new(NonZeroU32::MAX);
        let pauses: Vec<Duration> = (0..12).map(|_| pace.failure_pause()).collect();
        let (least, most) = FAILURE_PAUSE;
        assert!(pauses[0] >= least && pauses[0] < least.mul_f64(1.5));
        assert!(pauses[1] >= least * 2);
        assert!(pauses[11] >= most && pauses[11] <= most.mul_f64(1.5));
        pace.succeeded();
        assert!(pace.failure_pause() < least * 2);
    }

    #[tokio::test]
    async fn the_rate_is_kept() {
        // 6,000 a minute, a sixth of it in the first step: one in 60 ms, one at once.
        let pace = Pace::new(NonZeroU32::new(6_000).unwrap());
        let started = Instant::now();
        for _ in 0..6 {
            pace.turn().await.unwrap();
        }
        let took = started.elapsed();
        assert!(took >= Duration::from_millis(295), "{took:?}");
    }
}
