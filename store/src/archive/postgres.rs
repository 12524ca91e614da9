//! The archive in PostgreSQL: rows and consumer position in one transaction.

use std::collections::HashSet;
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use shared::events::PublicationEvent;
use shared::ids::{ChannelName, MessageId};
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use uuid::Uuid;

use super::retention::{Expired, Old};
use super::row::{Bounds, Row, rows};
use super::sql::{self, columns};
use super::view::{self, ArchivedMessage, MessageBounds, MessagePage, MessageQuery};
use super::{
    Appended, ArchiveError, COUNT_MAX, ConsumerPosition, MessageArchive, NOT_MIGRATED,
    PAGE_LIMIT_MAX, PageQuery, capped, channel_name, now_ms, signed, unsigned,
};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// How long one statement may take, and how long a connection is waited for.
const STATEMENT_TIMEOUT: &str = "5s";
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// The guard is the primary key and the unique message id: looking first and inserting second
/// would let two consumers store the same message during a rebalance.
const INSERT: &str = r#"
INSERT INTO messages (channel, epoch, "offset", id, kind, user_id, info, data, tags, published_at_ms,
                      target_id)
SELECT * FROM UNNEST($1::text[], $2::text[], $3::bigint[], $4::uuid[], $5::text[], $6::text[],
                     $7::text[], $8::text[], $9::text[], $10::bigint[], $11::uuid[])
ON CONFLICT DO NOTHING RETURNING id"#;
const FIND: &str = r#"SELECT channel, epoch, "offset", id FROM messages WHERE id = ANY($1)"#;
const INSERT_ALIAS: &str = r#"
INSERT INTO message_aliases (channel, epoch, "offset", id) VALUES ($1, $2, $3, $4)
ON CONFLICT DO NOTHING"#;
/// A slower consumer, or one that was thought dead, never moves a position back.
const MOVE_POSITION: &str = "
INSERT INTO consumer_positions (group_name, topic, partition, next_offset) VALUES ($1, $2, $3, $4)
ON CONFLICT (group_name, topic, partition)
DO UPDATE SET next_offset = GREATEST(consumer_positions.next_offset, EXCLUDED.next_offset)";
/// The last edit and the last deletion of each message.
const CHANGES: &str = concat!(
    "SELECT last.* FROM UNNEST($2::uuid[]) AS wanted(id)
     CROSS JOIN (VALUES ('edited'), ('deleted')) AS kinds(name)
     CROSS JOIN LATERAL (SELECT ",
    columns!(),
    r#" FROM messages
        WHERE target_id = wanted.id AND kind = kinds.name AND channel = $1
        ORDER BY "offset" DESC LIMIT 1) AS last"#
);
const ERASE_EDITS: &str = "
UPDATE messages SET user_id = '', info = NULL, data = 'null', tags = '{}', erased_at_ms = $2
WHERE target_id = ANY($1) AND kind = 'edited'";
const ERASE: &str = "
UPDATE messages SET user_id = '', info = NULL, data = 'null', tags = '{}', erased_at_ms = $2
WHERE id = ANY($1)";

/// The archive in PostgreSQL.
#[derive(Debug, Clone)]
pub struct PostgresArchive {
    pool: PgPool,
}

impl PostgresArchive {
    /// Connects, and checks that the schema is this version's.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    pub async fn open(url: &str, connections_max: u32) -> Result<Self, ArchiveError> {
        let archive = Self {
            pool: pool(url, connections_max).await?,
        };
        archive.check_schema().await?;
        Ok(archive)
    }

    async fn check_schema(&self) -> Result<(), ArchiveError> {
        let applied: Vec<i64> =
            sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success")
                .fetch_all(&self.pool)
                .await?;
        let is_current = MIGRATIONS
            .iter()
            .all(|migration| applied.contains(&migration.version));
        if is_current {
            Ok(())
        } else {
            Err(ArchiveError::Schema(NOT_MIGRATED.to_owned()))
        }
    }
}

async fn pool(url: &str, connections_max: u32) -> Result<PgPool, ArchiveError> {
    let options = PgConnectOptions::from_str(url)?
        .application_name("wyd")
        .options([("statement_timeout", STATEMENT_TIMEOUT)]);
    let pool = PgPoolOptions::new()
        .max_connections(connections_max)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .connect_with(options)
        .await?;
    Ok(pool)
}

/// Brings the schema to this version.
pub(super) async fn migrate(url: &str) -> Result<(), ArchiveError> {
    let options = PgConnectOptions::from_str(url)?;
    let pool = PgPoolOptions::new()
        .max_connections(2)
        .connect_with(options)
        .await?;
    MIGRATIONS.run(&pool).await?;
    Ok(())
}

#[async_trait]
impl MessageArchive for PostgresArchive {
    async fn append(
        &self,
        batch: &[PublicationEvent],
        positions: &[ConsumerPosition],
    ) -> Result<Appended, ArchiveError> {
        let rows = rows(batch)?;
        let mut transaction = self.pool.begin().await?;
        let inserted = insert(&mut transaction, &rows).await?;
        let known: Vec<&Row> = rows
            .iter()
            .filter(|row| !inserted.contains(&row.id))
            .collect();
        let conflicting = take_aliases(&mut transaction, &known).await?;
        let movable = if conflicting.is_empty() {
            positions
        } else {
            &[]
        };
        for position in movable {
            sqlx::query(MOVE_POSITION)
                .bind(&position.group)
                .bind(&position.topic)
                .bind(position.partition)
                .bind(position.next_offset)
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(Appended {
            inserted: inserted.len(),
            known: batch.len() - inserted.len() - conflicting.len(),
            conflicting,
        })
    }

    async fn consumer_position(
        &self,
        group: &str,
        topic: &str,
        partition: i32,
    ) -> Result<Option<i64>, ArchiveError> {
        let position = sqlx::query_scalar(
            "SELECT next_offset FROM consumer_positions
             WHERE group_name = $1 AND topic = $2 AND partition = $3",
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
        let mut page = sqlx::query_as(statement)
            .bind(channel.as_str())
            .bind(bounds.above)
            .bind(bounds.below)
            .bind(bounds.limit);
        if let Some(epoch) = &query.epoch {
            page = page.bind(epoch.as_str());
        }
        let rows: Vec<Row> = page.fetch_all(&self.pool).await?;
        rows.into_iter().map(Row::into_event).collect()
    }

    async fn messages(
        &self,
        channel: &ChannelName,
        query: MessageQuery,
    ) -> Result<MessagePage, ArchiveError> {
        let bounds = MessageBounds::of(&query);
        let rows: Vec<Row> = sqlx::query_as(sql::messages(bounds.by_time, query.reverse))
            .bind(channel.as_str())
            .bind(bounds.above)
            .bind(bounds.below)
            .bind(bounds.later)
            .bind(bounds.earlier)
            .bind(bounds.limit)
            .fetch_all(&self.pool)
            .await?;
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
        let rows: Vec<Row> = sqlx::query_as(sql::MESSAGE)
            .bind(*id.as_uuid())
            .bind(channel.as_str())
            .fetch_all(&self.pool)
            .await?;
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
        let mut transaction = self.pool.begin().await?;
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
        let rows: Vec<Row> = sqlx::query_as(sql::OF_USER)
            .bind(user)
            .bind(after.map_or(Uuid::nil(), |id| *id.as_uuid()))
            .bind(capped(limit))
            .fetch_all(&self.pool)
            .await?;
        rows.into_iter().map(Row::into_event).collect()
    }

    async fn erase(&self, user: &str, limit: usize) -> Result<usize, ArchiveError> {
        if user.is_empty() {
            return Ok(0);
        }
        let mut transaction = self.pool.begin().await?;
        let ids: Vec<Uuid> = sqlx::query_scalar(sql::IDS_OF_USER)
            .bind(user)
            .bind(capped(limit))
            .fetch_all(&mut *transaction)
            .await?;
        for statement in [ERASE_EDITS, ERASE] {
            sqlx::query(statement)
                .bind(&ids)
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

impl PostgresArchive {
    /// Reads what changed messages last.
    async fn changes(&self, channel: &ChannelName, rows: &[Row]) -> Result<Vec<Row>, ArchiveError> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let changes = sqlx::query_as(CHANGES)
            .bind(channel.as_str())
            .bind(rows.iter().map(|row| row.id).collect::<Vec<_>>());
        Ok(changes.fetch_all(&self.pool).await?)
    }
}

async fn insert(
    connection: &mut sqlx::PgConnection,
    rows: &[Row],
) -> Result<HashSet<Uuid>, ArchiveError> {
    let texts = |column: fn(&Row) -> &String| rows.iter().map(column).cloned().collect::<Vec<_>>();
    let ids: Vec<Uuid> = sqlx::query_scalar(INSERT)
        .bind(texts(|row| &row.channel))
        .bind(texts(|row| &row.epoch))
        .bind(rows.iter().map(|row| row.offset).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.id).collect::<Vec<_>>())
        .bind(texts(|row| &row.kind))
        .bind(texts(|row| &row.user_id))
        .bind(rows.iter().map(|row| row.info.clone()).collect::<Vec<_>>())
        .bind(texts(|row| &row.data))
        .bind(texts(|row| &row.tags))
        .bind(
            rows.iter()
                .map(|row| row.published_at_ms)
                .collect::<Vec<_>>(),
        )
        .bind(rows.iter().map(|row| row.target_id).collect::<Vec<_>>())
        .fetch_all(connection)
        .await?;
    Ok(ids.into_iter().collect())
}

/// Remembers known messages that came at another place; returns those whose place is taken.
async fn take_aliases(
    connection: &mut sqlx::PgConnection,
    known: &[&Row],
) -> Result<Vec<MessageId>, ArchiveError> {
    let mut conflicting = Vec::new();
    if known.is_empty() {
        return Ok(conflicting);
    }
    let ids: Vec<Uuid> = known.iter().map(|row| row.id).collect();
    let stored: Vec<(String, String, i64, Uuid)> = sqlx::query_as(FIND)
        .bind(ids)
        .fetch_all(&mut *connection)
        .await?;
    for row in known {
        match stored.iter().find(|(.., id)| *id == row.id) {
            Some((channel, epoch, offset, _)) if row.place() == (channel, epoch, *offset) => {}
            Some(_) => {
                sqlx::query(INSERT_ALIAS)
                    .bind(&row.channel)
                    .bind(&row.epoch)
                    .bind(row.offset)
                    .bind(row.id)
                    .execute(&mut *connection)
                    .await?;
            }
            None => conflicting.push(MessageId::from(row.id)),
        }
    }
    Ok(conflicting)
}
