//! An outbox entry as the event that workers read.

use serde_json::value::RawValue;
use shared::events::{EventClientInfo, PublicationEvent, PublicationKind};
use shared::protocol::ClientInfo;

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
        kind: PublicationKind::of_tags(&publication.tags),
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
