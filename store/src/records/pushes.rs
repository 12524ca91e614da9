//! Pushes: who is to get one, and which were sent.

use std::collections::{HashMap, HashSet};

use shared::ids::ChannelName;
use sqlx::any::AnyRow;
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::{Records, RecordsError};

/// Rows of one statement at most: SQLite takes about 32,000 parameters.
const ROWS_MAX: usize = 1_000;
/// Rows that pruning deletes at once: a short lock, however much there is.
const PRUNED_MAX: i64 = 5_000;

const TITLE: &str = "SELECT name FROM channels WHERE channel = $1";
const TARGETS: &str = r#"
SELECT m.user_id, m.joined_offset, COALESCE(r."offset", 0) AS read_offset
FROM channel_members m
    LEFT JOIN read_positions r ON r.user_id = m.user_id AND r.channel = m.channel
WHERE m.channel = $1 AND m.user_id > $2 AND m.muted_until_ms <= $3 AND m.joined_offset < $4
    AND COALESCE(r."offset", 0) < $4
    AND EXISTS (SELECT 1 FROM devices d WHERE d.user_id = m.user_id)
ORDER BY m.user_id LIMIT $5"#;
const FORGET_DEVICE: &str = "DELETE FROM devices WHERE token = $1";
const PRUNE_LOG: &str = "
DELETE FROM push_log WHERE (message_id, token) IN
    (SELECT message_id, token FROM push_log WHERE at_ms < $1 LIMIT $2)";
const PRUNE_DEVICES: &str = "
DELETE FROM devices WHERE token IN
    (SELECT token FROM devices WHERE updated_at_ms < $1 LIMIT $2) AND updated_at_ms < $1";

/// A member who may get a push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushTarget {
    /// The user.
    pub user: String,
    /// The channel's top when the user joined.
    pub joined_offset: u64,
    /// The last message that the user has read.
    pub read_offset: u64,
}

/// How a member stands to a channel now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PushStanding {
    /// No pushes before this time, Unix milliseconds.
    pub muted_until_ms: u64,
    /// The last message that the user has read.
    pub read_offset: u64,
}

/// One push to one device, in the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LedgerEntry {
    /// The message, or the push's own id.
    pub message_id: Uuid,
    /// The device.
    pub token: String,
    /// The user.
    pub user: String,
    /// What a waiting push is replaced by; empty: nothing.
    pub collapse_key: String,
}

/// What a push in the ledger came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LedgerState {
    /// The provider has taken it.
    Sent,
    /// It will never be sent.
    Dropped,
    /// Its device is no more: deleted with it.
    TokenGone,
}

impl LedgerState {
    fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Dropped | Self::TokenGone => "dropped",
        }
    }
}

impl Records {
    /// Returns the name of a channel; empty when it has none.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn channel_title(&self, channel: &ChannelName) -> Result<String, RecordsError> {
        let name = sqlx::query_scalar(TITLE)
            .bind(channel.as_str())
            .fetch_optional(&self.pool)
            .await?;
        Ok(name.unwrap_or_default())
    }

    /// Lists members with a device who are not muted and have not read as far as `newest`, by
    /// user, behind `after`.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn push_targets(
        &self,
        channel: &ChannelName,
        newest: u64,
        after: &str,
        now_ms: u64,
        limit: usize,
    ) -> Result<Vec<PushTarget>, RecordsError> {
        let rows = sqlx::query(TARGETS)
            .bind(channel.as_str())
            .bind(after)
            .bind(signed(now_ms))
            .bind(signed(newest))
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(&self.pool)
            .await?;
        let target = |row: &AnyRow| {
            Ok(PushTarget {
                user: row.try_get("user_id")?,
                joined_offset: unsigned(row.try_get("joined_offset")?),
                read_offset: unsigned(row.try_get("read_offset")?),
            })
        };
        rows.iter().map(target).collect()
    }

    /// Returns who of `users` blocks whom of `authors`, as pairs.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn blocks_between(
        &self,
        users: &[String],
        authors: &[String],
    ) -> Result<HashSet<(String, String)>, RecordsError> {
        let mut found = HashSet::new();
        for users in users.chunks(ROWS_MAX) {
            for authors in authors.chunks(ROWS_MAX) {
                let sql = format!(
                    "SELECT user_id, blocked_user_id FROM user_blocks
                     WHERE user_id IN ({}) AND blocked_user_id IN ({})",
                    places(1, users.len()),
                    places(1 + users.len(), authors.len())
                );
                let mut query = sqlx::query(AssertSqlSafe(sql));
                for name in users.iter().chain(authors) {
                    query = query.bind(name);
                }
                for row in query.fetch_all(&self.pool).await? {
                    found.insert((row.try_get(0)?, row.try_get(1)?));
                }
            }
        }
        Ok(found)
    }

    /// Returns how users stand to channels; who is no member is left out.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn push_standings(
        &self,
        pairs: &[(String, ChannelName)],
    ) -> Result<HashMap<(String, ChannelName), PushStanding>, RecordsError> {
        let mut found = HashMap::new();
        for pairs in pairs.chunks(ROWS_MAX) {
            let sql = format!(
                r#"SELECT m.user_id, m.channel, m.muted_until_ms, COALESCE(r."offset", 0)
                   FROM channel_members m
                       LEFT JOIN read_positions r ON r.user_id = m.user_id AND r.channel = m.channel
                   WHERE (m.user_id, m.channel) IN (VALUES {})"#,
                rows_of(pairs.len(), 2)
            );
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for (user, channel) in pairs {
                query = query.bind(user).bind(channel.as_str());
            }
            for row in query.fetch_all(&self.pool).await? {
                let channel: String = row.try_get(1)?;
                let Some(pair) = ChannelName::new(&channel).ok() else {
                    continue;
                };
                let standing = PushStanding {
                    muted_until_ms: unsigned(row.try_get(2)?),
                    read_offset: unsigned(row.try_get(3)?),
                };
                found.insert((row.try_get(0)?, pair), standing);
            }
        }
        Ok(found)
    }

    /// Returns the devices' tokens of users.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn push_tokens(
        &self,
        users: &[String],
    ) -> Result<HashMap<String, Vec<String>>, RecordsError> {
        let mut found: HashMap<String, Vec<String>> = HashMap::new();
        for users in users.chunks(ROWS_MAX) {
            let sql = format!(
                "SELECT user_id, token FROM devices WHERE user_id IN ({}) ORDER BY token",
                places(1, users.len())
            );
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for user in users {
                query = query.bind(user);
            }
            for row in query.fetch_all(&self.pool).await? {
                let tokens = found.entry(row.try_get(0)?).or_default();
                tokens.push(row.try_get(1)?);
            }
        }
        Ok(found)
    }

    /// Returns the collapse keys that devices were sent since a time.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn collapse_keys(
        &self,
        tokens: &[String],
        since_ms: u64,
    ) -> Result<HashMap<String, HashSet<String>>, RecordsError> {
        let mut found: HashMap<String, HashSet<String>> = HashMap::new();
        for tokens in tokens.chunks(ROWS_MAX) {
            let sql = format!(
                "SELECT DISTINCT token, collapse_key FROM push_log
                 WHERE at_ms >= $1 AND collapse_key <> '' AND token IN ({})",
                places(2, tokens.len())
            );
            let mut query = sqlx::query(AssertSqlSafe(sql)).bind(signed(since_ms));
            for token in tokens {
                query = query.bind(token);
            }
            for row in query.fetch_all(&self.pool).await? {
                let keys = found.entry(row.try_get(0)?).or_default();
                keys.insert(row.try_get(1)?);
            }
        }
        Ok(found)
    }

    /// Claims pushes before they are sent. Returns those that were neither sent nor dropped: new
    /// ones, and claimed ones of a worker that did not come back to say what they came to.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn claim_pushes(
        &self,
        entries: &[LedgerEntry],
        now_ms: u64,
    ) -> Result<HashSet<(Uuid, String)>, RecordsError> {
        let mut claimed = HashSet::new();
        for entries in entries.chunks(ROWS_MAX) {
            let sql = format!(
                "INSERT INTO push_log (message_id, token, user_id, collapse_key, state, at_ms)
                 VALUES {}
                 ON CONFLICT (message_id, token) DO UPDATE SET at_ms = excluded.at_ms
                     WHERE push_log.state = 'claimed'
                 RETURNING message_id, token",
                rows_of(entries.len(), 6)
            );
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for entry in entries {
                query = query
                    .bind(entry.message_id.to_string())
                    .bind(&entry.token)
                    .bind(&entry.user)
                    .bind(&entry.collapse_key)
                    .bind("claimed")
                    .bind(signed(now_ms));
            }
            for row in query.fetch_all(&self.pool).await? {
                let id: String = row.try_get(0)?;
                if let Ok(id) = Uuid::try_parse(&id) {
                    claimed.insert((id, row.try_get(1)?));
                }
            }
        }
        Ok(claimed)
    }

    /// Notes what claimed pushes came to, and deletes devices whose token leads nowhere.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn settle_pushes(
        &self,
        settled: &[(LedgerEntry, LedgerState)],
        now_ms: u64,
    ) -> Result<(), RecordsError> {
        for settled in settled.chunks(ROWS_MAX) {
            // As an insert, because that finds each row by its key; the rows are all there.
            let sql = format!(
                "INSERT INTO push_log (message_id, token, user_id, collapse_key, state, at_ms)
                 VALUES {}
                 ON CONFLICT (message_id, token)
                     DO UPDATE SET state = excluded.state, at_ms = excluded.at_ms",
                rows_of(settled.len(), 6)
            );
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for (entry, state) in settled {
                query = query
                    .bind(entry.message_id.to_string())
                    .bind(&entry.token)
                    .bind(&entry.user)
                    .bind(&entry.collapse_key)
                    .bind(state.as_str())
                    .bind(signed(now_ms));
            }
            query.execute(&self.pool).await?;
        }
        let gone = settled
            .iter()
            .filter(|(_, state)| *state == LedgerState::TokenGone);
        for (entry, _) in gone {
            sqlx::query(FORGET_DEVICE)
                .bind(&entry.token)
                .execute(&self.pool)
                .await?;
        }
        Ok(())
    }

    /// Deletes a part of the ledger's entries and devices from before a time each; returns how
    /// many rows. Any number of workers may do it at once.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn prune_pushes(
        &self,
        ledger_before_ms: u64,
        devices_before_ms: u64,
    ) -> Result<u64, RecordsError> {
        let mut deleted = 0;
        for (sql, before_ms) in [
            (PRUNE_LOG, ledger_before_ms),
            (PRUNE_DEVICES, devices_before_ms),
        ] {
            let done = sqlx::query(sql)
                .bind(signed(before_ms))
                .bind(PRUNED_MAX)
                .execute(&self.pool)
                .await?;
            deleted += done.rows_affected();
        }
        Ok(deleted)
    }
}

/// Writes `$1, $2, …`.
fn places(first: usize, count: usize) -> String {
    let places: Vec<String> = (first..first + count).map(|n| format!("${n}")).collect();
    places.join(", ")
}

/// Writes `($1, $2), ($3, $4), …`.
fn rows_of(rows: usize, columns: usize) -> String {
    let row = |row: usize| format!("({})", places(1 + row * columns, columns));
    (0..rows).map(row).collect::<Vec<_>>().join(", ")
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}
