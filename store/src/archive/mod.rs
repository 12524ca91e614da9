//! The archive: an append-only log of every publication of durable channels.
//!
//! `postgres`, `sqlite` and `mongo` each pass `tests/archive_conformance.rs`; [`open`] chooses.

mod mongo;
mod postgres;
mod row;
mod sqlite;

use std::sync::Arc;

use async_trait::async_trait;
use shared::config::Config;
use shared::events::PublicationEvent;
use shared::ids::{ChannelName, Epoch, MessageId};

use crate::BoxError;

pub use mongo::MongoArchive;
pub use postgres::PostgresArchive;
pub use sqlite::SqliteArchive;
pub(crate) use sqlite::open_file as open_sqlite_file;

/// Most publications that one page holds.
pub const PAGE_LIMIT_MAX: usize = 1_000;

/// Keeps every publication of durable channels for good.
///
/// Rows are unique by (channel, epoch, offset) and message ids name one row: a message id that
/// comes again at another position (published again after a failover) keeps the first row and is
/// remembered as its alias. Reads go to the primary and see every append that was acknowledged.
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

    /// Reads a channel in the order of offsets.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    async fn page(
        &self,
        channel: &ChannelName,
        query: PageQuery,
    ) -> Result<Vec<PublicationEvent>, ArchiveError>;

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
