//! `user.block`, `user.unblock`, `user.blocks`: whom a user does not want to hear from.
//!
//! A blocked user cannot open a direct chat with the one who blocks, nor write into it. In groups
//! nothing changes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cursor::Page;
use super::devices::Removed;
use super::error::ChatError;
use super::operation::Ask;
use super::views::Done;
use super::{Caller, Chat, now_ms, validate};

/// Blocks a user.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct BlockUser {
    user: String,
}

impl Ask for BlockUser {
    type Answer = Done;

    async fn handle(self, chat: &Chat, caller: &Caller) -> Result<Done, ChatError> {
        let user = caller.known_user()?;
        let other = validate::user("user", &self.user)?;
        validate::require(other != *user, || "user: another one than you".to_owned())?;
        let limit = chat.config.blocks_per_user_max;
        let records = chat.records()?;
        records.block(user, &other, limit, now_ms()).await?;
        chat.tell(&other, "", false).await?;
        Ok(Done {})
    }
}

/// Ends a block.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct UnblockUser {
    user: String,
}

impl Ask for UnblockUser {
    type Answer = Removed;

    async fn handle(self, chat: &Chat, caller: &Caller) -> Result<Removed, ChatError> {
        let user = caller.known_user()?;
        let other = validate::user("user", &self.user)?;
        let removed = chat.records()?.unblock(user, &other).await?;
        chat.tell(&other, "", false).await?;
        Ok(Removed { removed })
    }
}

/// Lists whom the user blocks.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct ListBlocks {
    /// From the last page.
    #[serde(default)]
    cursor: String,
    /// At most 200.
    limit: Option<u32>,
}

/// A page of blocked users.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct BlockPage {
    users: Vec<BlockedView>,
    /// Where the next page begins; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<String>,
}

/// A blocked user.
#[derive(Debug, Serialize, JsonSchema)]
struct BlockedView {
    user: String,
    /// Unix milliseconds.
    since: i64,
}

impl Ask for ListBlocks {
    type Answer = BlockPage;

    async fn handle(self, chat: &Chat, caller: &Caller) -> Result<BlockPage, ChatError> {
        let user = caller.known_user()?;
        let page = Page::of(&self.cursor, self.limit)?;
        let found = chat.records()?.blocks(user, &page.after, page.ask());
        let (found, cursor) = page.cut(found.await?, |blocked| blocked.user.as_str());
        let users = found.into_iter().map(|blocked| BlockedView {
            user: blocked.user.as_str().to_owned(),
            since: blocked.since_ms,
        });
        Ok(BlockPage {
            users: users.collect(),
            cursor,
        })
    }
}
