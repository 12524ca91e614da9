//! The chat records: devices, channels and their members, read positions, media, pushes.
//!
//! One set of statements serves PostgreSQL and SQLite: they use only what both have (`ON CONFLICT`,
//! `RETURNING`, `$1`), text, 64-bit integers and nothing else. Times are Unix milliseconds.

mod blocks;
mod channels;
mod devices;
mod invitations;
mod media;
mod members;
mod pushes;
mod reads;
mod user_data;

use std::time::Duration;

use shared::config::DatabaseConfig;
use sqlx::AnyPool;
use sqlx::any::AnyPoolOptions;

use crate::BoxError;
use crate::archive::ArchiveError;

pub use blocks::Blocked;
pub use channels::{ChannelKind, ChannelRecord, Created, JoinedChannel, NewChannel};
pub use devices::{Device, Platform};
pub use invitations::{Accepted, NewInvitation};
pub use media::{
    MediaCreated, MediaQuota, MediaResult, MediaState, Medium, PictureResult, Thumbnail,
};
pub use members::{Added, Member, MemberLimits, NewMember, Role, RoleChange, Standing};
pub use pushes::{LedgerEntry, LedgerState, PushStanding, PushTarget};
pub use user_data::{ErasedRecords, UserRecord};

/// How long a connection is waited for.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one statement may take: a session that asks who is a member must not wait for ever.
const STATEMENT_TIMEOUT: &str = "SET statement_timeout = '5s'";

/// The chat records in the SQL database; clones share its connections.
#[derive(Debug, Clone)]
pub struct Records {
    pub(crate) pool: AnyPool,
}

/// Why the records failed; each variant says what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// The database did not answer or was busy: retry the same call.
    #[error("the database is not available")]
    Unavailable(#[source] BoxError),
    /// A limit is reached, and nothing was changed: something must go first.
    #[error("limit reached: {0}")]
    Limit(String),
    /// The database will never accept this row.
    #[error("the database refuses the row: {0}")]
    Refused(String),
    /// The schema is missing or of another version: run `wyd migrate`.
    #[error("the schema is not ready: {0}")]
    Schema(String),
}

impl Records {
    /// Connects to the configured SQL database; `None` when there is none.
    ///
    /// # Errors
    /// [`RecordsError::Schema`] when it was not migrated, [`RecordsError::Unavailable`] when it
    /// does not answer.
    pub async fn open(config: &DatabaseConfig) -> Result<Option<Self>, RecordsError> {
        let Some(url) = &config.url else {
            return Ok(None);
        };
        sqlx::any::install_default_drivers();
        let is_postgres = url.expose().starts_with("postgres");
        let pool = AnyPoolOptions::new()
            .max_connections(config.connections_max)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    if is_postgres {
                        sqlx::query(STATEMENT_TIMEOUT).execute(connection).await?;
                    }
                    Ok(())
                })
            })
            .connect(url.expose())
            .await?;
        let records = Self { pool };
        sqlx::query("SELECT token FROM devices LIMIT 1")
            .fetch_optional(&records.pool)
            .await?;
        Ok(Some(records))
    }
}

impl From<sqlx::Error> for RecordsError {
    fn from(error: sqlx::Error) -> Self {
        // The same databases say the same things of other tables.
        match ArchiveError::from(error) {
            ArchiveError::Unavailable(error) => Self::Unavailable(error),
            ArchiveError::Refused(why) => Self::Refused(why),
            ArchiveError::Schema(why) => Self::Schema(why),
        }
    }
}

/// Reads a word that this version wrote; another one is a later version's.
pub(crate) fn known<T>(word: &str, found: Option<T>) -> Result<T, RecordsError> {
    found.ok_or_else(|| RecordsError::Refused(format!("{word:?} is not known to this version")))
}

/// Reads a channel's name that was checked before it was stored.
pub(crate) fn channel_name(name: &str) -> Result<shared::ids::ChannelName, RecordsError> {
    known(name, shared::ids::ChannelName::new(name).ok())
}
