//! The job log inside the process: an SQLite file, one partition a topic.
//!
//! For `wyd dev` and single nodes: durable like Kafka's (an append resolves after its commit),
//! one consumer a group and topic, who is woken when something is appended. A job is deleted when
//! every group that ever consumed its topic is past it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row;
use sqlx::migrate::Migrator;
use sqlx::sqlite::SqlitePool;
use tokio::sync::Notify;

use super::{Job, JobLog, JobLogError, JobPosition, JobScan, JobSource, ReceivedJob};
use crate::archive::MessageArchive;
use crate::archive::open_sqlite_file;

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/jobs");

/// The one partition.
const PARTITION: i32 = 0;
/// A consumer looks by itself so often, should it miss a wake-up.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
const CONNECTIONS: u32 = 2;
/// Jobs that a scan reads at once.
const SCAN_JOBS: usize = 500;

impl From<sqlx::Error> for JobLogError {
    fn from(error: sqlx::Error) -> Self {
        Self::Unavailable(Box::new(error))
    }
}

/// The job log inside the process.
#[derive(Debug, Clone)]
pub struct EmbeddedJobLog {
    pool: SqlitePool,
    appended: Arc<Notify>,
}

impl EmbeddedJobLog {
    /// Opens the file, made when it is missing.
    ///
    /// # Errors
    /// See [`JobLogError`].
    pub async fn open(url: &str) -> Result<Self, JobLogError> {
        let pool = open_sqlite_file(url, CONNECTIONS).await?;
        let migrated = MIGRATIONS.run(&pool).await;
        migrated.map_err(|error| JobLogError::Unavailable(Box::new(error)))?;
        Ok(Self {
            pool,
            appended: Arc::new(Notify::new()),
        })
    }
}

#[async_trait]
impl JobLog for EmbeddedJobLog {
    async fn append(&self, job: Job) -> Result<JobPosition, JobLogError> {
        let headers = serde_json::to_string(&job.headers)
            .map_err(|error| JobLogError::Refused(error.to_string()))?;
        let appended =
            sqlx::query("INSERT INTO jobs (topic, key, headers, value) VALUES (?, ?, ?, ?)")
                .bind(&job.topic)
                .bind(&job.key)
                .bind(headers)
                .bind(&job.value[..])
                .execute(&self.pool)
                .await?;
        self.appended.notify_waiters();
        Ok(JobPosition {
            partition: PARTITION,
            offset: appended.last_insert_rowid(),
        })
    }

    async fn ping(&self, _timeout: Duration) -> Result<(), JobLogError> {
        sqlx::query("SELECT 1").execute(&self.pool).await?;
        Ok(())
    }

    async fn scan(&self, topic: &str) -> Result<Box<dyn JobScan>, JobLogError> {
        Ok(Box::new(EmbeddedScan {
            log: self.clone(),
            topic: topic.to_owned(),
            next: 0,
        }))
    }

    async fn consume(
        &self,
        group: &'static str,
        topic: &str,
        positions: Option<Arc<dyn MessageArchive>>,
    ) -> Result<Box<dyn JobSource>, JobLogError> {
        let known = match positions {
            Some(positions) => positions
                .consumer_position(group, topic, PARTITION)
                .await
                .map_err(|error| JobLogError::Unavailable(Box::new(error)))?
                // A store that knows nothing yet has none of the jobs.
                .or(Some(0)),
            None => None,
        };
        // The store's own position wins: it moved with the rows.
        let next: i64 = sqlx::query_scalar(
            "INSERT INTO group_positions (group_name, topic, next_id) VALUES (?1, ?2, ifnull(?3, 0))
             ON CONFLICT DO UPDATE SET next_id = ifnull(?3, next_id) RETURNING next_id",
        )
        .bind(group)
        .bind(topic)
        .bind(known)
        .fetch_one(&self.pool)
        .await?;
        Ok(Box::new(EmbeddedSource {
            log: self.clone(),
            group,
            topic: topic.to_owned(),
            next,
            behind: 0,
        }))
    }
}

/// The consumer of a topic.
struct EmbeddedSource {
    log: EmbeddedJobLog,
    group: &'static str,
    topic: String,
    next: i64,
    behind: i64,
}

#[async_trait]
impl JobSource for EmbeddedSource {
    async fn next(
        &mut self,
        max: usize,
        _linger: Duration,
    ) -> Result<Vec<ReceivedJob>, JobLogError> {
        loop {
            // Registered before looking: an append between the two is not slept through.
            let appended = self.log.appended.notified();
            let jobs = self.log.read(&self.topic, self.next, max).await?;
            if let Some(last) = jobs.last() {
                // Moved only here, after the last wait: a cancelled call hands out nothing.
                self.next = last.offset + 1;
                return Ok(jobs);
            }
            drop(tokio::time::timeout(LOOK_AGAIN, appended).await);
        }
    }

    async fn commit(&mut self, _partition: i32, next_offset: i64) -> Result<(), JobLogError> {
        sqlx::query("UPDATE group_positions SET next_id = ? WHERE group_name = ? AND topic = ?")
            .bind(next_offset)
            .bind(self.group)
            .bind(&self.topic)
            .execute(&self.log.pool)
            .await?;
        // What every group is past makes room.
        sqlx::query(
            "DELETE FROM jobs WHERE topic = ?1
             AND id < (SELECT min(next_id) FROM group_positions WHERE topic = ?1)",
        )
        .bind(&self.topic)
        .execute(&self.log.pool)
        .await?;
        self.behind = sqlx::query_scalar("SELECT count(*) FROM jobs WHERE topic = ? AND id >= ?")
            .bind(&self.topic)
            .bind(self.next)
            .fetch_one(&self.log.pool)
            .await?;
        Ok(())
    }

    async fn rest(&mut self, pause: Duration) -> Result<(), JobLogError> {
        tokio::time::sleep(pause).await;
        Ok(())
    }

    fn holds(&self, _partition: i32) -> bool {
        true
    }

    fn lag(&self) -> Vec<(i32, i64)> {
        vec![(PARTITION, self.behind)]
    }
}

/// A walk through a topic.
struct EmbeddedScan {
    log: EmbeddedJobLog,
    topic: String,
    next: i64,
}

#[async_trait]
impl JobScan for EmbeddedScan {
    async fn next(&mut self) -> Result<Vec<ReceivedJob>, JobLogError> {
        let jobs = self.log.read(&self.topic, self.next, SCAN_JOBS).await?;
        if let Some(last) = jobs.last() {
            self.next = last.offset + 1;
        }
        Ok(jobs)
    }
}

impl EmbeddedJobLog {
    async fn read(
        &self,
        topic: &str,
        from: i64,
        max: usize,
    ) -> Result<Vec<ReceivedJob>, JobLogError> {
        let rows = sqlx::query(
            "SELECT id, key, headers, value FROM jobs WHERE topic = ? AND id >= ? ORDER BY id LIMIT ?",
        )
        .bind(topic)
        .bind(from)
        .bind(i64::try_from(max).unwrap_or(i64::MAX))
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                let headers: String = row.try_get("headers")?;
                let value: Vec<u8> = row.try_get("value")?;
                Ok(ReceivedJob {
                    topic: topic.to_owned(),
                    partition: PARTITION,
                    offset: row.try_get("id")?,
                    key: row.try_get("key")?,
                    headers: serde_json::from_str(&headers).unwrap_or_default(),
                    value: value.into(),
                })
            })
            .collect()
    }
}
