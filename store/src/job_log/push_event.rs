//! The job of a push to make.

use bytes::Bytes;
use shared::events::{PushEvent, TOPIC_PUSHES, TYPE_PUSH_REQUESTED};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Job, ReceivedJob};

/// Makes the job of a push; `source` is who asks for it, such as `/wyd/gateway`.
///
/// # Errors
/// When the event cannot be written as JSON, or its time is no time.
pub fn push_job(event: &PushEvent, source: &str) -> Result<Job, crate::BoxError> {
    let nanoseconds = i128::from(event.requested_at_ms) * 1_000_000;
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanoseconds)?.format(&Rfc3339)?;
    let headers = [
        ("ce_specversion", "1.0".to_owned()),
        ("ce_id", event.id.to_string()),
        ("ce_source", source.to_owned()),
        ("ce_type", TYPE_PUSH_REQUESTED.to_owned()),
        ("ce_time", time),
        ("content-type", "application/json".to_owned()),
    ];
    Ok(Job {
        topic: TOPIC_PUSHES.to_owned(),
        key: event.user.clone(),
        headers: headers
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
        value: Bytes::from(serde_json::to_vec(event)?),
    })
}

/// Reads the push of a job.
///
/// # Errors
/// In plain words, why this job can never be understood.
pub fn push_event(job: &ReceivedJob) -> Result<PushEvent, String> {
    match job.header("ce_type") {
        Some(TYPE_PUSH_REQUESTED) => {}
        Some(other) => return Err(format!("unknown event type {other:?}")),
        None => return Err("header ce_type is missing".to_owned()),
    }
    serde_json::from_slice(&job.value).map_err(|error| error.to_string())
}
