//! Channels and members as clients see them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use store::records::{ChannelKind, ChannelRecord, JoinedChannel, Member, Role};

/// An answer with nothing to say.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Done {}

/// What a member may do; each role may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RoleName {
    /// Reads and writes.
    Member,
    /// Invites, removes members, changes name and picture.
    Moderator,
    /// Gives roles.
    Owner,
}

impl From<Role> for RoleName {
    fn from(role: Role) -> Self {
        match role {
            Role::Member => Self::Member,
            Role::Moderator => Self::Moderator,
            Role::Owner => Self::Owner,
        }
    }
}

impl From<RoleName> for Role {
    fn from(role: RoleName) -> Self {
        match role {
            RoleName::Member => Self::Member,
            RoleName::Moderator => Self::Moderator,
            RoleName::Owner => Self::Owner,
        }
    }
}

/// What a channel is for.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum KindName {
    /// Any number of members.
    Group,
    /// Two users.
    Direct,
}

/// A channel.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ChannelView {
    /// Its name on the wire.
    pub(super) channel: String,
    kind: KindName,
    /// What people call it.
    name: String,
    /// Id of its picture; empty: none.
    picture: String,
    /// Who made it; empty: the backend.
    created_by: String,
    /// Unix milliseconds.
    created_at: i64,
    /// Unix milliseconds.
    updated_at: i64,
}

impl From<ChannelRecord> for ChannelView {
    fn from(record: ChannelRecord) -> Self {
        Self {
            channel: record.channel.as_str().to_owned(),
            kind: match record.kind {
                ChannelKind::Group => KindName::Group,
                ChannelKind::Direct => KindName::Direct,
            },
            name: record.name,
            picture: record.picture,
            created_by: record.created_by,
            created_at: record.created_at_ms,
            updated_at: record.updated_at_ms,
        }
    }
}

/// A channel that the user is a member of.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct JoinedView {
    #[serde(flatten)]
    pub(super) channel: ChannelView,
    role: RoleName,
    /// No pushes before this time, Unix milliseconds; 0: not muted.
    muted_until: i64,
    /// Unix milliseconds.
    joined_at: i64,
    /// The last offset that the user has read; 0: none.
    read_offset: i64,
    /// The other user of a direct chat; else empty.
    peer: String,
}

impl From<JoinedChannel> for JoinedView {
    fn from(joined: JoinedChannel) -> Self {
        Self {
            channel: joined.channel.into(),
            role: joined.role.into(),
            muted_until: joined.muted_until_ms,
            joined_at: joined.joined_at_ms,
            read_offset: joined.read_offset,
            peer: joined.peer,
        }
    }
}

/// A member.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct MemberView {
    pub(super) user: String,
    role: RoleName,
    /// Unix milliseconds.
    joined_at: i64,
}

impl From<Member> for MemberView {
    fn from(member: Member) -> Self {
        Self {
            user: member.user.as_str().to_owned(),
            role: member.role.into(),
            joined_at: member.joined_at_ms,
        }
    }
}
