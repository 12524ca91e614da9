//! Media rows: what was announced, what was uploaded, what came of it.

use serde::{Deserialize, Serialize};
use shared::ids::{ChannelName, MediaId};
use sqlx::Row;
use sqlx::any::AnyRow;

use super::{Records, RecordsError};

/// How far a medium is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MediaState {
    /// Announced; its bytes are not there yet.
    Pending,
    /// Its bytes wait to be checked.
    Uploaded,
    /// Everybody in the channel may have it.
    Ready,
    /// It will never be ready; the reason says why.
    Rejected,
}

impl MediaState {
    fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Uploaded => "uploaded",
            Self::Ready => "ready",
            Self::Rejected => "rejected",
        }
    }
}

/// A medium.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Medium {
    /// Its id.
    pub id: MediaId,
    /// Where it belongs.
    pub channel: ChannelName,
    /// Who announced it.
    pub user: String,
    /// How far it is.
    pub state: MediaState,
    /// The user's name for it.
    pub file_name: String,
    /// Content type as declared.
    pub content_type: String,
    /// Bytes as declared.
    pub size: u64,
    /// SHA-256 as declared, 64 hexadecimal digits.
    pub sha256: String,
    /// The upload in parts that is under way; empty: none.
    pub upload: String,
    /// What was made of it, when it is ready.
    pub result: Option<MediaResult>,
    /// Why it was rejected: `code: text`.
    pub reason: String,
    /// When it was announced, Unix milliseconds.
    pub created_at_ms: u64,
}

/// What was made of a medium.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MediaResult {
    /// Content type of the kept file.
    pub content_type: String,
    /// Its bytes.
    pub size: u64,
    /// What only pictures have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub picture: Option<PictureResult>,
}

/// What only pictures have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PictureResult {
    /// Pixels, upright.
    pub width: u32,
    /// Pixels, upright.
    pub height: u32,
    /// A blur of it to show before it is loaded (blurha.sh).
    pub blurhash: String,
    /// From the smallest to the largest.
    pub thumbnails: Vec<Thumbnail>,
}

/// A thumbnail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thumbnail {
    /// The longest side that was asked for: its name.
    pub side: u32,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Its content type.
    pub content_type: String,
}

/// What one user may announce.
#[derive(Debug, Clone, Copy)]
pub struct MediaQuota {
    /// Media that wait for their upload.
    pub pending_max: usize,
    /// Bytes since `since_ms`.
    pub bytes_max: u64,
    /// Begin of the time that bytes are counted in, Unix milliseconds.
    pub since_ms: u64,
}

/// What announcing a medium came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MediaCreated {
    /// It is new.
    New,
    /// It was announced before, so.
    Known(Box<Medium>),
    /// Too many of the user's media wait for their upload.
    TooManyPending,
    /// The user has announced too many bytes lately.
    TooManyBytes,
}

const COLUMNS: &str = "id, channel, user_id, state, file_name, content_type, size_bytes, sha256, \
                       upload_id, result, reason, created_at_ms";

impl Records {
    /// Notes a new medium, unless its user has announced too much.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn create_medium(
        &self,
        medium: &Medium,
        quota: &MediaQuota,
    ) -> Result<MediaCreated, RecordsError> {
        // One statement: two requests at once cannot both take the last place.
        let created = sqlx::query(
            "INSERT INTO media (id, channel, user_id, state, file_name, content_type, size_bytes,
                                sha256, upload_id, result, reason, created_at_ms, updated_at_ms)
             SELECT $1, $2, $3, $4, $5, $6, CAST($7 AS BIGINT), $8, $9, '', '',
                    CAST($10 AS BIGINT), CAST($10 AS BIGINT)
             WHERE (SELECT count(*) FROM media WHERE user_id = $3 AND state = 'pending')
                   < CAST($11 AS BIGINT)
               AND (SELECT coalesce(sum(size_bytes), 0) FROM media
                    WHERE user_id = $3 AND created_at_ms > CAST($12 AS BIGINT))
                   <= CAST($13 AS BIGINT)
             ON CONFLICT (id) DO NOTHING",
        )
        .bind(medium.id.to_string())
        .bind(medium.channel.as_str())
        .bind(&medium.user)
        .bind(medium.state.as_str())
        .bind(&medium.file_name)
        .bind(&medium.content_type)
        .bind(signed(medium.size))
        .bind(&medium.sha256)
        .bind(&medium.upload)
        .bind(signed(medium.created_at_ms))
        .bind(signed(quota.pending_max as u64))
        .bind(signed(quota.since_ms))
        .bind(signed(quota.bytes_max) - signed(medium.size))
        .execute(&self.pool)
        .await?;
        if created.rows_affected() == 1 {
            return Ok(MediaCreated::New);
        }
        if let Some(known) = self.medium(medium.id).await? {
            return Ok(MediaCreated::Known(Box::new(known)));
        }
        let pending: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM media WHERE user_id = $1 AND state = 'pending'",
        )
        .bind(&medium.user)
        .fetch_one(&self.pool)
        .await?;
        Ok(match pending >= signed(quota.pending_max as u64) {
            true => MediaCreated::TooManyPending,
            false => MediaCreated::TooManyBytes,
        })
    }

    /// Returns a medium.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn medium(&self, id: MediaId) -> Result<Option<Medium>, RecordsError> {
        let query = format!("SELECT {COLUMNS} FROM media WHERE id = $1");
        let row = sqlx::query(sqlx::AssertSqlSafe(query))
            .bind(id.to_string())
            .fetch_optional(&self.pool)
            .await?;
        row.map(|row| medium_of(&row)).transpose()
    }

    /// Notes the upload in parts of a pending medium; empty: it is over.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn set_media_upload(&self, id: MediaId, upload: &str) -> Result<(), RecordsError> {
        sqlx::query("UPDATE media SET upload_id = $2 WHERE id = $1 AND state = 'pending'")
            .bind(id.to_string())
            .bind(upload)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Notes that a pending medium's bytes are there; true when nobody had noted it before.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn media_uploaded(&self, id: MediaId, now_ms: u64) -> Result<bool, RecordsError> {
        let done = sqlx::query(
            "UPDATE media SET state = 'uploaded', upload_id = '', updated_at_ms = $2
             WHERE id = $1 AND state = 'pending'",
        )
        .bind(id.to_string())
        .bind(signed(now_ms))
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Notes what was made of a medium; the first outcome stays.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn media_ready(
        &self,
        id: MediaId,
        result: &MediaResult,
        now_ms: u64,
    ) -> Result<(), RecordsError> {
        let result = serde_json::to_string(result)
            .map_err(|error| RecordsError::Refused(error.to_string()))?;
        self.end_medium(id, MediaState::Ready, &result, "", now_ms)
            .await
    }

    /// Notes why a medium will never be ready; the first outcome stays.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn media_rejected(
        &self,
        id: MediaId,
        reason: &str,
        now_ms: u64,
    ) -> Result<(), RecordsError> {
        self.end_medium(id, MediaState::Rejected, "", reason, now_ms)
            .await
    }

    /// Returns media that were announced before `before_ms` and never completed, oldest first.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn expired_media(
        &self,
        before_ms: u64,
        limit: usize,
    ) -> Result<Vec<Medium>, RecordsError> {
        let query = format!(
            "SELECT {COLUMNS} FROM media WHERE state = 'pending' AND created_at_ms < $1
             ORDER BY created_at_ms LIMIT $2"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(query))
            .bind(signed(before_ms))
            .bind(signed(limit as u64))
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(medium_of).collect()
    }

    async fn end_medium(
        &self,
        id: MediaId,
        state: MediaState,
        result: &str,
        reason: &str,
        now_ms: u64,
    ) -> Result<(), RecordsError> {
        sqlx::query(
            "UPDATE media SET state = $2, result = $3, reason = $4, upload_id = '', updated_at_ms = $5
             WHERE id = $1 AND state IN ('pending', 'uploaded')",
        )
        .bind(id.to_string())
        .bind(state.as_str())
        .bind(result)
        .bind(reason)
        .bind(signed(now_ms))
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

fn medium_of(row: &AnyRow) -> Result<Medium, RecordsError> {
    let text = |name: &str| row.try_get::<String, _>(name);
    let number = |name: &str| -> Result<u64, sqlx::Error> {
        let value: i64 = row.try_get(name)?;
        Ok(u64::try_from(value).unwrap_or_default())
    };
    let id = text("id")?;
    let unreadable = |what: &str| RecordsError::Refused(format!("media row {id:?} has no {what}"));
    let state = match text("state")?.as_str() {
        "pending" => MediaState::Pending,
        "uploaded" => MediaState::Uploaded,
        "ready" => MediaState::Ready,
        "rejected" => MediaState::Rejected,
        _ => return Err(unreadable("state of this version")),
    };
    let result = match state {
        MediaState::Ready => {
            let result = serde_json::from_str(&text("result")?);
            Some(result.map_err(|_| unreadable("readable result"))?)
        }
        _ => None,
    };
    Ok(Medium {
        id: MediaId::parse(&id).ok_or_else(|| unreadable("id"))?,
        channel: ChannelName::new(&text("channel")?).map_err(|_| unreadable("channel"))?,
        user: text("user_id")?,
        state,
        file_name: text("file_name")?,
        content_type: text("content_type")?,
        size: number("size_bytes")?,
        sha256: text("sha256")?,
        upload: text("upload_id")?,
        result,
        reason: text("reason")?,
        created_at_ms: number("created_at_ms")?,
    })
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
