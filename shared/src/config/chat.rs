//! Section `[chat]`: what users may create at most, and the cache of who is a member.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::duration;

/// Limits of the chat part: section `[chat]`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ChatConfig {
    /// Channels that one user may be a member of.
    pub channels_per_user_max: u32,
    /// Members of one channel.
    pub members_per_channel_max: u32,
    /// Devices of one user; one more pushes the least recently registered out.
    pub devices_per_user_max: u32,
    /// Users that one user may block.
    pub blocks_per_user_max: u32,
    /// Invitations of one channel that have neither expired nor been used up.
    pub invitations_per_channel_max: u32,
    /// Longest time that an invitation is good for; also what it gets when it names none.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub invitation_ttl_max: Duration,
    /// How long a node believes that a user is a member without asking the database again. A
    /// change is told to all nodes at once; this is for a node that did not hear of it.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub membership_cache_ttl: Duration,
    /// Memberships that a node remembers.
    pub membership_cache_entries_max: usize,
    /// Namespace of direct chats.
    pub direct_namespace: String,
}

impl Default for ChatConfig {
    fn default() -> Self {
        Self {
            channels_per_user_max: 1_000,
            members_per_channel_max: 10_000,
            devices_per_user_max: 20,
            blocks_per_user_max: 1_000,
            invitations_per_channel_max: 100,
            invitation_ttl_max: Duration::from_secs(30 * 24 * 3600),
            membership_cache_ttl: Duration::from_secs(10),
            membership_cache_entries_max: 100_000,
            direct_namespace: "chat".to_owned(),
        }
    }
}
