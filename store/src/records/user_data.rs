//! One user's data in the chat records: handed out, and erased.

use serde::Serialize;
use serde_json::{Map, Value};
use shared::ids::{ChannelName, UserId};
use sqlx::any::AnyRow;
use sqlx::{Column, Row};

use super::{Records, RecordsError};

/// What is kept about a user, by the name of the record.
const OF_USER: [(&str, &str); 8] = [
    (
        "device",
        "SELECT token, platform, app_version, created_at_ms, updated_at_ms
         FROM devices WHERE user_id = $1 ORDER BY token",
    ),
    (
        "membership",
        "SELECT channel, role, muted_until_ms, joined_at_ms
         FROM channel_members WHERE user_id = $1 ORDER BY channel",
    ),
    (
        "channel",
        "SELECT channel, kind, name, created_at_ms
         FROM channels WHERE created_by = $1 ORDER BY channel",
    ),
    (
        "invitation",
        "SELECT id, channel, user_id, created_by, created_at_ms, expires_at_ms
         FROM channel_invitations WHERE user_id = $1 OR created_by = $1 ORDER BY id",
    ),
    (
        "block",
        "SELECT blocked_user_id, created_at_ms
         FROM user_blocks WHERE user_id = $1 ORDER BY blocked_user_id",
    ),
    (
        "read_position",
        r#"SELECT channel, "offset", updated_at_ms
         FROM read_positions WHERE user_id = $1 ORDER BY channel"#,
    ),
    (
        "medium",
        "SELECT id, channel, state, file_name, content_type, size_bytes, sha256, created_at_ms
         FROM media WHERE user_id = $1 ORDER BY id",
    ),
    (
        "push",
        "SELECT message_id, token, state, at_ms
         FROM push_log WHERE user_id = $1 ORDER BY message_id, token",
    ),
];

/// What is gone at once; memberships end one by one, and media stay until their objects are gone.
const ERASE: [&str; 6] = [
    "DELETE FROM devices WHERE user_id = $1",
    "DELETE FROM channel_invitations WHERE user_id = $1 OR created_by = $1",
    "DELETE FROM user_blocks WHERE user_id = $1 OR blocked_user_id = $1",
    "DELETE FROM read_positions WHERE user_id = $1",
    "DELETE FROM push_log WHERE user_id = $1",
    "UPDATE channels SET created_by = '' WHERE created_by = $1",
];

/// One record about a user.
#[derive(Debug, Clone, Serialize)]
pub struct UserRecord {
    /// What it is: `device`, `membership`, `channel`, `invitation`, `block`, `read_position`,
    /// `medium` or `push`.
    pub record: &'static str,
    /// Its columns.
    pub row: Map<String, Value>,
}

/// What an erasure came to.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ErasedRecords {
    /// Records that are gone or no longer name the user.
    pub records: u64,
    /// Channels the user was taken out of.
    pub channels: Vec<ChannelName>,
    /// Media of the user: their rows and objects are still there.
    pub media: Vec<String>,
}

impl Records {
    /// Reads everything that is kept about a user.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn of_user(&self, user: &UserId) -> Result<Vec<UserRecord>, RecordsError> {
        let mut records = Vec::new();
        if user.is_anonymous() {
            return Ok(records);
        }
        for (record, statement) in OF_USER {
            let rows = sqlx::query(statement)
                .bind(user.as_str())
                .fetch_all(&self.pool)
                .await?;
            for row in &rows {
                let row = columns(row)?;
                records.push(UserRecord { record, row });
            }
        }
        Ok(records)
    }

    /// Removes a user from the records; doing it again removes what came since.
    ///
    /// Media rows stay, and are named: whoever deletes the objects needs them.
    ///
    /// # Errors
    /// See [`RecordsError`]; a part may be done then, and doing it again does the rest.
    pub async fn erase_user(&self, user: &UserId) -> Result<ErasedRecords, RecordsError> {
        let mut erased = ErasedRecords::default();
        if user.is_anonymous() {
            return Ok(erased);
        }
        let names = "SELECT channel FROM channel_members WHERE user_id = $1 ORDER BY channel";
        for name in self.texts(names, user).await? {
            let channel = ChannelName::new(&name)
                .map_err(|error| RecordsError::Unavailable(Box::new(error)))?;
            // One by one: a channel that loses its owner needs another one.
            if self.remove_member(&channel, user).await? {
                erased.records += 1;
                erased.channels.push(channel);
            }
        }
        let mut transaction = self.pool.begin().await?;
        for statement in ERASE {
            let done = sqlx::query(statement)
                .bind(user.as_str())
                .execute(&mut *transaction)
                .await?;
            erased.records += done.rows_affected();
        }
        transaction.commit().await?;
        let media = "SELECT id FROM media WHERE user_id = $1 ORDER BY id";
        erased.media = self.texts(media, user).await?;
        Ok(erased)
    }

    async fn texts(
        &self,
        statement: &'static str,
        user: &UserId,
    ) -> Result<Vec<String>, RecordsError> {
        let texts = sqlx::query_scalar(statement).bind(user.as_str());
        Ok(texts.fetch_all(&self.pool).await?)
    }
}

/// Makes an object of a row: its columns are texts and whole numbers.
fn columns(row: &AnyRow) -> Result<Map<String, Value>, RecordsError> {
    let mut object = Map::new();
    for column in row.columns() {
        let value = match row.try_get::<i64, _>(column.ordinal()) {
            Ok(number) => Value::from(number),
            Err(_) => Value::from(row.try_get::<String, _>(column.ordinal())?),
        };
        object.insert(column.name().to_owned(), value);
    }
    Ok(object)
}
