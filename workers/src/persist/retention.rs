//! Retention: now and then, what is older than its namespace allows leaves the archive.
//!
//! Every worker of the role does it, each at its own times: doing it twice does no harm, and none
//! of them has to be chosen.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::RngExt;
use shared::config::Config;
use shared::ids::ChannelName;
use store::archive::{ArchiveError, MessageArchive};
use tokio_util::sync::CancellationToken;

/// Rows deleted in one transaction: few, so that appends do not wait for it.
const BATCH_ROWS: usize = 500;
/// Channels asked for at once.
const BATCH_CHANNELS: usize = 500;

/// Sweeps the archive again and again until cancelled.
pub async fn run(config: Arc<Config>, archive: Arc<dyn MessageArchive>, cancel: CancellationToken) {
    loop {
        let interval = config.worker.retention_interval;
        // Workers that started together do not sweep together.
        let pause = interval.mul_f64(rand::rng().random_range(0.5..1.5));
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        let swept = tokio::select! {
            () = cancel.cancelled() => return,
            swept = sweep(&config, &*archive, SystemTime::now()) => swept,
        };
        match swept {
            Ok(0) => {}
            Ok(rows) => tracing::info!(rows, "rows left the archive by retention"),
            Err(error) => tracing::warn!(%error, "retention stopped half way, trying again later"),
        }
    }
}

/// Deletes everything that is too old at a time; says how many rows that were.
///
/// # Errors
/// See [`ArchiveError`]; what is gone stays gone, the rest goes with the next sweep.
pub async fn sweep(
    config: &Config,
    archive: &dyn MessageArchive,
    now: SystemTime,
) -> Result<usize, ArchiveError> {
    let mut rows = 0;
    if !config.has_archive_retention() {
        return Ok(rows);
    }
    let mut last: Option<ChannelName> = None;
    loop {
        let channels = archive.channels(last.as_ref(), BATCH_CHANNELS).await?;
        for channel in &channels {
            let kept = config.options_of(channel).map(|o| o.archive_retention);
            if let Some(kept) = kept.filter(|kept| !kept.is_zero()) {
                rows += expire(archive, channel, now, kept).await?;
            }
        }
        match channels.into_iter().next_back() {
            Some(channel) => last = Some(channel),
            None => return Ok(rows),
        }
    }
}

async fn expire(
    archive: &dyn MessageArchive,
    channel: &ChannelName,
    now: SystemTime,
    kept: Duration,
) -> Result<usize, ArchiveError> {
    let line = now
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .saturating_sub(kept);
    let before_ms = u64::try_from(line.as_millis()).unwrap_or(u64::MAX);
    let mut rows = 0;
    loop {
        let expired = archive.expire(channel, before_ms, BATCH_ROWS).await?;
        rows += expired.rows;
        if expired.is_done {
            return Ok(rows);
        }
    }
}
