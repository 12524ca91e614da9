//! Members: who is in a channel, as what, and may they write.

use shared::ids::{ChannelName, UserId};
use sqlx::AnyConnection;

use super::{ChannelKind, Records, RecordsError, known};

/// Counting and inserting are one statement. Two at the same moment may still pass a limit by
/// one: it protects from abuse, it is no quota to bill by.
const INSERT: &str = "
INSERT INTO channel_members
    (channel, user_id, role, muted_until_ms, joined_at_ms, joined_offset)
SELECT $1, $2, $3, 0, $4, $5
WHERE (SELECT COUNT(*) FROM channel_members WHERE user_id = $2) < $6
    AND (SELECT COUNT(*) FROM channel_members WHERE channel = $1) < $7
ON CONFLICT (channel, user_id) DO NOTHING";
const FIND: &str = "
SELECT user_id, role, muted_until_ms, joined_at_ms, joined_offset FROM channel_members
WHERE channel = $1 AND user_id = $2";
const PAGE: &str = "
SELECT user_id, role, muted_until_ms, joined_at_ms, joined_offset FROM channel_members
WHERE channel = $1 AND user_id > $2 ORDER BY user_id LIMIT $3";
const STANDING: &str = "
SELECT m.role, c.kind, (SELECT COUNT(*) FROM channel_members o
    JOIN user_blocks b ON b.user_id = o.user_id AND b.blocked_user_id = m.user_id
    WHERE o.channel = m.channel AND c.kind = 'direct')
FROM channel_members m JOIN channels c ON c.channel = m.channel
WHERE m.channel = $1 AND m.user_id = $2";
const REMOVE: &str = "
DELETE FROM channel_members WHERE channel = $1 AND user_id = $2 RETURNING role";
/// The longest-standing moderator, else member, becomes owner when no owner is left.
const SUCCEED: &str = "
UPDATE channel_members SET role = 'owner' WHERE channel = $1
    AND NOT EXISTS (SELECT 1 FROM channel_members WHERE channel = $1 AND role = 'owner')
    AND user_id = (SELECT user_id FROM channel_members WHERE channel = $1
        ORDER BY CASE role WHEN 'moderator' THEN 0 ELSE 1 END, joined_at_ms, user_id LIMIT 1)";
const SET_ROLE: &str = "
UPDATE channel_members SET role = $3 WHERE channel = $1 AND user_id = $2
    AND (role <> 'owner' OR $3 = 'owner' OR EXISTS (SELECT 1 FROM channel_members
        WHERE channel = $1 AND role = 'owner' AND user_id <> $2))";
const MUTE: &str = "
UPDATE channel_members SET muted_until_ms = $3 WHERE channel = $1 AND user_id = $2";

/// What a member may do; each role may do what those below it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Reads and writes.
    Member,
    /// Also invites, removes members, changes name and picture, deletes others' messages.
    Moderator,
    /// Also gives roles.
    Owner,
}

impl Role {
    /// Returns the word that is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Moderator => "moderator",
            Self::Owner => "owner",
        }
    }

    /// Reads the stored word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Member, Self::Moderator, Self::Owner]
            .into_iter()
            .find(|role| role.as_str() == word)
    }
}

/// One member of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The user.
    pub user: UserId,
    /// What the user may do.
    pub role: Role,
    /// No pushes before this time, Unix milliseconds; 0: not muted.
    pub muted_until_ms: i64,
    /// When the user became a member, Unix milliseconds.
    pub joined_at_ms: i64,
    /// The channel's top offset at that time: older messages are not unread.
    pub joined_offset: i64,
}

/// A member to add.
#[derive(Debug, Clone, Copy)]
pub struct NewMember<'a> {
    /// The user.
    pub user: &'a UserId,
    /// What the user may do.
    pub role: Role,
    /// The channel's top offset now.
    pub joined_offset: i64,
    /// Now, Unix milliseconds.
    pub now_ms: i64,
}

/// How many memberships there may be.
#[derive(Debug, Clone, Copy)]
pub struct MemberLimits {
    /// Channels that one user is in.
    pub channels_per_user: u32,
    /// Members of one channel.
    pub members_per_channel: u32,
}

/// What adding a member came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    /// The user is a member now.
    New,
    /// The user was one before, and keeps the role.
    Known,
}

/// What changing a role came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoleChange {
    /// The member has the role.
    Done,
    /// The user is no member.
    NoMember,
    /// A channel keeps one owner: another must become one first.
    LastOwner,
}

/// What a member may do in a channel at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The member's role.
    pub role: Role,
    /// What the channel is for.
    pub kind: ChannelKind,
    /// The other user of this direct chat blocks the member, who may read but not write.
    pub is_blocked: bool,
}

type Row = (String, String, i64, i64, i64);

/// Adds a member.
pub(super) async fn insert(
    connection: &mut AnyConnection,
    channel: &ChannelName,
    member: &NewMember<'_>,
    limits: MemberLimits,
) -> Result<Added, RecordsError> {
    let inserted = sqlx::query(INSERT)
        .bind(channel.as_str())
        .bind(member.user.as_str())
        .bind(member.role.as_str())
        .bind(member.now_ms)
        .bind(member.joined_offset)
        .bind(i64::from(limits.channels_per_user))
        .bind(i64::from(limits.members_per_channel))
        .execute(&mut *connection)
        .await?;
    if inserted.rows_affected() > 0 {
        return Ok(Added::New);
    }
    let known: Option<Row> = sqlx::query_as(FIND)
        .bind(channel.as_str())
        .bind(member.user.as_str())
        .fetch_optional(connection)
        .await?;
    match known {
        Some(_) => Ok(Added::Known),
        None => Err(RecordsError::Limit(format!(
            "a user is in at most {} channels, and a channel has at most {} members",
            limits.channels_per_user, limits.members_per_channel
        ))),
    }
}

impl Records {
    /// Adds a member; one that is there keeps the role.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn add_member(
        &self,
        channel: &ChannelName,
        member: &NewMember<'_>,
        limits: MemberLimits,
    ) -> Result<Added, RecordsError> {
        let mut connection = self.pool.acquire().await?;
        insert(&mut connection, channel, member, limits).await
    }

    /// Finds a member.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn member(
        &self,
        channel: &ChannelName,
        user: &UserId,
    ) -> Result<Option<Member>, RecordsError> {
        let row: Option<Row> = sqlx::query_as(FIND)
            .bind(channel.as_str())
            .bind(user.as_str())
            .fetch_optional(&self.pool)
            .await?;
        row.map(member).transpose()
    }

    /// Lists the members of a channel, by user, behind `after`.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn members(
        &self,
        channel: &ChannelName,
        after: &str,
        limit: u32,
    ) -> Result<Vec<Member>, RecordsError> {
        let rows: Vec<Row> = sqlx::query_as(PAGE)
            .bind(channel.as_str())
            .bind(after)
            .bind(i64::from(limit))
            .fetch_all(&self.pool)
            .await?;
        rows.into_iter().map(member).collect()
    }

    /// Says what a user may do in a channel; `None`: the user is no member.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn standing(
        &self,
        channel: &ChannelName,
        user: &UserId,
    ) -> Result<Option<Standing>, RecordsError> {
        let row: Option<(String, String, i64)> = sqlx::query_as(STANDING)
            .bind(channel.as_str())
            .bind(user.as_str())
            .fetch_optional(&self.pool)
            .await?;
        let Some((role, kind, blocks)) = row else {
            return Ok(None);
        };
        Ok(Some(Standing {
            role: known(&role, Role::parse(&role))?,
            kind: known(&kind, ChannelKind::parse(&kind))?,
            is_blocked: blocks > 0,
        }))
    }

    /// Removes a member; false when the user is none. When no owner is left, the member who has
    /// been there longest becomes one, a moderator before others.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn remove_member(
        &self,
        channel: &ChannelName,
        user: &UserId,
    ) -> Result<bool, RecordsError> {
        let mut transaction = self.pool.begin().await?;
        let role: Option<String> = sqlx::query_scalar(REMOVE)
            .bind(channel.as_str())
            .bind(user.as_str())
            .fetch_optional(&mut *transaction)
            .await?;
        if role.as_deref() == Some(Role::Owner.as_str()) {
            sqlx::query(SUCCEED)
                .bind(channel.as_str())
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(role.is_some())
    }

    /// Gives a member a role.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn set_role(
        &self,
        channel: &ChannelName,
        user: &UserId,
        role: Role,
    ) -> Result<RoleChange, RecordsError> {
        let changed = sqlx::query(SET_ROLE)
            .bind(channel.as_str())
            .bind(user.as_str())
            .bind(role.as_str())
            .execute(&self.pool)
            .await?;
        if changed.rows_affected() > 0 {
            return Ok(RoleChange::Done);
        }
        let known = self.member(channel, user).await?;
        Ok(known.map_or(RoleChange::NoMember, |_| RoleChange::LastOwner))
    }

    /// Keeps pushes of a channel from a member until a time; false when the user is none.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn mute(
        &self,
        channel: &ChannelName,
        user: &UserId,
        until_ms: i64,
    ) -> Result<bool, RecordsError> {
        let muted = sqlx::query(MUTE)
            .bind(channel.as_str())
            .bind(user.as_str())
            .bind(until_ms)
            .execute(&self.pool)
            .await?;
        Ok(muted.rows_affected() > 0)
    }
}

fn member(row: Row) -> Result<Member, RecordsError> {
    let (user, role, muted_until_ms, joined_at_ms, joined_offset) = row;
    Ok(Member {
        user: user.into(),
        role: known(&role, Role::parse(&role))?,
        muted_until_ms,
        joined_at_ms,
        joined_offset,
    })
}
