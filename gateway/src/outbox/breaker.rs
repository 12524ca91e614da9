//! The circuit breaker before the job log: while it is open, durable publishes are refused before
//! anything is shown to anybody.
//!
//! It opens after failed appends in a row, or when a quiet log does not answer a ping. An answered
//! ping alone does not close it after failed appends: a log that tells its metadata may still take
//! no job (too few replicas, a full disk). Then one publish is let through as a trial, and its
//! append decides.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use store::job_log::JobLog;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Appends that may fail in a row before the circuit opens.
const FAILURES_MAX: u32 = 3;
/// Time between two pings while the circuit is open.
const PROBE: Duration = Duration::from_millis(500);
/// Time without a successful append after which a closed circuit is tested: a job log that went
/// away in a quiet hour is noticed before the next publication is shown.
const QUIET: Duration = Duration::from_secs(3);
/// How long one ping may take.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// Knows whether the job log takes jobs.
pub(super) struct Breaker {
    circuit: Mutex<Circuit>,
    failures: AtomicU32,
    last_success: Mutex<Instant>,
    /// Rings when an append failed: the prober need not wait.
    suspicion: Notify,
}

/// What happens to a durable publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Circuit {
    /// It goes on.
    Closed,
    /// It is refused.
    Open,
    /// The next one goes on, as the trial.
    HalfOpen,
}

impl Breaker {
    pub(super) fn new() -> Self {
        Self {
            circuit: Mutex::new(Circuit::Closed),
            failures: AtomicU32::new(0),
            last_success: Mutex::new(Instant::now()),
            suspicion: Notify::new(),
        }
    }

    /// True when a publish may go on; takes the trial of a half-open circuit.
    pub(super) fn admits(&self) -> bool {
        let mut circuit = self.circuit.lock();
        match *circuit {
            Circuit::Closed => true,
            Circuit::Open => false,
            Circuit::HalfOpen => {
                *circuit = Circuit::Open;
                true
            }
        }
    }

    /// True when appends are worth trying.
    pub(super) fn is_open(&self) -> bool {
        *self.circuit.lock() == Circuit::Open
    }

    pub(super) fn succeeded(&self) {
        *self.last_success.lock() = Instant::now();
        self.failures.store(0, Ordering::Relaxed);
        self.turn(Circuit::Closed);
    }

    pub(super) fn failed(&self) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if failures >= FAILURES_MAX {
            self.turn(Circuit::Open);
        }
        self.suspicion.notify_one();
    }

    /// Tests the job log, after a failure or a quiet time. Ends with `cancel`.
    pub(super) async fn probe(self: Arc<Self>, log: Arc<dyn JobLog>, cancel: CancellationToken) {
        loop {
            let pause = if self.is_open() { PROBE } else { QUIET };
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                // A failing log rings at every append: while the circuit is open, time rules.
                () = self.suspicion.notified(), if !self.is_open() => {}
            }
            let failures = self.failures.load(Ordering::Relaxed);
            let is_busy = self.last_success.lock().elapsed() < QUIET && failures == 0;
            if is_busy && !self.is_open() {
                continue;
            }
            let ping = tokio::time::timeout(PING_TIMEOUT, log.ping(PING_TIMEOUT)).await;
            self.pinged(matches!(ping, Ok(Ok(()))));
        }
    }

    fn pinged(&self, is_answered: bool) {
        let has_failed = self.failures.load(Ordering::Relaxed) >= FAILURES_MAX;
        match (is_answered, has_failed) {
            (false, _) => self.turn(Circuit::Open),
            (true, true) => self.turn(Circuit::HalfOpen),
            (true, false) => {
                *self.last_success.lock() = Instant::now();
                self.turn(Circuit::Closed);
            }
        }
    }

    fn turn(&self, to: Circuit) {
        let from = std::mem::replace(&mut *self.circuit.lock(), to);
        match (from, to) {
            (Circuit::Closed, Circuit::Open | Circuit::HalfOpen) => {
                tracing::warn!("job log is away, durable publishes are refused");
            }
            (Circuit::Open | Circuit::HalfOpen, Circuit::Closed) => {
                tracing::info!("job log is back, durable publishes are accepted");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answered_ping_after_failed_appends_lets_one_publish_try() {
        let breaker = Breaker::new();
        for _ in 0..FAILURES_MAX {
            assert!(breaker.admits());
            breaker.failed();
        }
        assert!(!breaker.admits());
        breaker.pinged(true);
        assert_eq!((breaker.admits(), breaker.admits()), (true, false));
        breaker.failed();
        assert!(!breaker.admits(), "a failed trial keeps it open");
        breaker.pinged(true);
        assert!(breaker.admits());
        breaker.succeeded();
        assert!(breaker.admits() && breaker.admits());
    }

    #[test]
    fn without_failed_appends_the_ping_decides() {
        let breaker = Breaker::new();
        breaker.pinged(false);
        assert!(!breaker.admits());
        breaker.pinged(true);
        assert!(breaker.admits() && breaker.admits());
    }
}
