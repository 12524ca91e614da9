//! `user_export` and `user_erase`: what is kept about one user, in steps of bounded size.

use serde::Deserialize;
use serde_json::{Value, json};
use shared::ids::{MessageId, UserId};
use shared::protocol::ClientError;
use store::archive::{ArchiveError, MessageArchive};
use store::records::{ErasedRecords, RecordsError};

use super::Api;
use super::router::{Answer, parse};

/// Messages that one `user_export` answers when it does not say how many, and at most.
const EXPORT_LIMIT: usize = 100;
const EXPORT_LIMIT_MAX: usize = 1_000;
/// Media whose objects one `user_erase` deletes at most.
const ERASE_MEDIA_MAX: usize = 100;
/// Rows that one `user_erase` empties at most, and in one transaction.
const ERASE_ROWS_MAX: usize = 10_000;
const ERASE_BATCH: usize = 500;

#[derive(Debug, Deserialize)]
struct ExportParams {
    user: String,
    /// Where the page before ended.
    cursor: Option<MessageId>,
    limit: Option<usize>,
}

#[derive(Debug, Deserialize)]
struct EraseParams {
    user: String,
}

impl Api {
    /// The first page has the chat records, too; the last one has no cursor.
    pub(super) async fn user_export(&self, body: &[u8]) -> Answer {
        let params: ExportParams = parse(body)?;
        let user = named(&params.user)?;
        let mut rows: Vec<Value> = Vec::new();
        if let (None, Some(records)) = (params.cursor, &self.services.chat.records) {
            let found = records.of_user(&user).await;
            for record in found.map_err(|error| records_error(&error))? {
                rows.push(json!(record));
            }
        }
        let limit = params.limit.unwrap_or(EXPORT_LIMIT);
        let limit = limit.clamp(1, EXPORT_LIMIT_MAX);
        let mut cursor = None;
        if let Some(archive) = &self.services.chat.archive {
            let page = archive.of_user(user.as_str(), params.cursor, limit).await;
            let page = page.map_err(|error| archive_error(&error))?;
            if page.len() == limit {
                cursor = page.last().map(|event| event.id);
            }
            rows.extend(
                page.iter()
                    .map(|event| json!({ "record": "message", "row": event })),
            );
        }
        Ok(match cursor {
            Some(cursor) => json!({ "rows": rows, "cursor": cursor }),
            None => json!({ "rows": rows }),
        })
    }

    /// Called again until it is `done`.
    pub(super) async fn user_erase(&self, body: &[u8]) -> Answer {
        let params: EraseParams = parse(body)?;
        let user = named(&params.user)?;
        let erased = match &self.services.chat.records {
            Some(records) => records
                .erase_user(&user)
                .await
                .map_err(|error| records_error(&error))?,
            None => ErasedRecords::default(),
        };
        // All channels, also when a first attempt has ended between the rows and this.
        let told = self.services.chat.tell(&user, "", true).await;
        told.map_err(|error| error.client_error())?;
        let messages = match &self.services.chat.archive {
            Some(archive) => erase_messages(&**archive, &user).await?,
            None => 0,
        };
        let has_media = self.services.chat.media_store().is_some();
        let left = self.erase_media(erased.media).await?;
        tracing::info!(records = erased.records, messages, "a user was erased");
        Ok(json!({
            "records": erased.records,
            "channels": erased.channels,
            "media": left,
            "messages": messages,
            "done": messages < ERASE_ROWS_MAX && (left.is_empty() || !has_media),
        }))
    }

    /// Deletes media with their objects; returns those that are left, for the next call.
    async fn erase_media(&self, mut media: Vec<String>) -> Result<Vec<String>, ClientError> {
        let chat = &self.services.chat;
        let (Some(store), Some(records)) = (chat.media_store(), &chat.records) else {
            return Ok(media);
        };
        let left = media.split_off(media.len().min(ERASE_MEDIA_MAX));
        for medium in media {
            let erased = store::media::erase(store, &medium).await;
            erased.map_err(|error| crate::chat::error::ChatError::from(error).client_error())?;
            let deleted = records.delete_medium(&medium).await;
            deleted.map_err(|error| records_error(&error))?;
        }
        Ok(left)
    }
}

async fn erase_messages(archive: &dyn MessageArchive, user: &UserId) -> Result<usize, ClientError> {
    let mut messages = 0;
    while messages < ERASE_ROWS_MAX {
        let erased = archive.erase(user.as_str(), ERASE_BATCH).await;
        match erased.map_err(|error| archive_error(&error))? {
            0 => break,
            rows => messages += rows,
        }
    }
    Ok(messages)
}

/// The anonymous user is everybody: nobody's data can be told apart from another's.
fn named(user: &str) -> Result<UserId, ClientError> {
    let user = UserId::from(user);
    if user.is_anonymous() {
        Err(ClientError::BAD_REQUEST)
    } else {
        Ok(user)
    }
}

fn archive_error(error: &ArchiveError) -> ClientError {
    tracing::warn!(%error, "a user's messages could not be read or erased");
    ClientError::INTERNAL
}

fn records_error(error: &RecordsError) -> ClientError {
    tracing::warn!(%error, "a user's records could not be read or erased");
    ClientError::INTERNAL
}
