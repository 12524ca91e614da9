//! Takes jobs for a while before it hands them out, so that a burst is seen as a whole.

use std::time::Duration;

use async_trait::async_trait;
use store::job_log::{JobLogError, JobSource, ReceivedJob};
use tokio::time::Instant;

/// Bytes of jobs that are gathered at most.
const BYTES_MAX: usize = 16 << 20;

/// A source whose batches hold all jobs of a window of time.
pub(crate) struct Windowed {
    inner: Box<dyn JobSource>,
    window: Duration,
    /// Taken and not handed out: what makes `next` cancel safe. Bounded by its caller's `max` and
    /// by [`BYTES_MAX`].
    taken: Vec<ReceivedJob>,
    /// When the first of them was taken.
    began: Option<Instant>,
}

impl Windowed {
    pub(crate) fn new(inner: Box<dyn JobSource>, window: Duration) -> Self {
        Self {
            inner,
            window,
            taken: Vec::new(),
            began: None,
        }
    }

    fn bytes(&self) -> usize {
        self.taken.iter().map(|job| job.value.len()).sum()
    }
}

#[async_trait]
impl JobSource for Windowed {
    async fn next(
        &mut self,
        max: usize,
        _linger: Duration,
    ) -> Result<Vec<ReceivedJob>, JobLogError> {
        loop {
            let room = max.saturating_sub(self.taken.len());
            let end = self.began.map(|began| began + self.window);
            let is_over = end.is_some_and(|end| Instant::now() >= end);
            if is_over || (room == 0 || self.bytes() >= BYTES_MAX) {
                break;
            }
            let next = self.inner.next(room, Duration::ZERO);
            let taken = match end {
                None => next.await?,
                Some(end) => match tokio::time::timeout_at(end, next).await {
                    Ok(taken) => taken?,
                    Err(_) => break,
                },
            };
            if !taken.is_empty() && self.began.is_none() {
                self.began = Some(Instant::now());
            }
            self.taken.extend(taken);
        }
        self.began = None;
        Ok(std::mem::take(&mut self.taken))
    }

    async fn commit(&mut self, partition: i32, next_offset: i64) -> Result<(), JobLogError> {
        self.inner.commit(partition, next_offset).await
    }

    async fn rest(&mut self, pause: Duration) -> Result<(), JobLogError> {
        self.inner.rest(pause).await
    }

    fn holds(&self, partition: i32) -> bool {
        self.inner.holds(partition)
    }

    fn lag(&self) -> Vec<(i32, i64)> {
        self.inner.lag()
    }
}
