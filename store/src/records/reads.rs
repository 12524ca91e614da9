//! Read positions: how far a user has read a channel.

use shared::ids::{ChannelName, UserId};

use super::{Records, RecordsError};

const MARK: &str = r#"
INSERT INTO read_positions (user_id, channel, "offset", updated_at_ms) VALUES ($1, $2, $3, $4)
ON CONFLICT (user_id, channel) DO UPDATE
    SET "offset" = excluded."offset", updated_at_ms = excluded.updated_at_ms
    WHERE read_positions."offset" < excluded."offset""#;
const FIND: &str = r#"
SELECT "offset" FROM read_positions WHERE user_id = $1 AND channel = $2"#;

impl Records {
    /// Moves a read position on, never back; says where it is now.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn mark_read(
        &self,
        user: &UserId,
        channel: &ChannelName,
        offset: i64,
        now_ms: i64,
    ) -> Result<i64, RecordsError> {
        sqlx::query(MARK)
            .bind(user.as_str())
            .bind(channel.as_str())
            .bind(offset)
            .bind(now_ms)
            .execute(&self.pool)
            .await?;
        let position = self.read_position(user, channel).await?;
        Ok(position.unwrap_or(offset))
    }

    /// Returns the last offset that a user has read; `None`: nothing yet.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn read_position(
        &self,
        user: &UserId,
        channel: &ChannelName,
    ) -> Result<Option<i64>, RecordsError> {
        let offset = sqlx::query_scalar(FIND)
            .bind(user.as_str())
            .bind(channel.as_str())
            .fetch_optional(&self.pool)
            .await?;
        Ok(offset)
    }
}
