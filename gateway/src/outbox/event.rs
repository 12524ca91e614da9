//! An outbox entry as the job that workers read.

use serde_json::value::RawValue;
use shared::events::{
    EventClientInfo, PublicationEvent, PublicationKind, TOPIC_MESSAGES, TYPE_PUBLICATION,
};
use shared::protocol::ClientInfo;
use store::job_log::Job;

use crate::broker::{BrokerError, OutboxEntry};

/// Makes the event of an entry.
///
/// # Errors
/// [`BrokerError::Corrupt`] when stored data is no JSON, or an entry has no message id.
pub(super) fn publication_event(entry: &OutboxEntry) -> Result<PublicationEvent, BrokerError> {
    let publication = &entry.publication;
    let id = publication
        .id
        .ok_or_else(|| BrokerError::Corrupt("an outbox entry without a message id".to_owned()))?;
    let info = publication.info.as_deref();
    Ok(PublicationEvent {
        id,
        kind: PublicationKind::Message,
        channel: entry.channel.clone(),
        epoch: entry.epoch.clone(),
        offset: publication.offset,
        user: info.map_or_else(String::new, |info| info.user.as_str().to_owned()),
        info: info.map(client_info).transpose()?,
        data: raw(&publication.data)?,
        tags: publication.tags.clone(),
        published_at_ms: publication.published_at_ms,
    })
}

fn client_info(info: &ClientInfo) -> Result<EventClientInfo, BrokerError> {
    Ok(EventClientInfo {
        user: info.user.as_str().to_owned(),
        client: info.client.to_string(),
        conn_info: info.conn_info.as_deref().map(raw).transpose()?,
        chan_info: info.chan_info.as_deref().map(raw).transpose()?,
    })
}

fn raw(json: &[u8]) -> Result<Box<RawValue>, BrokerError> {
    serde_json::from_slice(json).map_err(|error| BrokerError::Corrupt(error.to_string()))
}

/// Puts an event into a job: CloudEvents 1.0 in binary mode, as `docs/wire.md` describes.
///
/// # Errors
/// [`BrokerError::Corrupt`] when the event cannot be written.
pub(super) fn publication_job(event: &PublicationEvent) -> Result<Job, BrokerError> {
    let value =
        serde_json::to_vec(event).map_err(|error| BrokerError::Corrupt(error.to_string()))?;
    let header = |name: &str, value: String| (name.to_owned(), value);
    Ok(Job {
        topic: TOPIC_MESSAGES,
        key: event.channel.as_str().to_owned(),
        headers: vec![
            header("ce_specversion", "1.0".to_owned()),
            header("ce_type", TYPE_PUBLICATION.to_owned()),
            header("ce_source", "wyd".to_owned()),
            header("ce_id", event.id.to_string()),
            header("content-type", "application/json".to_owned()),
        ],
        value: value.into(),
    })
}
