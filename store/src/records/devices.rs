//! Devices: the push tokens of a user.

use shared::ids::UserId;

use super::{Records, RecordsError, known};

const REGISTER: &str = "
INSERT INTO devices (token, user_id, platform, app_version, created_at_ms, updated_at_ms)
VALUES ($1, $2, $3, $4, $5, $5)
ON CONFLICT (token) DO UPDATE SET user_id = excluded.user_id, platform = excluded.platform,
    app_version = excluded.app_version, updated_at_ms = excluded.updated_at_ms";
const KEEP_NEWEST: &str = "
DELETE FROM devices WHERE user_id = $1 AND token NOT IN (
    SELECT token FROM devices WHERE user_id = $1 ORDER BY updated_at_ms DESC, token LIMIT $2)";
const REMOVE: &str = "DELETE FROM devices WHERE token = $1 AND user_id = $2";
const OF_USER: &str = "
SELECT token, platform, app_version, updated_at_ms FROM devices
WHERE user_id = $1 ORDER BY updated_at_ms DESC, token";

/// What kind of device a token is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Platform {
    /// Android.
    Android,
    /// iOS, iPadOS.
    Ios,
    /// A browser.
    Web,
}

impl Platform {
    /// Returns the word that is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Android => "android",
            Self::Ios => "ios",
            Self::Web => "web",
        }
    }

    /// Reads the stored word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Android, Self::Ios, Self::Web]
            .into_iter()
            .find(|platform| platform.as_str() == word)
    }
}

/// One device of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The push token.
    pub token: String,
    /// What kind of device.
    pub platform: Platform,
    /// Version of the app on it, as the app names it.
    pub app_version: String,
    /// When it was last registered, Unix milliseconds.
    pub updated_at_ms: i64,
}

impl Records {
    /// Makes a token the user's, whoever had it before; the user keeps the `limit` devices that
    /// were registered last.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn register_device(
        &self,
        user: &UserId,
        device: &Device,
        limit: u32,
    ) -> Result<(), RecordsError> {
        let mut transaction = self.pool.begin().await?;
        sqlx::query(REGISTER)
            .bind(&device.token)
            .bind(user.as_str())
            .bind(device.platform.as_str())
            .bind(&device.app_version)
            .bind(device.updated_at_ms)
            .execute(&mut *transaction)
            .await?;
        sqlx::query(KEEP_NEWEST)
            .bind(user.as_str())
            .bind(i64::from(limit))
            .execute(&mut *transaction)
            .await?;
        Ok(transaction.commit().await?)
    }

    /// Removes a token that is the user's; false when it is not.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn remove_device(&self, user: &UserId, token: &str) -> Result<bool, RecordsError> {
        let removed = sqlx::query(REMOVE)
            .bind(token)
            .bind(user.as_str())
            .execute(&self.pool)
            .await?;
        Ok(removed.rows_affected() > 0)
    }

    /// Lists a user's devices, the last registered first.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn devices(&self, user: &UserId) -> Result<Vec<Device>, RecordsError> {
        let rows: Vec<(String, String, String, i64)> = sqlx::query_as(OF_USER)
            .bind(user.as_str())
            .fetch_all(&self.pool)
            .await?;
        rows.into_iter()
            .map(|(token, platform, app_version, updated_at_ms)| {
                Ok(Device {
                    token,
                    platform: known(&platform, Platform::parse(&platform))?,
                    app_version,
                    updated_at_ms,
                })
            })
            .collect()
    }
}
