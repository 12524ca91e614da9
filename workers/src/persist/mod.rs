//! `persist`: publications of durable channels into the archive, each once, and out of it again
//! when their time is over (`retention`).

pub mod retention;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use shared::config::WorkerConfig;
use shared::events::{GROUP_PERSIST, PublicationEvent, TOPIC_MESSAGES};
use store::archive::{ArchiveError, ConsumerPosition, MessageArchive};
use store::job_log::{JobLog, JobLogError, ReceivedJob, publication_event};
use tokio_util::sync::CancellationToken;

use crate::consumer::{BatchOutcome, Consumer, Handler, Retry};
use crate::metrics::Metrics;

/// Name of the role.
pub const ROLE: &str = "persist";

/// Joins the consumer group; the returned future runs the worker until cancelled.
///
/// # Errors
/// [`JobLogError`] when the consumer group cannot be joined at all; later failures are retried.
pub async fn start(
    config: &WorkerConfig,
    job_log: Arc<dyn JobLog>,
    archive: Arc<dyn MessageArchive>,
    metrics: Metrics,
    cancel: CancellationToken,
) -> Result<impl Future<Output = ()> + Send + use<>, JobLogError> {
    let source = job_log
        .consume(GROUP_PERSIST, TOPIC_MESSAGES, Some(Arc::clone(&archive)))
        .await?;
    let consumer = Consumer {
        source,
        topic: TOPIC_MESSAGES,
        handler: Arc::new(Persist {
            archive,
            timeout: config.store_timeout,
        }),
        job_log,
        metrics,
        batch_jobs_max: config.batch_jobs_max,
        batch_linger: config.batch_linger,
    };
    Ok(consumer.run(cancel))
}

/// Appends publications to the archive.
struct Persist {
    archive: Arc<dyn MessageArchive>,
    timeout: Duration,
}

#[async_trait]
impl Handler for Persist {
    fn role(&self) -> &'static str {
        ROLE
    }

    async fn handle(
        &self,
        batch: &[ReceivedJob],
        next: &BTreeMap<i32, i64>,
    ) -> Result<BatchOutcome, Retry> {
        let mut outcome = BatchOutcome::default();
        let mut events: Vec<(usize, PublicationEvent)> = Vec::with_capacity(batch.len());
        for (place, job) in batch.iter().enumerate() {
            match publication_event(job) {
                Ok(event) => events.push((place, event)),
                Err(error) => outcome.poison.push((place, error)),
            }
        }
        // The position moves with the rows; with poison in the batch it moves after the dead
        // letters are safe.
        let positions = if outcome.poison.is_empty() {
            positions(next)
        } else {
            Vec::new()
        };
        self.append(events, &positions, &mut outcome).await?;
        Ok(outcome)
    }

    async fn settle(&self, next: &BTreeMap<i32, i64>) -> Result<(), Retry> {
        let settled = self.store(&[], &positions(next)).await;
        settled
            .map(|_| ())
            .map_err(|error| Retry(with_source(&error)))
    }
}

fn positions(next: &BTreeMap<i32, i64>) -> Vec<ConsumerPosition> {
    let position = |(partition, next_offset): (&i32, &i64)| ConsumerPosition {
        group: GROUP_PERSIST.to_owned(),
        topic: TOPIC_MESSAGES.to_owned(),
        partition: *partition,
        next_offset: *next_offset,
    };
    next.iter().map(position).collect()
}

/// What the dead letter of a message says whose place is taken.
const CONFLICT: &str = "another message has this place in the channel";

impl Persist {
    async fn append(
        &self,
        events: Vec<(usize, PublicationEvent)>,
        positions: &[ConsumerPosition],
        outcome: &mut BatchOutcome,
    ) -> Result<(), Retry> {
        outcome.event_times_ms = events
            .iter()
            .map(|(_, event)| event.published_at_ms)
            .collect();
        let batch: Vec<PublicationEvent> = events.iter().map(|(_, event)| event.clone()).collect();
        match self.store(&batch, positions).await {
            Ok(appended) => {
                outcome.done += appended.inserted;
                outcome.already_done += appended.known;
                for (place, event) in &events {
                    if appended.conflicting.contains(&event.id) {
                        outcome.poison.push((*place, CONFLICT.to_owned()));
                    }
                }
                Ok(())
            }
            Err(ArchiveError::Refused(_)) => self.append_singly(events, positions, outcome).await,
            Err(error) => Err(Retry(with_source(&error))),
        }
    }

    /// Finds the rows of a batch that the archive will never take; the others are kept.
    async fn append_singly(
        &self,
        events: Vec<(usize, PublicationEvent)>,
        positions: &[ConsumerPosition],
        outcome: &mut BatchOutcome,
    ) -> Result<(), Retry> {
        for (place, event) in events {
            match self.store(std::slice::from_ref(&event), &[]).await {
                Ok(appended) => {
                    outcome.done += appended.inserted;
                    outcome.already_done += appended.known;
                    if !appended.conflicting.is_empty() {
                        outcome.poison.push((place, CONFLICT.to_owned()));
                    }
                }
                Err(ArchiveError::Refused(reason)) => outcome.poison.push((place, reason)),
                Err(error) => return Err(Retry(with_source(&error))),
            }
        }
        if outcome.poison.is_empty() {
            self.store(&[], positions)
                .await
                .map_err(|error| Retry(with_source(&error)))?;
        }
        Ok(())
    }

    async fn store(
        &self,
        batch: &[PublicationEvent],
        positions: &[ConsumerPosition],
    ) -> Result<store::archive::Appended, ArchiveError> {
        let append = self.archive.append(batch, positions);
        match tokio::time::timeout(self.timeout, append).await {
            Ok(result) => result,
            Err(_) => Err(ArchiveError::Unavailable(
                "the store did not answer in time".into(),
            )),
        }
    }
}

fn with_source(error: &ArchiveError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
