//! Blocks: whom a user does not want to hear from.

use shared::ids::UserId;

use super::{Records, RecordsError};

const BLOCK: &str = "
INSERT INTO user_blocks (user_id, blocked_user_id, created_at_ms) SELECT $1, $2, $3
WHERE (SELECT COUNT(*) FROM user_blocks WHERE user_id = $1) < $4
ON CONFLICT (user_id, blocked_user_id) DO NOTHING";
const UNBLOCK: &str = "DELETE FROM user_blocks WHERE user_id = $1 AND blocked_user_id = $2";
const FIND: &str = "
SELECT blocked_user_id FROM user_blocks WHERE user_id = $1 AND blocked_user_id = $2";
const PAGE: &str = "
SELECT blocked_user_id, created_at_ms FROM user_blocks
WHERE user_id = $1 AND blocked_user_id > $2 ORDER BY blocked_user_id LIMIT $3";

/// A user whom another one blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    /// The blocked user.
    pub user: UserId,
    /// Since when, Unix milliseconds.
    pub since_ms: i64,
}

impl Records {
    /// Blocks a user for another one, who may block at most `limit`.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn block(
        &self,
        user: &UserId,
        blocked: &UserId,
        limit: u32,
        now_ms: i64,
    ) -> Result<(), RecordsError> {
        let inserted = sqlx::query(BLOCK)
            .bind(user.as_str())
            .bind(blocked.as_str())
            .bind(now_ms)
            .bind(i64::from(limit))
            .execute(&self.pool)
            .await?;
        if inserted.rows_affected() > 0 || self.is_blocked(user, blocked).await? {
            return Ok(());
        }
        Err(RecordsError::Limit(format!(
            "a user blocks at most {limit} others"
        )))
    }

    /// Ends a block; false when there was none.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn unblock(&self, user: &UserId, blocked: &UserId) -> Result<bool, RecordsError> {
        let removed = sqlx::query(UNBLOCK)
            .bind(user.as_str())
            .bind(blocked.as_str())
            .execute(&self.pool)
            .await?;
        Ok(removed.rows_affected() > 0)
    }

    /// True when `user` blocks `other`.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn is_blocked(&self, user: &UserId, other: &UserId) -> Result<bool, RecordsError> {
        let found: Option<String> = sqlx::query_scalar(FIND)
            .bind(user.as_str())
            .bind(other.as_str())
            .fetch_optional(&self.pool)
            .await?;
        Ok(found.is_some())
    }

    /// Lists whom a user blocks, by name, behind `after`.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn blocks(
        &self,
        user: &UserId,
        after: &str,
        limit: u32,
    ) -> Result<Vec<Blocked>, RecordsError> {
        let rows: Vec<(String, i64)> = sqlx::query_as(PAGE)
            .bind(user.as_str())
            .bind(after)
            .bind(i64::from(limit))
            .fetch_all(&self.pool)
            .await?;
        Ok(rows
            .into_iter()
            .map(|(user, since_ms)| Blocked {
                user: user.into(),
                since_ms,
            })
            .collect())
    }
}
