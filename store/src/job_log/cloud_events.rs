//! CloudEvents 1.0 in Kafka's binary mode: attributes are headers, the value is the data.
//!
//! `docs/wire.md` describes them byte for byte.

use bytes::Bytes;
use shared::events::{PublicationEvent, TOPIC_MESSAGES, TYPE_PUBLICATION};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Job, ReceivedJob};

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
        topic: TOPIC_MESSAGES.to_owned(),
        key: event.channel.to_string(),
        headers: headers
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
        value: Bytes::from(serde_json::to_vec(event)?),
    })
}

/// Reads the publication of a job.
///
/// # Errors
/// In plain words, why this job can never be understood.
pub fn publication_event(job: &ReceivedJob) -> Result<PublicationEvent, String> {
    match job.header("ce_type") {
        Some(TYPE_PUBLICATION) => {}
        Some(other) => return Err(format!("unknown event type {other:?}")),
        None => return Err("header ce_type is missing".to_owned()),
    }
    if job.header("ce_specversion") != Some("1.0") {
        return Err("header ce_specversion is not 1.0".to_owned());
    }
    serde_json::from_slice(&job.value).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::value::RawValue;
    use shared::events::PublicationKind;
    use shared::ids::{ChannelName, MessageId};
    use shared::protocol::Tags;

    fn received(job: Job) -> ReceivedJob {
        ReceivedJob {
            topic: job.topic,
            partition: 3,
            offset: 7,
            key: job.key,
            headers: job.headers,
            value: job.value,
        }
    }

    fn event() -> PublicationEvent {
        PublicationEvent {
            id: MessageId::now(),
            kind: PublicationKind::Message,
            channel: ChannelName::new("chat:1").unwrap(),
            epoch: "epoch".into(),
            offset: 5,
            user: "ann".to_owned(),
            info: None,
            data: RawValue::from_string(r#"{"text":"é 😀"}"#.to_owned()).unwrap(),
            tags: Tags::new(),
            published_at_ms: 1_700_000_000_123,
        }
    }

    #[test]
    fn a_publication_comes_back_as_it_was() {
        let event = event();
        let job = received(publication_job(&event).unwrap());
        assert_eq!(job.header("ce_time"), Some("2023-11-14T22:13:20.123Z"));
        let back = publication_event(&job).unwrap();
        assert_eq!(
            (back.id, back.offset, back.data.get()),
            (event.id, 5, event.data.get())
        );
    }

    #[test]
    fn what_is_no_publication_says_why() {
        let good = received(publication_job(&event()).unwrap());
        let without = |name: &str| ReceivedJob {
            headers: good
                .headers
                .iter()
                .filter(|(known, _)| known != name)
                .cloned()
                .collect(),
            ..good.clone()
        };
        assert!(
            publication_event(&without("ce_type"))
                .unwrap_err()
                .contains("ce_type")
        );
        assert!(publication_event(&without("ce_specversion")).is_err());
        let garbage = ReceivedJob {
            value: Bytes::from_static(b"\xff{"),
            ..good
        };
        assert!(publication_event(&garbage).is_err());
    }
}
