//! The archive in SQLite: the embedded default, one file, one writer.

use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use shared::events::PublicationEvent;
use shared::ids::{ChannelName, MessageId};
use sqlx::Row as _;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use uuid::Uuid;

use super::row::{Bounds, Row, rows};
use super::{Appended, ArchiveError, ConsumerPosition, MessageArchive, NOT_MIGRATED, PageQuery};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// How long a writer waits for another one.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Readers beside the one writer.
const CONNECTIONS: u32 = 4;

const INSERT: &str = r#"
INSERT INTO messages (channel, epoch, "offset", id, kind, user_id, info, data, tags, published_at_ms)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"#;
const PAGE: &str = r#"
SELECT channel, epoch, "offset", id, kind, user_id, info, data, tags, published_at_ms
FROM messages
WHERE channel = ?1 AND "offset" > ?2 AND "offset" < ?3 AND (?4 IS NULL OR epoch = ?4)
ORDER BY "offset" LIMIT ?5"#;
const PAGE_REVERSE: &str = r#"
SELECT channel, epoch, "offset", id, kind, user_id, info, data, tags, published_at_ms
FROM messages
WHERE channel = ?1 AND "offset" > ?2 AND "offset" < ?3 AND (?4 IS NULL OR epoch = ?4)
ORDER BY "offset" DESC LIMIT ?5"#;

/// The archive in SQLite.
#[derive(Debug, Clone)]
pub struct SqliteArchive {
    pool: SqlitePool,
}

impl SqliteArchive {
    /// Opens the file, and checks that the schema is this version's.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    pub async fn open(url: &str) -> Result<Self, ArchiveError> {
        let pool = open_file(url, CONNECTIONS).await?;
        let applied: Vec<i64> =
            sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success")
                .fetch_all(&pool)
                .await?;
        let is_current = MIGRATIONS
            .iter()
            .all(|migration| applied.contains(&migration.version));
        if is_current {
            Ok(Self { pool })
        } else {
            Err(ArchiveError::Schema(NOT_MIGRATED.to_owned()))
        }
    }
}

/// Opens an SQLite file, made when it is missing.
pub(crate) async fn open_file(url: &str, connections: u32) -> Result<SqlitePool, sqlx::Error> {
    let options = SqliteConnectOptions::from_str(url)?
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // With WAL this survives a crash of the process; `Full` also one of the machine.
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_TIMEOUT);
    SqlitePoolOptions::new()
        .max_connections(connections)
        .connect_with(options)
        .await
}

/// Brings the schema to this version.
pub(super) async fn migrate(url: &str) -> Result<(), ArchiveError> {
    let pool = open_file(url, 1).await?;
    MIGRATIONS.run(&pool).await?;
    pool.close().await;
    Ok(())
}

#[async_trait]
impl MessageArchive for SqliteArchive {
    async fn append(
        &self,
        batch: &[PublicationEvent],
        positions: &[ConsumerPosition],
    ) -> Result<Appended, ArchiveError> {
        let rows = rows(batch)?;
        // Immediate: two writers wait for each other instead of failing half way.
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let mut appended = Appended::default();
        for row in &rows {
            if insert(&mut transaction, row).await? {
                appended.inserted += 1;
            } else if !is_known(&mut transaction, row).await? {
                appended.conflicting.push(MessageId::from(row.id));
            }
        }
        let movable = if appended.conflicting.is_empty() {
            positions
        } else {
            &[]
        };
        for position in movable {
            sqlx::query(
                "INSERT INTO consumer_positions (group_name, topic, partition, next_offset)
                 VALUES (?, ?, ?, ?)
                 ON CONFLICT (group_name, topic, partition)
                 DO UPDATE SET next_offset = max(next_offset, excluded.next_offset)",
            )
            .bind(&position.group)
            .bind(&position.topic)
            .bind(position.partition)
            .bind(position.next_offset)
            .execute(&mut *transaction)
            .await?;
        }
        transaction.commit().await?;
        appended.known = batch.len() - appended.inserted - appended.conflicting.len();
        Ok(appended)
    }

    async fn consumer_position(
        &self,
        group: &str,
        topic: &str,
        partition: i32,
    ) -> Result<Option<i64>, ArchiveError> {
        let position = sqlx::query_scalar(
            "SELECT next_offset FROM consumer_positions
             WHERE group_name = ? AND topic = ? AND partition = ?",
        );
        let position = position.bind(group).bind(topic).bind(partition);
        Ok(position.fetch_optional(&self.pool).await?)
    }

    async fn page(
        &self,
        channel: &ChannelName,
        query: PageQuery,
    ) -> Result<Vec<PublicationEvent>, ArchiveError> {
        let bounds = Bounds::of(&query);
        let found = sqlx::query(if query.reverse { PAGE_REVERSE } else { PAGE })
            .bind(channel.as_str())
            .bind(bounds.above)
            .bind(bounds.below)
            .bind(query.epoch.map(|epoch| epoch.to_string()))
            .bind(bounds.limit)
            .fetch_all(&self.pool)
            .await?;
        found.iter().map(|row| read(row)?.into_event()).collect()
    }

    async fn ping(&self) -> Result<(), ArchiveError> {
        sqlx::query("SELECT 1").execute(&self.pool).await?;
        Ok(())
    }
}

async fn insert(connection: &mut sqlx::SqliteConnection, row: &Row) -> Result<bool, ArchiveError> {
    let inserted = sqlx::query(INSERT)
        .bind(&row.channel)
        .bind(&row.epoch)
        .bind(row.offset)
        .bind(row.id.to_string())
        .bind(&row.kind)
        .bind(&row.user_id)
        .bind(&row.info)
        .bind(&row.data)
        .bind(&row.tags)
        .bind(row.published_at_ms)
        .execute(connection)
        .await?;
    Ok(inserted.rows_affected() > 0)
}

/// True when the message is stored; remembers this place when it is stored at another one.
async fn is_known(
    connection: &mut sqlx::SqliteConnection,
    row: &Row,
) -> Result<bool, ArchiveError> {
    let id = row.id.to_string();
    let stored: Option<(String, String, i64)> =
        sqlx::query_as(r#"SELECT channel, epoch, "offset" FROM messages WHERE id = ?"#)
            .bind(&id)
            .fetch_optional(&mut *connection)
            .await?;
    let Some((channel, epoch, offset)) = stored else {
        return Ok(false);
    };
    if row.place() != (channel.as_str(), epoch.as_str(), offset) {
        sqlx::query(
            r#"INSERT INTO message_aliases (channel, epoch, "offset", id) VALUES (?, ?, ?, ?)
               ON CONFLICT DO NOTHING"#,
        )
        .bind(&row.channel)
        .bind(&row.epoch)
        .bind(row.offset)
        .bind(&id)
        .execute(connection)
        .await?;
    }
    Ok(true)
}

/// Reads a row; ids are text here.
fn read(row: &sqlx::sqlite::SqliteRow) -> Result<Row, ArchiveError> {
    let id: String = row.try_get("id")?;
    Ok(Row {
        channel: row.try_get("channel")?,
        epoch: row.try_get("epoch")?,
        offset: row.try_get("offset")?,
        id: Uuid::try_parse(&id).map_err(|error| ArchiveError::Unavailable(Box::new(error)))?,
        kind: row.try_get("kind")?,
        user_id: row.try_get("user_id")?,
        info: row.try_get("info")?,
        data: row.try_get("data")?,
        tags: row.try_get("tags")?,
        published_at_ms: row.try_get("published_at_ms")?,
    })
}
