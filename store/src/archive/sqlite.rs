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

use super::retention::{Expired, Old};
use super::row::{Bounds, Row, rows};
use super::sql::{self, columns};
use super::view::{self, ArchivedMessage, MessageBounds, MessagePage, MessageQuery};
use super::{
    Appended, ArchiveError, COUNT_MAX, ConsumerPosition, MessageArchive, NOT_MIGRATED,
    PAGE_LIMIT_MAX, PageQuery, capped, channel_name, now_ms, signed, unsigned,
};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// How long a writer waits for another one.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Readers beside the one writer.
const CONNECTIONS: u32 = 4;

const INSERT: &str = r#"
INSERT INTO messages (channel, epoch, "offset", id, kind, user_id, info, data, tags, published_at_ms,
                      target_id)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"#;
/// The last edit and the last deletion of each message.
const CHANGES: &str = concat!(
    "SELECT ",
    columns!(),
    r#" FROM messages WHERE rowid IN (
        SELECT (SELECT c.rowid FROM messages c
            WHERE c.target_id = wanted.value AND c.kind = kinds.value AND c.channel = $1
            ORDER BY c."offset" DESC LIMIT 1)
        FROM json_each($2) AS wanted, json_each('["edited","deleted"]') AS kinds)"#
);
const ERASE_EDITS: &str = "
UPDATE messages SET user_id = '', info = NULL, data = 'null', tags = '{}', erased_at_ms = $2
WHERE target_id IN (SELECT value FROM json_each($1)) AND kind = 'edited'";
const ERASE: &str = "
UPDATE messages SET user_id = '', info = NULL, data = 'null', tags = '{}', erased_at_ms = $2
WHERE id IN (SELECT value FROM json_each($1))";

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
        let statement = sql::page(query.epoch.is_some(), query.reverse);
        let mut page = sqlx::query(statement)
            .bind(channel.as_str())
            .bind(bounds.above)
            .bind(bounds.below)
            .bind(bounds.limit);
        if let Some(epoch) = &query.epoch {
            page = page.bind(epoch.as_str());
        }
        let found = page.fetch_all(&self.pool).await?;
        found.iter().map(|row| read(row)?.into_event()).collect()
    }

    async fn messages(
        &self,
        channel: &ChannelName,
        query: MessageQuery,
    ) -> Result<MessagePage, ArchiveError> {
        let bounds = MessageBounds::of(&query);
        let found = sqlx::query(sql::messages(bounds.by_time, query.reverse))
            .bind(channel.as_str())
            .bind(bounds.above)
            .bind(bounds.below)
            .bind(bounds.later)
            .bind(bounds.earlier)
            .bind(bounds.limit)
            .fetch_all(&self.pool)
            .await?;
        let rows = found.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let changes = self.changes(channel, &rows).await?;
        Ok(MessagePage {
            messages: view::messages(rows, &changes, query.reverse)?,
            floor: self.floor(channel).await?,
        })
    }

    async fn message(
        &self,
        channel: &ChannelName,
        id: MessageId,
    ) -> Result<Option<ArchivedMessage>, ArchiveError> {
        let found = sqlx::query(sql::MESSAGE)
            .bind(id.to_string())
            .bind(channel.as_str())
            .fetch_all(&self.pool)
            .await?;
        let rows = found.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let changes = self.changes(channel, &rows).await?;
        Ok(view::messages(rows, &changes, false)?.pop())
    }

    async fn count(
        &self,
        channel: &ChannelName,
        after_offset: u64,
        not_by_user: &str,
    ) -> Result<u64, ArchiveError> {
        let count = sqlx::query_scalar(sql::COUNT)
            .bind(channel.as_str())
            .bind(signed(after_offset))
            .bind(not_by_user)
            .bind(signed(COUNT_MAX))
            .fetch_one(&self.pool)
            .await?;
        unsigned(count)
    }

    async fn floor(&self, channel: &ChannelName) -> Result<Option<u64>, ArchiveError> {
        let floor: Option<i64> = sqlx::query_scalar(sql::FLOOR)
            .bind(channel.as_str())
            .fetch_optional(&self.pool)
            .await?;
        floor.map(unsigned).transpose()
    }

    async fn channels(
        &self,
        after: Option<&ChannelName>,
        limit: usize,
    ) -> Result<Vec<ChannelName>, ArchiveError> {
        let names: Vec<String> = sqlx::query_scalar(sql::CHANNELS)
            .bind(after.map_or("", ChannelName::as_str))
            .bind(capped(limit))
            .fetch_all(&self.pool)
            .await?;
        names.iter().map(|name| channel_name(name)).collect()
    }

    async fn expire(
        &self,
        channel: &ChannelName,
        before_ms: u64,
        limit: usize,
    ) -> Result<Expired, ArchiveError> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let oldest: Vec<(i64, i64)> = sqlx::query_as(sql::OLDEST)
            .bind(channel.as_str())
            .bind(capped(limit))
            .fetch_all(&mut *transaction)
            .await?;
        let old = Old::of(&oldest, signed(before_ms), limit.min(PAGE_LIMIT_MAX));
        let Some(top) = old.top else {
            return Ok(old.expired());
        };
        let aliases_top: Option<i64> = sqlx::query_scalar(sql::ALIASES_TOP)
            .bind(channel.as_str())
            .bind(top)
            .fetch_one(&mut *transaction)
            .await?;
        let floor = aliases_top.unwrap_or(top).max(top);
        for (statement, offset) in [
            (sql::RAISE_FLOOR, floor),
            (sql::DELETE_ALIASES, floor),
            (sql::DELETE_ROWS, top),
        ] {
            sqlx::query(statement)
                .bind(channel.as_str())
                .bind(offset)
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(old.expired())
    }

    async fn of_user(
        &self,
        user: &str,
        after: Option<MessageId>,
        limit: usize,
    ) -> Result<Vec<PublicationEvent>, ArchiveError> {
        if user.is_empty() {
            return Ok(Vec::new());
        }
        let found = sqlx::query(sql::OF_USER)
            .bind(user)
            .bind(after.map_or_else(String::new, |id| id.to_string()))
            .bind(capped(limit))
            .fetch_all(&self.pool)
            .await?;
        let rows = found.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        rows.into_iter().map(Row::into_event).collect()
    }

    async fn erase(&self, user: &str, limit: usize) -> Result<usize, ArchiveError> {
        if user.is_empty() {
            return Ok(0);
        }
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let ids: Vec<String> = sqlx::query_scalar(sql::IDS_OF_USER)
            .bind(user)
            .bind(capped(limit))
            .fetch_all(&mut *transaction)
            .await?;
        let listed = json_list(&ids);
        for statement in [ERASE_EDITS, ERASE] {
            sqlx::query(statement)
                .bind(&listed)
                .bind(now_ms())
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(ids.len())
    }

    async fn ping(&self) -> Result<(), ArchiveError> {
        sqlx::query("SELECT 1").execute(&self.pool).await?;
        Ok(())
    }
}

impl SqliteArchive {
    /// Reads what changed messages last.
    async fn changes(&self, channel: &ChannelName, rows: &[Row]) -> Result<Vec<Row>, ArchiveError> {
        let ids: Vec<String> = rows.iter().map(|row| row.id.to_string()).collect();
        let found = sqlx::query(CHANGES)
            .bind(channel.as_str())
            .bind(json_list(&ids))
            .fetch_all(&self.pool)
            .await?;
        found.iter().map(read).collect()
    }
}

/// Writes ids as the JSON array that `json_each` takes apart.
fn json_list(ids: &[String]) -> String {
    serde_json::Value::from(ids.to_vec()).to_string()
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
        .bind(row.target_id.map(|id| id.to_string()))
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
    let uuid = |text: &str| {
        Uuid::try_parse(text).map_err(|error| ArchiveError::Unavailable(Box::new(error)))
    };
    let id: String = row.try_get("id")?;
    let target: Option<String> = row.try_get("target_id")?;
    Ok(Row {
        channel: row.try_get("channel")?,
        epoch: row.try_get("epoch")?,
        offset: row.try_get("offset")?,
        id: uuid(&id)?,
        kind: row.try_get("kind")?,
        user_id: row.try_get("user_id")?,
        info: row.try_get("info")?,
        data: row.try_get("data")?,
        tags: row.try_get("tags")?,
        published_at_ms: row.try_get("published_at_ms")?,
        target_id: target.as_deref().map(uuid).transpose()?,
        erased_at_ms: row.try_get("erased_at_ms")?,
    })
}
