//! `channel.direct`: the one channel of two users.

use schemars::JsonSchema;
use serde::Deserialize;
use shared::ids::UserId;
use store::records::{ChannelKind, Created, NewChannel, NewMember, Role};
use uuid::Uuid;

use super::error::ChatError;
use super::operation::Ask;
use super::views::ChannelView;
use super::{Caller, Chat, now_ms, validate};

/// Begins a direct chat's name, behind its namespace.
const PREFIX: &str = "dm.";

/// True for names that only direct chats have.
pub(super) fn is_direct_name(channel: &str) -> bool {
    let rest = channel.split_once(':').map_or(channel, |(_, rest)| rest);
    rest.starts_with(PREFIX)
}

/// Names the direct chat of two users: the same whoever asks, and of one length.
fn direct_name(namespace: &str, one: &UserId, other: &UserId) -> String {
    let (first, second) = if one.as_str() <= other.as_str() {
        (one, other)
    } else {
        (other, one)
    };
    // The length keeps ("a", "bc") and ("ab", "c") apart.
    let pair = format!("{}:{first}{second}", first.as_str().len());
    let id = Uuid::new_v5(&Uuid::NAMESPACE_OID, pair.as_bytes());
    format!("{namespace}:{PREFIX}{}", id.simple())
}

/// Opens the direct chat with another user: the one that is there, else a new one.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct OpenDirect {
    /// The other user.
    user: String,
}

impl Ask for OpenDirect {
    type Answer = ChannelView;

    async fn handle(self, chat: &Chat, caller: &Caller) -> Result<ChannelView, ChatError> {
        let user = caller.known_user()?;
        let other = validate::user("user", &self.user)?;
        validate::require(other != *user, || "user: another one than you".to_owned())?;
        let namespace = &chat.config.direct_namespace;
        let (channel, _) = chat.with_members(&direct_name(namespace, user, &other))?;
        let records = chat.records()?;
        if records.is_blocked(&other, user).await? {
            return Err(ChatError::Forbidden("the user does not want this"));
        }
        let now_ms = now_ms();
        let new = NewChannel {
            channel: &channel,
            kind: ChannelKind::Direct,
            name: "",
            picture: "",
            created_by: user.as_str(),
            now_ms,
        };
        let member = |user| NewMember {
            user,
            role: Role::Member,
            joined_offset: 0,
            now_ms,
        };
        // The other user's limit does not count: others' chats must not use it up.
        let mut limits = chat.limits();
        let own = member(user);
        let created = records.create_channel(&new, &[own], limits).await?;
        limits.channels_per_user = u32::MAX;
        let added = records
            .add_member(&channel, &member(&other), limits)
            .await?;
        if let Created::Known(_) = created {
            records.add_member(&channel, &own, chat.limits()).await?;
        }
        tracing::debug!(%channel, ?created, ?added, "direct chat opened");
        chat.tell(user, channel.as_str(), false).await?;
        chat.channel_view(&channel).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_has_one_name() {
        let name = |one: &str, other: &str| direct_name("chat", &one.into(), &other.into());
        assert_eq!(name("a", "b"), name("b", "a"));
        assert_ne!(name("a", "bc"), name("ab", "c"));
        assert!(is_direct_name(&name("a", "b")));
        assert!(!is_direct_name("chat:a.dm."));
    }
}
