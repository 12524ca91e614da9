//! `channel.invite`: lets users become members.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use shared::config::Join;
use store::records::NewInvitation;
use uuid::Uuid;

use super::error::ChatError;
use super::operation::Ask;
use super::{Caller, Chat, now_ms, validate};

/// Users that one invitation lets in at most.
const USES_MAX: u32 = 10_000;

/// Makes an invitation; for moderators.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Invite {
    channel: String,
    /// For whom; empty: for whoever has its id.
    #[serde(default)]
    user: String,
    /// How many seconds it is good for; absent: as long as may be.
    expires_in: Option<u64>,
    /// How many users it lets in; absent: one.
    uses: Option<u32>,
}

/// An invitation.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct InvitationView {
    /// Its id: whoever has it can use it, unless it names a user.
    invitation: String,
    /// Unix milliseconds.
    expires_at: i64,
    uses: u32,
}

impl Ask for Invite {
    type Answer = InvitationView;

    async fn handle(self, chat: &Chat, caller: &Caller) -> Result<InvitationView, ChatError> {
        let user = caller.known_user()?;
        let (channel, namespace) = chat.with_members(&self.channel)?;
        if namespace.options.join == Join::Server {
            return Err(ChatError::Forbidden("the backend adds members"));
        }
        if !self.user.is_empty() {
            validate::user("user", &self.user)?;
        }
        let uses = self.uses.unwrap_or(1);
        validate::require((1..=USES_MAX).contains(&uses), || {
            format!("uses: 1 to {USES_MAX}")
        })?;
        chat.moderator(&channel, user).await?;
        let ttl_max = chat.config.invitation_ttl_max;
        let ttl = self.expires_in.map_or(ttl_max, Duration::from_secs);
        let ttl_ms = i64::try_from(ttl.min(ttl_max).as_millis()).unwrap_or(i64::MAX);
        let id = Uuid::new_v4().to_string();
        let now_ms = now_ms();
        let invitation = NewInvitation {
            id: &id,
            channel: &channel,
            user: &self.user,
            created_by: user.as_str(),
            expires_at_ms: now_ms.saturating_add(ttl_ms),
            uses: uses.into(),
            now_ms,
        };
        let limit = chat.config.invitations_per_channel_max;
        chat.records()?
            .create_invitation(&invitation, limit)
            .await?;
        Ok(InvitationView {
            expires_at: invitation.expires_at_ms,
            invitation: id,
            uses,
        })
    }
}
