//! Channels: their kind, name and picture, and those that a user is in.

use shared::ids::{ChannelName, UserId};

use super::members::{self, MemberLimits, NewMember};
use super::{Records, RecordsError, Role, channel_name, known};

const INSERT: &str = "
INSERT INTO channels (channel, kind, name, picture, created_by, created_at_ms, updated_at_ms)
VALUES ($1, $2, $3, $4, $5, $6, $6) ON CONFLICT (channel) DO NOTHING";
const FIND: &str = "
SELECT channel, kind, name, picture, created_by, created_at_ms, updated_at_ms
FROM channels WHERE channel = $1";
const UPDATE: &str = "
UPDATE channels SET name = $2, picture = $3, updated_at_ms = $4 WHERE channel = $1";
/// The other member of a direct chat, the read position: what a list of chats shows.
const OF_USER: &str = r#"
SELECT c.channel, c.kind, c.name, c.picture, c.created_by, c.created_at_ms, c.updated_at_ms,
    m.role, m.muted_until_ms, m.joined_at_ms, m.joined_offset,
    COALESCE((SELECT r."offset" FROM read_positions r
        WHERE r.user_id = m.user_id AND r.channel = m.channel), 0),
    COALESCE((SELECT MIN(o.user_id) FROM channel_members o
        WHERE c.kind = 'direct' AND o.channel = m.channel AND o.user_id <> m.user_id), '')
FROM channel_members m JOIN channels c ON c.channel = m.channel
WHERE m.user_id = $1 AND m.channel > $2 ORDER BY m.channel LIMIT $3"#;

/// What a channel is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelKind {
    /// Any number of members, who come and go.
    Group,
    /// Two users, for good.
    Direct,
}

impl ChannelKind {
    /// Returns the word that is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Group => "group",
            Self::Direct => "direct",
        }
    }

    /// Reads the stored word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Group, Self::Direct]
            .into_iter()
            .find(|kind| kind.as_str() == word)
    }
}

/// A channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelRecord {
    /// Its name on the wire.
    pub channel: ChannelName,
    /// What it is for.
    pub kind: ChannelKind,
    /// What people call it.
    pub name: String,
    /// Media id of its picture; empty: none.
    pub picture: String,
    /// Who made it; empty: the server API.
    pub created_by: String,
    /// Unix milliseconds.
    pub created_at_ms: i64,
    /// Unix milliseconds.
    pub updated_at_ms: i64,
}

/// A channel to make.
#[derive(Debug, Clone)]
pub struct NewChannel<'a> {
    /// Its name on the wire.
    pub channel: &'a ChannelName,
    /// What it is for.
    pub kind: ChannelKind,
    /// What people call it.
    pub name: &'a str,
    /// Media id of its picture; empty: none.
    pub picture: &'a str,
    /// Who makes it; empty: the server API.
    pub created_by: &'a str,
    /// Now, Unix milliseconds.
    pub now_ms: i64,
}

/// What making a channel came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Created {
    /// It is new, with its first members.
    New,
    /// It was there before, and stays as it is.
    Known(ChannelRecord),
}

/// A channel as one of its members sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinedChannel {
    /// The channel.
    pub channel: ChannelRecord,
    /// What the user may do there.
    pub role: Role,
    /// No pushes before this time, Unix milliseconds; 0: not muted.
    pub muted_until_ms: i64,
    /// When the user became a member, Unix milliseconds.
    pub joined_at_ms: i64,
    /// The channel's top offset at that time.
    pub joined_offset: i64,
    /// The last offset that the user has read; 0: none.
    pub read_offset: i64,
    /// The other user of a direct chat; else empty.
    pub peer: String,
}

type Row = (String, String, String, String, String, i64, i64);

impl Records {
    /// Makes a channel with its first members, in one step; a channel that is there stays.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn create_channel(
        &self,
        new: &NewChannel<'_>,
        members: &[NewMember<'_>],
        limits: MemberLimits,
    ) -> Result<Created, RecordsError> {
        let mut transaction = self.pool.begin().await?;
        let inserted = sqlx::query(INSERT)
            .bind(new.channel.as_str())
            .bind(new.kind.as_str())
            .bind(new.name)
            .bind(new.picture)
            .bind(new.created_by)
            .bind(new.now_ms)
            .execute(&mut *transaction)
            .await?;
        if inserted.rows_affected() == 0 {
            drop(transaction);
            let found = self.channel(new.channel).await?;
            return Ok(Created::Known(known(new.channel.as_str(), found)?));
        }
        for member in members {
            members::insert(&mut transaction, new.channel, member, limits).await?;
        }
        transaction.commit().await?;
        Ok(Created::New)
    }

    /// Finds a channel.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn channel(
        &self,
        channel: &ChannelName,
    ) -> Result<Option<ChannelRecord>, RecordsError> {
        let row: Option<Row> = sqlx::query_as(FIND)
            .bind(channel.as_str())
            .fetch_optional(&self.pool)
            .await?;
        row.map(record).transpose()
    }

    /// Changes name and picture; false when there is no such channel.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn update_channel(
        &self,
        channel: &ChannelName,
        name: &str,
        picture: &str,
        now_ms: i64,
    ) -> Result<bool, RecordsError> {
        let updated = sqlx::query(UPDATE)
            .bind(channel.as_str())
            .bind(name)
            .bind(picture)
            .bind(now_ms)
            .execute(&self.pool)
            .await?;
        Ok(updated.rows_affected() > 0)
    }

    /// Lists the channels that a user is a member of, by their names, behind `after`.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn channels_of(
        &self,
        user: &UserId,
        after: &str,
        limit: u32,
    ) -> Result<Vec<JoinedChannel>, RecordsError> {
        let rows = sqlx::query(OF_USER)
            .bind(user.as_str())
            .bind(after)
            .bind(i64::from(limit))
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(joined).collect()
    }
}

fn joined(row: &sqlx::any::AnyRow) -> Result<JoinedChannel, RecordsError> {
    use sqlx::Row as _;
    let role: String = row.try_get(7)?;
    Ok(JoinedChannel {
        channel: record((
            row.try_get(0)?,
            row.try_get(1)?,
            row.try_get(2)?,
            row.try_get(3)?,
            row.try_get(4)?,
            row.try_get(5)?,
            row.try_get(6)?,
        ))?,
        role: known(&role, Role::parse(&role))?,
        muted_until_ms: row.try_get(8)?,
        joined_at_ms: row.try_get(9)?,
        joined_offset: row.try_get(10)?,
        read_offset: row.try_get(11)?,
        peer: row.try_get(12)?,
    })
}

fn record(row: Row) -> Result<ChannelRecord, RecordsError> {
    let (channel, kind, name, picture, created_by, created_at_ms, updated_at_ms) = row;
    Ok(ChannelRecord {
        channel: channel_name(&channel)?,
        kind: known(&kind, ChannelKind::parse(&kind))?,
        name,
        picture,
        created_by,
        created_at_ms,
        updated_at_ms,
    })
}
