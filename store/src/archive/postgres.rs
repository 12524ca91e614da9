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

use super::row::{Bounds, Row, rows};
use super::{Appended, ArchiveError, ConsumerPosition, MessageArchive, NOT_MIGRATED, PageQuery};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// How long one statement may take, and how long a connection is waited for.
const STATEMENT_TIMEOUT: &str = "5s";
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// The guard is the primary key and the unique message id: looking first and inserting second
/// would let two consumers store the same message during a rebalance.
const INSERT: &str = r#"
INSERT INTO messages (channel, epoch, "offset", id, kind, user_id, info, data, tags, published_at_ms)
SELECT * FROM UNNEST($1::text[], $2::text[], $3::bigint[], $4::uuid[], $5::text[], $6::text[],
                     $7::text[], $8::text[], $9::text[], $10::bigint[])
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
const PAGE: &str = r#"
SELECT channel, epoch, "offset", id, kind, user_id, info, data, tags, published_at_ms
FROM messages
WHERE channel = $1 AND "offset" > $2 AND "offset" < $3 AND ($4::text IS NULL OR epoch = $4)
ORDER BY "offset" LIMIT $5"#;
const PAGE_REVERSE: &str = r#"
SELECT channel, epoch, "offset", id, kind, user_id, info, data, tags, published_at_ms
FROM messages
WHERE channel = $1 AND "offset" > $2 AND "offset" < $3 AND ($4::text IS NULL OR epoch = $4)
ORDER BY "offset" DESC LIMIT $5"#;

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
        let rows: Vec<Row> = sqlx::query_as(if query.reverse { PAGE_REVERSE } else { PAGE })
            .bind(channel.as_str())
            .bind(bounds.above)
            .bind(bounds.below)
            .bind(query.epoch.map(|epoch| epoch.to_string()))
            .bind(bounds.limit)
            .fetch_all(&self.pool)
            .await?;
        rows.into_iter().map(Row::into_event).collect()
    }

    async fn ping(&self) -> Result<(), ArchiveError> {
        sqlx::query("SELECT 1").execute(&self.pool).await?;
        Ok(())
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
