//! `read.mark`: how far a user has read.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::ChatError;
use super::operation::Ask;
use super::{Caller, Chat, now_ms, validate};

/// Moves the user's read position in a channel on; it never goes back.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct MarkRead {
    channel: String,
    /// Offset of the last message that was read.
    offset: u64,
}

/// A read position.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ReadPosition {
    /// The last offset that is read now.
    offset: i64,
}

impl Ask for MarkRead {
    type Answer = ReadPosition;

    async fn handle(self, chat: &Chat, caller: &Caller) -> Result<ReadPosition, ChatError> {
        let user = caller.known_user()?;
        let (channel, _) = chat.with_members(&self.channel)?;
        let offset = i64::try_from(self.offset).ok();
        validate::require(offset.is_some(), || "offset: too large".to_owned())?;
        chat.member(&channel, user).await?;
        let records = chat.records()?;
        let offset = offset.unwrap_or_default();
        let offset = records.mark_read(user, &channel, offset, now_ms()).await?;
        Ok(ReadPosition { offset })
    }
}
