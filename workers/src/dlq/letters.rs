//! Finding dead letters and sending them back to where they came from.
//!
//! A letter that was sent back gets a mark beside it in the same topic, so that sending back twice
//! sends once. A crash between the two sends it twice, which handlers absorb: they are idempotent.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use shared::events::dead_letter_topic;
use store::job_log::{Job, JobLog, JobLogError, JobPosition, ReceivedJob};

use crate::consumer::attempt::{self, original_headers};

/// Says that a record of the dead-letter topic is a mark, and of which letter.
const MARK_PARTITION: &str = "wyd-redriven-partition";
const MARK_OFFSET: &str = "wyd-redriven-offset";
/// Unix milliseconds of the redrive.
const MARK_AT: &str = "wyd-redriven-at";

/// A dead letter.
#[derive(Debug, Clone)]
pub struct Letter {
    /// The record: key and value are the original job's, headers with what was noted.
    pub job: ReceivedJob,
    /// When it was sent back, Unix milliseconds.
    pub redriven_at_ms: Option<u64>,
}

/// Which letters are meant; every condition that is set must hold.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only this one.
    pub position: Option<JobPosition>,
    /// The job's key: a channel, a user or a media id.
    pub key: Option<String>,
    /// Text in the error.
    pub error: Option<String>,
    /// `poison` or `exhausted`.
    pub class: Option<String>,
    /// First failed at this time or later, Unix milliseconds.
    pub since_ms: Option<u64>,
    /// Also those that were sent back already.
    pub with_redriven: bool,
}

impl Letter {
    /// Returns why it is dead.
    pub fn error(&self) -> &str {
        self.job.header("wyd-error").unwrap_or("not noted")
    }

    /// Returns the kind of failure: `poison` or `exhausted`.
    pub fn class(&self) -> &str {
        self.job.header("wyd-error-class").unwrap_or("poison")
    }

    /// Returns how often it was tried.
    pub fn attempts(&self) -> u32 {
        attempt::attempts(&self.job)
    }

    /// Returns when it failed first, Unix milliseconds.
    pub fn first_failure_ms(&self) -> Option<u64> {
        attempt::first_failure_ms(&self.job)
    }

    /// Returns the topic it came from.
    pub fn source_topic(&self) -> &str {
        attempt::source_topic(&self.job)
    }
}

impl Filter {
    fn means(&self, letter: &Letter) -> bool {
        let job = &letter.job;
        self.position.is_none_or(|at| at == job.position())
            && self.key.as_ref().is_none_or(|key| *key == job.key)
            && self
                .error
                .as_ref()
                .is_none_or(|text| letter.error().contains(text))
            && self
                .class
                .as_ref()
                .is_none_or(|class| class == letter.class())
            && self
                .since_ms
                .is_none_or(|since| letter.first_failure_ms().is_some_and(|at| at >= since))
            && (self.with_redriven || letter.redriven_at_ms.is_none())
    }
}

/// Lists a topic's dead letters, oldest first.
///
/// # Errors
/// See [`JobLogError`].
pub async fn list(
    job_log: &dyn JobLog,
    topic: &str,
    filter: &Filter,
) -> Result<Vec<Letter>, JobLogError> {
    let mut scan = job_log.scan(&dead_letter_topic(topic)).await?;
    let mut letters = Vec::new();
    let mut known = HashSet::new();
    let mut redriven: HashMap<JobPosition, u64> = HashMap::new();
    loop {
        let jobs = scan.next().await?;
        if jobs.is_empty() {
            break;
        }
        for job in jobs {
            match mark(&job) {
                Some((position, at_ms)) => {
                    redriven.insert(position, at_ms);
                }
                // Written twice by a worker that died in between: the first one stands for both.
                None if known.insert(attempt::source(&job)) => letters.push(Letter {
                    job,
                    redriven_at_ms: None,
                }),
                None => {}
            }
        }
    }
    for letter in &mut letters {
        letter.redriven_at_ms = redriven.get(&letter.job.position()).copied();
    }
    letters.retain(|letter| filter.means(letter));
    Ok(letters)
}

/// Sends a letter back to the topic it came from, as it was before it failed.
///
/// # Errors
/// See [`JobLogError`]; send it back again then.
pub async fn redrive(job_log: &dyn JobLog, letter: &Letter) -> Result<JobPosition, JobLogError> {
    let original = Job {
        topic: letter.source_topic().to_owned(),
        key: letter.job.key.clone(),
        headers: original_headers(&letter.job).collect(),
        value: letter.job.value.clone(),
    };
    let position = job_log.append(original).await?;
    let JobPosition { partition, offset } = letter.job.position();
    let mark = [
        (MARK_PARTITION, partition.to_string()),
        (MARK_OFFSET, offset.to_string()),
        (MARK_AT, attempt::now_ms().to_string()),
    ];
    let mark = Job {
        topic: letter.job.topic.clone(),
        key: letter.job.key.clone(),
        headers: mark
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
        value: Bytes::new(),
    };
    job_log.append(mark).await?;
    Ok(position)
}

fn mark(job: &ReceivedJob) -> Option<(JobPosition, u64)> {
    let position = JobPosition {
        partition: job.header(MARK_PARTITION)?.parse().ok()?,
        offset: job.header(MARK_OFFSET)?.parse().ok()?,
    };
    Some((position, job.header(MARK_AT)?.parse().ok()?))
}
