//! `read.mark`, `read.unread`: how far a user has read, and what is left.
//!
//! Unread messages are never counted up: they are what the archive holds above the read position,
//! so that no lost or repeated event can make the number wrong.

use futures::stream::{self, StreamExt, TryStreamExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use shared::ids::UserId;
use shared::protocol::ClientError;
use store::archive::MessageArchive;
use store::records::JoinedChannel;

use super::cursor::Page;
use super::error::ChatError;
use super::operation::Ask;
use super::{Caller, Chat, now_ms, validate};

/// Channels that are counted at once.
const PARALLEL: usize = 4;

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

/// Counts what others wrote and the user has not read, in each channel that keeps messages.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Unread {
    /// From the last page.
    #[serde(default)]
    cursor: String,
    /// Channels to look at, at most 200.
    limit: Option<u32>,
}

/// A page of counts.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct UnreadPage {
    /// Channels with something unread.
    channels: Vec<UnreadChannel>,
    /// Where the next page begins; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<String>,
}

/// What is unread in a channel.
#[derive(Debug, Serialize, JsonSchema)]
struct UnreadChannel {
    channel: String,
    /// Counting stops at 1,000.
    unread: u64,
    /// The last offset that is read; 0: none.
    read_offset: i64,
}

impl Ask for Unread {
    type Answer = UnreadPage;

    async fn handle(self, chat: &Chat, caller: &Caller) -> Result<UnreadPage, ChatError> {
        let user = caller.known_user()?;
        let archive = chat.archive.as_deref().ok_or(ClientError::NOT_AVAILABLE)?;
        let page = Page::of(&self.cursor, self.limit)?;
        let found = chat
            .records()?
            .channels_of(user, &page.after, page.ask())
            .await?;
        let (found, cursor) = page.cut(found, |joined| joined.channel.channel.as_str());
        let is_kept = |joined: &JoinedChannel| {
            let name = joined.channel.channel.as_str();
            let found = chat.rules.channels.resolve(name);
            found.is_ok_and(|(_, namespace)| namespace.options.durable)
        };
        let counts = found
            .into_iter()
            .filter(is_kept)
            .map(|joined| count(archive, user, joined));
        let channels = stream::iter(counts).buffered(PARALLEL);
        let channels: Vec<UnreadChannel> = channels.try_collect().await?;
        Ok(UnreadPage {
            channels: channels.into_iter().filter(|one| one.unread > 0).collect(),
            cursor,
        })
    }
}

async fn count(
    archive: &dyn MessageArchive,
    user: &UserId,
    joined: JoinedChannel,
) -> Result<UnreadChannel, ChatError> {
    let channel = &joined.channel.channel;
    // What was said before the user came is not unread.
    let after = joined.read_offset.max(joined.joined_offset);
    let after = u64::try_from(after).unwrap_or_default();
    Ok(UnreadChannel {
        unread: archive.count(channel, after, user.as_str()).await?,
        channel: channel.as_str().to_owned(),
        read_offset: joined.read_offset,
    })
}
