//! What is noted on a job that failed, in its headers: `docs/wire.md` describes them.

use std::time::{SystemTime, UNIX_EPOCH};

use store::job_log::{Job, ReceivedJob};

const ATTEMPT: &str = "wyd-attempt";
const ERROR: &str = "wyd-error";
const ERROR_CLASS: &str = "wyd-error-class";
const FIRST_FAILURE: &str = "wyd-first-failure";
const NOT_BEFORE: &str = "wyd-not-before";
const SOURCE_TOPIC: &str = "wyd-source-topic";
const SOURCE_PARTITION: &str = "wyd-source-partition";
const SOURCE_OFFSET: &str = "wyd-source-offset";
/// All of ours begin so.
pub(crate) const PREFIX: &str = "wyd-";

/// Why a job is put aside.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    /// `poison`: it can never succeed. `temporary`: it may succeed later. `exhausted`: it was
    /// tried as often, or as long, as is allowed.
    pub(crate) class: &'static str,
    /// In plain words.
    pub(crate) error: String,
    /// Unix milliseconds before which it is not tried again; only for the retry topic.
    pub(crate) not_before_ms: Option<u64>,
}

impl Failure {
    pub(crate) fn poison(error: &str) -> Self {
        Self {
            class: "poison",
            error: error.to_owned(),
            not_before_ms: None,
        }
    }
}

/// Returns how often a job was tried before.
pub(crate) fn attempts(job: &ReceivedJob) -> u32 {
    number(job, ATTEMPT).unwrap_or(0)
}

/// Returns when a job failed first, Unix milliseconds.
pub(crate) fn first_failure_ms(job: &ReceivedJob) -> Option<u64> {
    number(job, FIRST_FAILURE)
}

/// Returns before when a job must not be tried, Unix milliseconds.
pub(crate) fn not_before_ms(job: &ReceivedJob) -> u64 {
    number(job, NOT_BEFORE).unwrap_or(0)
}

/// Returns the topic that a job was appended to first.
pub(crate) fn source_topic(job: &ReceivedJob) -> &str {
    job.header(SOURCE_TOPIC).unwrap_or(&job.topic)
}

/// Returns where a job was first: its name through retries and dead letters.
pub(crate) fn source(job: &ReceivedJob) -> (String, i32, i64) {
    (
        source_topic(job).to_owned(),
        number(job, SOURCE_PARTITION).unwrap_or(job.partition),
        number(job, SOURCE_OFFSET).unwrap_or(job.offset),
    )
}

/// Makes the job that keeps a failed one in `topic`: the original, plus where it was first, how
/// often it was tried and what was wrong.
pub(crate) fn failed_job(topic: String, job: &ReceivedJob, failure: &Failure) -> Job {
    let source = |name, here: String| {
        let first = job.header(name).map(str::to_owned);
        (name, first.unwrap_or(here))
    };
    let mut noted = vec![
        source(SOURCE_TOPIC, job.topic.clone()),
        source(SOURCE_PARTITION, job.partition.to_string()),
        source(SOURCE_OFFSET, job.offset.to_string()),
        source(FIRST_FAILURE, now_ms().to_string()),
        (ATTEMPT, (attempts(job) + 1).to_string()),
        (ERROR_CLASS, failure.class.to_owned()),
        (ERROR, failure.error.clone()),
    ];
    noted.extend(failure.not_before_ms.map(|at| (NOT_BEFORE, at.to_string())));
    let noted = noted
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value));
    Job {
        topic,
        key: job.key.clone(),
        headers: original_headers(job).chain(noted).collect(),
        value: job.value.clone(),
    }
}

/// Returns the headers that a job had before it failed.
pub(crate) fn original_headers(job: &ReceivedJob) -> impl Iterator<Item = (String, String)> {
    let is_original = |(name, _): &&(String, String)| !name.starts_with(PREFIX);
    job.headers.iter().filter(is_original).cloned()
}

/// Returns the time, Unix milliseconds.
pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn number<T: std::str::FromStr>(job: &ReceivedJob, name: &str) -> Option<T> {
    job.header(name)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn received(job: Job, offset: i64) -> ReceivedJob {
        ReceivedJob {
            topic: job.topic,
            partition: 3,
            offset,
            key: job.key,
            headers: job.headers,
            value: job.value,
        }
    }

    #[test]
    fn a_failed_job_names_where_it_was_first_and_counts_its_tries() {
        let job = Job {
            topic: "t".to_owned(),
            key: "k".to_owned(),
            headers: vec![("ce_type".to_owned(), "x".to_owned())],
            value: Bytes::from_static(b"1"),
        };
        let first = received(job, 7);
        let failure = Failure {
            class: "temporary",
            error: "away".to_owned(),
            not_before_ms: Some(5),
        };
        let again = received(failed_job("t.retry".to_owned(), &first, &failure), 1);
        assert_eq!((attempts(&again), not_before_ms(&again)), (1, 5));
        let dead = received(
            failed_job("t.dlq".to_owned(), &again, &Failure::poison("why")),
            0,
        );
        assert_eq!(source_topic(&dead), "t");
        assert_eq!(dead.header(SOURCE_PARTITION), Some("3"));
        assert_eq!(dead.header(SOURCE_OFFSET), Some("7"));
        assert_eq!(dead.header(ERROR), Some("why"));
        assert_eq!(dead.header(ERROR_CLASS), Some("poison"));
        assert_eq!(attempts(&dead), 2);
        assert_eq!(dead.header(NOT_BEFORE), None);
        assert_eq!(first_failure_ms(&dead), first_failure_ms(&again));
        assert_eq!((&dead.key, &dead.value), (&first.key, &first.value));
        let original: Vec<_> = original_headers(&dead).collect();
        assert_eq!(original, first.headers);
    }
}
