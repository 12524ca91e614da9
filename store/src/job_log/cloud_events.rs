//! CloudEvents 1.0 in Kafka's binary mode: attributes are headers, the value is the data.

use bytes::Bytes;
use shared::events::{PublicationEvent, TOPIC_MESSAGES, TYPE_PUBLICATION};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Job;

/// Makes the job that brings a publication to the archive.
///
/// # Errors
/// When the event cannot be written as JSON, or its time is no time.
pub fn publication_job(event: &PublicationEvent) -> Result<Job, crate::BoxError> {
    let nanoseconds = i128::from(event.published_at_ms) * 1_000_000;
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanoseconds)?.format(&Rfc3339)?;
    let headers = [
        ("ce_specversion", "1.0".to_owned()),
        ("ce_id", event.id.to_string()),
        ("ce_source", "/wyd/gateway".to_owned()),
        ("ce_type", TYPE_PUBLICATION.to_owned()),
        ("ce_subject", event.channel.to_string()),
        ("ce_time", time),
        ("content-type", "application/json".to_owned()),
    ];
    Ok(Job {
        topic: TOPIC_MESSAGES,
        key: event.channel.to_string(),
        headers: headers
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
        value: Bytes::from(serde_json::to_vec(event)?),
    })
}
