//! The archive: an append-only log of every publication of durable channels.
//!
//! `postgres`, `sqlite` and `mongo` each pass `tests/archive_conformance.rs`; [`open`] chooses.

mod mongo;
mod postgres;
mod retention;
mod row;
mod sql;
mod sqlite;
mod view;

use std::sync::Arc;

use async_trait::async_trait;
use shared::config::Config;
use shared::events::PublicationEvent;
use shared::ids::{ChannelName, Epoch, MessageId};

use crate::BoxError;

pub use mongo::MongoArchive;
pub use postgres::PostgresArchive;
pub use retention::Expired;
pub use sqlite::SqliteArchive;
pub(crate) use sqlite::open_file as open_sqlite_file;
pub use view::{ArchivedMessage, MessagePage, MessageQuery};

/// Most publications that one page holds.
pub const PAGE_LIMIT_MAX: usize = 1_000;
/// Where counting stops: more than that is "many".
pub const COUNT_MAX: u64 = 1_000;

/// Keeps every publication of durable channels for good.
///
/// Rows are unique by (channel, epoch, offset) and message ids name one row: a message id that
/// comes again at another position (published again after a failover) keeps the first row and is
/// remembered as its alias. Messages are a view of the log: their edits and deletions are rows of
/// their own. Reads go to the primary and see every append that was acknowledged.
#[async_trait]
pub trait MessageArchive: Send + Sync + 'static {
    /// Appends a batch and, with it, how far the consumer has read.
    ///
    /// The position stays where it is while a message conflicts: the caller puts that message
    /// aside first and moves the position by an empty append.
    ///
    /// One transaction where the store has them; else rows first, position second, so that a
    /// crash between the two repeats appends, which is harmless. Appending again is success.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    async fn append(
        &self,
        batch: &[PublicationEvent],
        positions: &[ConsumerPosition],
    ) -> Result<Appended, ArchiveError>;

    /// Returns where a consumer group goes on in a partition; `None` before its first append.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    async fn consumer_position(
        &self,
        group: &str,
        topic: &str,
        partition: i32,
    ) -> Result<Option<i64>, ArchiveError>;

    /// Reads a channel's log in the order of offsets.
    ///
    /// With an epoch it is that stream as it was: a message that was published again stands at
    /// its alias in the later one. Without, each message is there once.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    async fn page(
        &self,
        channel: &ChannelName,
        query: PageQuery,
    ) -> Result<Vec<PublicationEvent>, ArchiveError>;

    /// Reads a channel's messages as they are now: edits applied, deleted ones as tombstones.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    async fn messages(
        &self,
        channel: &ChannelName,
        query: MessageQuery,
    ) -> Result<MessagePage, ArchiveError>;

    /// Finds one message of a channel as it is now.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    async fn message(
        &self,
        channel: &ChannelName,
        id: MessageId,
    ) -> Result<Option<ArchivedMessage>, ArchiveError>;

    /// Counts a channel's messages above an offset that somebody else wrote and that are neither
    /// deleted nor erased; stops at [`COUNT_MAX`].
    ///
    /// # Errors
    /// See [`ArchiveError`].
    async fn count(
        &self,
        channel: &ChannelName,
        after_offset: u64,
        not_by_user: &str,
    ) -> Result<u64, ArchiveError>;

    /// Returns the offset at or below which rows may be gone by retention; `None`: all are there.
    ///
    /// A reader asks after it has read rows: the floor is raised before rows go, so that no hole
    /// is ever seen without it.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    async fn floor(&self, channel: &ChannelName) -> Result<Option<u64>, ArchiveError>;

    /// Lists channels that have rows, in the store's own order, behind `after`.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    async fn channels(
        &self,
        after: Option<&ChannelName>,
        limit: usize,
    ) -> Result<Vec<ChannelName>, ArchiveError>;

    /// Deletes a channel's oldest rows as far as they were published before a time, at most
    /// `limit` (the store caps it at 1,000), and raises the floor. Any number may do it at once.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    async fn expire(
        &self,
        channel: &ChannelName,
        before_ms: u64,
        limit: usize,
    ) -> Result<Expired, ArchiveError>;

    /// Reads what a user published, in all channels, in the order of message ids.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    async fn of_user(
        &self,
        user: &str,
        after: Option<MessageId>,
        limit: usize,
    ) -> Result<Vec<PublicationEvent>, ArchiveError>;

    /// Makes tombstones of rows that a user published and of others' edits of them, at most
    /// `limit` of the user's own (the store caps it at 1,000); says how many. Offsets stay.
    ///
    /// Called until it says 0. What is archived later (it may still be on its way) needs a later
    /// call. The anonymous user has no rows here.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    async fn erase(&self, user: &str, limit: usize) -> Result<usize, ArchiveError>;

    /// Answers when the store does.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    async fn ping(&self) -> Result<(), ArchiveError>;
}

/// How far a consumer group has read a partition: the next offset to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerPosition {
    /// The group.
    pub group: String,
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The next offset to read.
    pub next_offset: i64,
}

/// What an append came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Appended {
    /// Rows that are new.
    pub inserted: usize,
    /// Events that the archive had already.
    pub known: usize,
    /// Messages whose place another message has: a broken promise of whoever gave the offsets.
    /// They were not stored.
    pub conflicting: Vec<MessageId>,
}

/// Which part of a channel's archive to read.
///
/// Offsets of durable channels never restart, so they order a channel over all its epochs.
#[derive(Debug, Clone, Default)]
pub struct PageQuery {
    /// Only offsets above.
    pub after: Option<u64>,
    /// Only offsets below.
    pub before: Option<u64>,
    /// Only this epoch.
    pub epoch: Option<Epoch>,
    /// At most so many; the store caps it at 1,000.
    pub limit: usize,
    /// Newest first.
    pub reverse: bool,
}

/// Why the archive failed; each variant says what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The store did not answer or was busy: retry the same call.
    #[error("archive is not available")]
    Unavailable(#[source] BoxError),
    /// The store will never accept this row.
    #[error("archive refuses the row: {0}")]
    Refused(String),
    /// The schema is missing or of another version: run `wyd migrate`.
    #[error("archive schema is not ready: {0}")]
    Schema(String),
}

/// Opens the configured archive: MongoDB when its address is set, else SQL.
///
/// # Errors
/// [`ArchiveError::Schema`] when it was not migrated, [`ArchiveError::Unavailable`] when it does
/// not answer; `None` when no archive is configured.
pub async fn open(config: &Config) -> Result<Option<Arc<dyn MessageArchive>>, ArchiveError> {
    if let Some(url) = &config.mongo.url {
        return Ok(Some(Arc::new(MongoArchive::open(url.expose()).await?)));
    }
    let Some(url) = &config.database.url else {
        return Ok(None);
    };
    let connections_max = config.database.connections_max;
    if url.expose().starts_with("sqlite:") {
        return Ok(Some(Arc::new(SqliteArchive::open(url.expose()).await?)));
    }
    let archive = PostgresArchive::open(url.expose(), connections_max).await?;
    Ok(Some(Arc::new(archive)))
}

/// Brings every configured database to this version's schema.
///
/// # Errors
/// See [`ArchiveError`].
pub async fn migrate(config: &Config) -> Result<(), ArchiveError> {
    if let Some(url) = &config.database.url {
        if url.expose().starts_with("sqlite:") {
            sqlite::migrate(url.expose()).await?;
        } else {
            postgres::migrate(url.expose()).await?;
        }
    }
    if let Some(url) = &config.mongo.url {
        mongo::migrate(url.expose()).await?;
    }
    Ok(())
}

/// What a store says of a schema that is not there.
pub(crate) const NOT_MIGRATED: &str = "tables are missing or of another version; run `wyd migrate`";

/// Returns a limit that a store takes.
fn capped(limit: usize) -> i64 {
    i64::try_from(limit.min(PAGE_LIMIT_MAX)).unwrap_or(0)
}

/// Reads a number that is never below 0.
fn unsigned(number: i64) -> Result<u64, ArchiveError> {
    u64::try_from(number).map_err(|error| ArchiveError::Unavailable(Box::new(error)))
}

fn channel_name(text: &str) -> Result<ChannelName, ArchiveError> {
    ChannelName::new(text).map_err(|error| ArchiveError::Unavailable(Box::new(error)))
}

/// Returns a number that stores keep with a sign.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Returns now as Unix milliseconds.
fn now_ms() -> i64 {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(since_epoch.unwrap_or_default().as_millis()).unwrap_or(i64::MAX)
}

impl From<sqlx::Error> for ArchiveError {
    fn from(error: sqlx::Error) -> Self {
        // 42P01: PostgreSQL's undefined table.
        let database = error.as_database_error();
        let is_missing = database.is_some_and(|error| {
            error.code().as_deref() == Some("42P01") || error.message().contains("no such table")
        });
        if is_missing {
            return Self::Schema(NOT_MIGRATED.to_owned());
        }
        // Class 22 (data exception) and 54 (limit exceeded): the same row will fail for ever.
        let code = database.and_then(sqlx::error::DatabaseError::code);
        if code.is_some_and(|code| code.starts_with("22") || code.starts_with("54")) {
            return Self::Refused(error.to_string());
        }
        Self::Unavailable(Box::new(error))
    }
}

impl From<sqlx::migrate::MigrateError> for ArchiveError {
    fn from(error: sqlx::migrate::MigrateError) -> Self {
        match error {
            sqlx::migrate::MigrateError::Execute(error) => error.into(),
            other => Self::Schema(other.to_string()),
        }
    }
}
