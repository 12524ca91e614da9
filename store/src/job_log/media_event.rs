//! Jobs of uploaded media, as CloudEvents.

use bytes::Bytes;
use shared::events::{MediaEvent, TOPIC_UPLOADS, TYPE_MEDIA_UPLOADED};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Job, ReceivedJob};

/// Makes the job that has a medium checked.
///
/// # Errors
/// When the event cannot be written as JSON, or its time is no time.
pub fn media_job(event: &MediaEvent) -> Result<Job, crate::BoxError> {
    let nanoseconds = i128::from(event.uploaded_at_ms) * 1_000_000;
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanoseconds)?.format(&Rfc3339)?;
    let headers = [
        ("ce_specversion", "1.0".to_owned()),
        ("ce_id", event.id.to_string()),
        ("ce_source", "/wyd/gateway".to_owned()),
        ("ce_type", TYPE_MEDIA_UPLOADED.to_owned()),
        ("ce_subject", event.channel.to_string()),
        ("ce_time", time),
        ("content-type", "application/json".to_owned()),
    ];
    Ok(Job {
        topic: TOPIC_UPLOADS.to_owned(),
        key: event.id.to_string(),
        headers: headers
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
        value: Bytes::from(serde_json::to_vec(event)?),
    })
}

/// Reads the medium of a job.
///
/// # Errors
/// In plain words, why this job can never be understood.
pub fn media_event(job: &ReceivedJob) -> Result<MediaEvent, String> {
    match job.header("ce_type") {
        Some(TYPE_MEDIA_UPLOADED) => {}
        Some(other) => return Err(format!("unknown event type {other:?}")),
        None => return Err("header ce_type is missing".to_owned()),
    }
    if job.header("ce_specversion") != Some("1.0") {
        return Err("header ce_specversion is not 1.0".to_owned());
    }
    serde_json::from_slice(&job.value).map_err(|error| error.to_string())
}
