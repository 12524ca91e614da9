//! Messages as readers see them: the log's rows with the last edit applied, deleted ones empty.
//!
//! Nothing is written when a message changes: its row, its edits and its deletion are joined when
//! they are read, so that it does not matter in which order they reached the archive.

use serde_json::value::RawValue;
use shared::events::{EditedData, EventClientInfo, PublicationKind};
use shared::ids::{Epoch, MessageId};
use shared::protocol::Tags;
use uuid::Uuid;

use super::row::Row;
use super::{ArchiveError, PAGE_LIMIT_MAX};

/// Which messages of a channel to read: all conditions hold together.
///
/// Offsets name a place for good: a page that is asked for again by offsets begins and ends where
/// it did. Times are for jumping to a day.
#[derive(Debug, Clone, Default)]
pub struct MessageQuery {
    /// Only offsets above.
    pub after: Option<u64>,
    /// Only offsets below.
    pub before: Option<u64>,
    /// Only later than this, Unix milliseconds.
    pub after_time_ms: Option<u64>,
    /// Only earlier than this, Unix milliseconds.
    pub before_time_ms: Option<u64>,
    /// At most so many; the store caps it at 1,000.
    pub limit: usize,
    /// Newest first.
    pub reverse: bool,
}

/// A part of a channel's messages.
#[derive(Debug, Clone, Default)]
pub struct MessagePage {
    /// The messages, in the order that was asked for.
    pub messages: Vec<ArchivedMessage>,
    /// Rows at or below this offset may be gone by retention; `None`: all are there.
    pub floor: Option<u64>,
}

/// A message as it is now.
#[derive(Debug, Clone)]
pub struct ArchivedMessage {
    /// Its id.
    pub id: MessageId,
    /// Identity of the stream that gave the offset.
    pub epoch: Epoch,
    /// Its place in the channel; edits do not move it.
    pub offset: u64,
    /// Who wrote it; empty for the server API, and after an erasure.
    pub user: String,
    /// The connection it came from.
    pub info: Option<EventClientInfo>,
    /// What it says now; `None` when it was deleted or erased.
    pub data: Option<Box<RawValue>>,
    /// Labels of the first publication.
    pub tags: Tags,
    /// When it was published, Unix milliseconds.
    pub published_at_ms: u64,
    /// When it was last edited.
    pub edited_at_ms: Option<u64>,
    /// When it was deleted or erased: what is left is a tombstone.
    pub deleted_at_ms: Option<u64>,
}

/// A message query's bounds as numbers that every store takes.
pub(super) struct MessageBounds {
    pub(super) above: i64,
    pub(super) below: i64,
    pub(super) later: i64,
    pub(super) earlier: i64,
    pub(super) limit: i64,
    pub(super) by_time: bool,
}

impl MessageBounds {
    pub(super) fn of(query: &MessageQuery) -> Self {
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        Self {
            above: query.after.map_or(-1, number),
            below: query.before.map_or(i64::MAX, number),
            later: query.after_time_ms.map_or(-1, number),
            earlier: query.before_time_ms.map_or(i64::MAX, number),
            limit: i64::try_from(query.limit.min(PAGE_LIMIT_MAX)).unwrap_or(0),
            by_time: query.after_time_ms.is_some() || query.before_time_ms.is_some(),
        }
    }
}

/// Makes the messages of rows and of the last changes of each; `reverse` is newest first.
pub(super) fn messages(
    rows: Vec<Row>,
    changes: &[Row],
    reverse: bool,
) -> Result<Vec<ArchivedMessage>, ArchiveError> {
    let mut messages = rows
        .into_iter()
        .map(|row| message(row, changes))
        .collect::<Result<Vec<_>, _>>()?;
    // A page by time comes in the order of times.
    messages.sort_by_key(|message| message.offset);
    if reverse {
        messages.reverse();
    }
    Ok(messages)
}

fn message(row: Row, changes: &[Row]) -> Result<ArchivedMessage, ArchiveError> {
    let change = |kind: PublicationKind, id: Uuid| {
        changes
            .iter()
            .find(move |row| row.target_id == Some(id) && row.kind == kind.name())
    };
    let deleted = change(PublicationKind::Deleted, row.id);
    let edit = change(PublicationKind::Edited, row.id).map(edit);
    let erased_at_ms = row.erased_at_ms;
    let event = row.into_event()?;
    let mut message = ArchivedMessage {
        id: event.id,
        epoch: event.epoch,
        offset: event.offset,
        user: event.user,
        info: event.info,
        data: Some(event.data),
        tags: event.tags,
        published_at_ms: event.published_at_ms,
        edited_at_ms: None,
        deleted_at_ms: None,
    };
    match edit {
        Some(Edit::Says(data, at)) => {
            message.data = Some(data);
            message.edited_at_ms = millis(at);
        }
        // What it said before must not come back.
        Some(Edit::Erased(at)) => message.deleted_at_ms = millis(at),
        Some(Edit::Broken) | None => {}
    }
    let gone = erased_at_ms.or(deleted.map(|row| row.published_at_ms));
    message.deleted_at_ms = gone.and_then(millis).or(message.deleted_at_ms);
    if message.deleted_at_ms.is_some() {
        message.data = None;
    }
    Ok(message)
}

/// What an edit's row came to.
enum Edit {
    Says(Box<RawValue>, i64),
    Erased(i64),
    /// Not written by a gateway: it changes nothing.
    Broken,
}

fn edit(row: &Row) -> Edit {
    if let Some(at) = row.erased_at_ms {
        return Edit::Erased(at);
    }
    match serde_json::from_str::<EditedData<'_>>(&row.data) {
        Ok(edited) => Edit::Says(edited.data.to_owned(), row.published_at_ms),
        Err(_) => Edit::Broken,
    }
}

fn millis(time: i64) -> Option<u64> {
    u64::try_from(time).ok()
}
