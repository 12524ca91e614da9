//! The circuit breaker before the job log: while it is open, durable publishes are refused before
//! anything is shown to anybody.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
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
    is_open: AtomicBool,
    failures: AtomicU32,
    last_success: Mutex<Instant>,
    /// Rings when an append failed: the prober need not wait.
    suspicion: Notify,
}

impl Breaker {
    pub(super) fn new() -> Self {
        Self {
            is_open: AtomicBool::new(false),
            failures: AtomicU32::new(0),
            last_success: Mutex::new(Instant::now()),
            suspicion: Notify::new(),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    pub(super) fn succeeded(&self) {
        *self.last_success.lock() = Instant::now();
        self.failures.store(0, Ordering::Relaxed);
        self.close();
    }

    pub(super) fn failed(&self) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if failures >= FAILURES_MAX {
            self.open();
        }
        self.suspicion.notify_one();
    }

    /// Tests the job log, after a failure or a quiet time, and closes an open circuit when it
    /// answers again. Ends with `cancel`.
    pub(super) async fn probe(self: Arc<Self>, log: Arc<dyn JobLog>, cancel: CancellationToken) {
        loop {
            let pause = if self.is_open() { PROBE } else { QUIET };
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                // A failing log rings at every append: while the circuit is open, time rules.
                () = self.suspicion.notified(), if !self.is_open() => {}
            }
            let is_busy = self.last_success.lock().elapsed() < QUIET
                && self.failures.load(Ordering::Relaxed) == 0;
            if is_busy && !self.is_open() {
                continue;
            }
            let ping = tokio::time::timeout(PING_TIMEOUT, log.ping(PING_TIMEOUT)).await;
            match ping {
                Ok(Ok(())) => self.succeeded(),
                Ok(Err(_)) | Err(_) => self.open(),
            }
        }
    }

    fn open(&self) {
        if !self.is_open.swap(true, Ordering::Relaxed) {
            tracing::warn!("job log is away, durable publishes are refused");
        }
    }

    fn close(&self) {
        if self.is_open.swap(false, Ordering::Relaxed) {
            tracing::info!("job log is back, durable publishes are accepted");
        }
    }
}
