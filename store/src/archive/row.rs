//! One publication as text and numbers: the shape every store keeps.

use serde_json::value::RawValue;
use shared::events::{EventClientInfo, PublicationEvent, PublicationKind, TAG_ID, change_tags};
use shared::ids::{ChannelName, MessageId};
use shared::protocol::Tags;
use uuid::Uuid;

use super::{ArchiveError, PAGE_LIMIT_MAX, PageQuery};

/// One row of the archive.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(super) struct Row {
    pub(super) channel: String,
    pub(super) epoch: String,
    pub(super) offset: i64,
    pub(super) id: Uuid,
    pub(super) kind: String,
    pub(super) user_id: String,
    pub(super) info: Option<String>,
    pub(super) data: String,
    pub(super) tags: String,
    pub(super) published_at_ms: i64,
    /// The message that an edit or a deletion is for.
    pub(super) target_id: Option<Uuid>,
    /// When its author's data was removed.
    pub(super) erased_at_ms: Option<i64>,
}

impl Row {
    /// Makes the row of an event.
    pub(super) fn of(event: &PublicationEvent) -> Result<Self, ArchiveError> {
        let refused =
            |error: String| ArchiveError::Refused(format!("message {}: {error}", event.id));
        let json = |result: Result<String, serde_json::Error>| {
            result.map_err(|error| refused(error.to_string()))
        };
        let texts = [event.data.get(), &event.user, event.epoch.as_str()];
        if texts.iter().any(|text| text.contains('\0')) {
            return Err(refused("a NUL byte cannot be stored as text".to_owned()));
        }
        let target = event.target();
        if event.kind != PublicationKind::Message && target.is_none() {
            return Err(refused("a change names no message".to_owned()));
        }
        let number = |value: u64| i64::try_from(value).map_err(|error| refused(error.to_string()));
        Ok(Self {
            channel: event.channel.to_string(),
            epoch: event.epoch.to_string(),
            offset: number(event.offset)?,
            id: *event.id.as_uuid(),
            kind: event.kind.name().to_owned(),
            user_id: event.user.clone(),
            info: event
                .info
                .as_ref()
                .map(|info| json(serde_json::to_string(info)))
                .transpose()?,
            data: event.data.get().to_owned(),
            tags: json(serde_json::to_string(&event.tags))?,
            published_at_ms: number(event.published_at_ms)?,
            target_id: target.map(|target| *target.as_uuid()),
            erased_at_ms: None,
        })
    }

    /// Makes the event of a row.
    pub(super) fn into_event(self) -> Result<PublicationEvent, ArchiveError> {
        let id = self.id;
        let broken = |error: String| {
            ArchiveError::Unavailable(format!("row of message {id}: {error}").into())
        };
        let json = |error: serde_json::Error| broken(error.to_string());
        let info: Option<EventClientInfo> = self
            .info
            .as_deref()
            .map(serde_json::from_str)
            .transpose()
            .map_err(json)?;
        let kind = PublicationKind::of_name(&self.kind)
            .ok_or_else(|| broken(format!("unknown kind {:?}", self.kind)))?;
        let mut tags: Tags = serde_json::from_str(&self.tags).map_err(json)?;
        if self.erased_at_ms.is_some() {
            // The tags were the author's; what the row is, is not.
            let target = self
                .target_id
                .map(|target| change_tags(kind, target.into()));
            tags = target.unwrap_or_default();
            tags.insert(TAG_ID.to_owned(), id.to_string());
        }
        Ok(PublicationEvent {
            id: MessageId::from(id),
            kind,
            channel: ChannelName::new(&self.channel).map_err(|error| broken(error.to_string()))?,
            epoch: self.epoch.into(),
            offset: u64::try_from(self.offset).map_err(|error| broken(error.to_string()))?,
            user: self.user_id,
            info,
            data: RawValue::from_string(self.data).map_err(json)?,
            tags,
            published_at_ms: u64::try_from(self.published_at_ms)
                .map_err(|error| broken(error.to_string()))?,
        })
    }

    /// Returns the place that the row takes.
    pub(super) fn place(&self) -> (&str, &str, i64) {
        (&self.channel, &self.epoch, self.offset)
    }
}

/// Makes the rows of a batch: each place and each message once, in the order of places, so that
/// two writers of overlapping batches lock rows in one order.
pub(super) fn rows(batch: &[PublicationEvent]) -> Result<Vec<Row>, ArchiveError> {
    let mut rows = batch.iter().map(Row::of).collect::<Result<Vec<_>, _>>()?;
    rows.sort_by(|a, b| a.place().cmp(&b.place()));
    rows.dedup_by(|a, b| a.place() == b.place() && a.id == b.id);
    Ok(rows)
}

/// A page's bounds as numbers that every store takes.
pub(super) struct Bounds {
    pub(super) above: i64,
    pub(super) below: i64,
    pub(super) limit: i64,
}

impl Bounds {
    pub(super) fn of(query: &PageQuery) -> Self {
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        Self {
            above: query.after.map_or(-1, number),
            below: query.before.map_or(i64::MAX, number),
            limit: i64::try_from(query.limit.min(PAGE_LIMIT_MAX)).unwrap_or(0),
        }
    }
}
