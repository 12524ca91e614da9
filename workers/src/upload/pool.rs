//! A few threads for what takes memory and time: pictures are decoded here and nowhere else.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::{Failure, Rejection};

/// Memory is given out in pieces of this size.
const PIECE: u64 = 1 << 20;
/// How long past its deadline a thread may take to notice it.
const GRACE: Duration = Duration::from_secs(20);

/// Bounds how many pictures are worked on at once, and the memory they take together.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    memory: Arc<Semaphore>,
    pieces: u32,
    threads: Arc<Semaphore>,
    timeout: Duration,
}

impl Pool {
    /// Makes a pool of `memory` bytes and as many threads as there are processors.
    pub(crate) fn new(memory: u64, timeout: Duration) -> Self {
        let pieces = u32::try_from(memory / PIECE).unwrap_or(u32::MAX).max(1);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            memory: Arc::new(Semaphore::new(pieces as usize)),
            pieces,
            threads: Arc::new(Semaphore::new(threads)),
            timeout,
        }
    }

    /// Runs `work` on a thread of its own when `memory` bytes are free; it is told until when it
    /// may take. A thread that overstays keeps its memory until it ends.
    ///
    /// # Errors
    /// What `work` says; a rejection when it panics or does not end.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        memory: u64,
        work: impl FnOnce(Instant) -> Result<T, Rejection> + Send + 'static,
    ) -> Result<T, Failure> {
        let wanted = u32::try_from(memory.div_ceil(PIECE)).unwrap_or(u32::MAX);
        let pieces = wanted.clamp(1, self.pieces);
        let closed = |_| Failure::Later("the worker stops".to_owned());
        let memory = Arc::clone(&self.memory).acquire_many_owned(pieces).await;
        let memory = memory.map_err(closed)?;
        let thread = Arc::clone(&self.threads).acquire_owned().await;
        let thread = thread.map_err(closed)?;
        let deadline = Instant::now() + self.timeout;
        let working = tokio::task::spawn_blocking(move || {
            let _held = (memory, thread);
            work(deadline)
        });
        match tokio::time::timeout(self.timeout + GRACE, working).await {
            Ok(Ok(result)) => result.map_err(Failure::Rejected),
            // A decoder's bug: the picture is no good to anybody else either.
            Ok(Err(_)) => Err(Rejection::new("image_damaged", "the picture cannot be read").into()),
            Err(_) => Err(Rejection::new("image_too_slow", "the picture takes too long").into()),
        }
    }
}
