//! `channel.create`, `channel.get`, `channel.update`, `channel.list`, `channel.mute`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use shared::config::Join;
use store::records::{ChannelKind, Created, NewChannel, NewMember, Role};

use super::cursor::Page;
use super::direct::is_direct_name;
use super::error::ChatError;
use super::operation::Ask;
use super::views::{ChannelView, Done, JoinedView};
use super::{Caller, Chat, now_ms, validate};

/// Makes a channel, with the user as its owner. Asked again by the same user, it answers with
/// the channel that is there.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct CreateChannel {
    /// Its name on the wire, `NAMESPACE:…`, chosen by the client: a random one is best.
    channel: String,
    /// What people call it.
    #[serde(default)]
    name: String,
    /// Id of its picture.
    #[serde(default)]
    picture: String,
}

impl Ask for CreateChannel {
    type Answer = ChannelView;

    async fn handle(self, chat: &Chat, caller: &Caller) -> Result<ChannelView, ChatError> {
        let user = caller.known_user()?;
        let (channel, namespace) = chat.with_members(&self.channel)?;
        if namespace.options.join == Join::Server {
            return Err(ChatError::Forbidden("the backend makes these channels"));
        }
        check_new_name(channel.as_str())?;
        validate::name("name", &self.name)?;
        validate::media_id("picture", &self.picture)?;
        let now_ms = now_ms();
        let new = NewChannel {
            channel: &channel,
            kind: ChannelKind::Group,
            name: &self.name,
            picture: &self.picture,
            created_by: user.as_str(),
            now_ms,
        };
        let owner = NewMember {
            user,
            role: Role::Owner,
            joined_offset: chat.top_offset(&channel, &namespace).await?,
            now_ms,
        };
        let records = chat.records()?;
        let created = records
            .create_channel(&new, &[owner], chat.limits())
            .await?;
        let record = match created {
            Created::New => records.channel(&channel).await?,
            Created::Known(known) if known.created_by == user.as_str() => Some(known),
            Created::Known(_) => return Err(ChatError::Conflict("another channel has this name")),
        };
        let record = record.ok_or(ChatError::NotFound("the channel is gone"))?;
        Ok(record.into())
    }
}

/// Refuses names that mean something else.
pub(super) fn check_new_name(channel: &str) -> Result<(), ChatError> {
    let rest = channel.split_once(':').map_or(channel, |(_, rest)| rest);
    let is_good = !rest.is_empty() && !channel.starts_with('$') && !channel.contains('#');
    validate::require(is_good && !is_direct_name(channel), || {
        "channel: a name does not begin with '$', holds no '#', and does not begin with 'dm.' \
         behind its namespace"
            .to_owned()
    })
}

/// Reads a channel that the user is a member of.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct GetChannel {
    channel: String,
}

impl Ask for GetChannel {
    type Answer = ChannelView;

    async fn handle(self, chat: &Chat, caller: &Caller) -> Result<ChannelView, ChatError> {
        let (channel, _) = chat.with_members(&self.channel)?;
        chat.member(&channel, caller.known_user()?).await?;
        chat.channel_view(&channel).await
    }
}

/// Changes what people call a channel, and its picture; for moderators.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct UpdateChannel {
    channel: String,
    /// Absent: stays.
    name: Option<String>,
    /// Id of the picture, empty for none; absent: stays.
    picture: Option<String>,
}

impl Ask for UpdateChannel {
    type Answer = ChannelView;

    async fn handle(self, chat: &Chat, caller: &Caller) -> Result<ChannelView, ChatError> {
        let (channel, _) = chat.with_members(&self.channel)?;
        chat.moderator(&channel, caller.known_user()?).await?;
        let records = chat.records()?;
        let known = records.channel(&channel).await?;
        let known = known.ok_or(ChatError::NotFound("there is no such channel"))?;
        let name = self.name.unwrap_or(known.name);
        let picture = self.picture.unwrap_or(known.picture);
        validate::name("name", &name)?;
        validate::media_id("picture", &picture)?;
        records
            .update_channel(&channel, &name, &picture, now_ms())
            .await?;
        chat.channel_view(&channel).await
    }
}

/// Lists the channels that the user is a member of, by their names.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct ListChannels {
    /// From the last page.
    #[serde(default)]
    cursor: String,
    /// At most 200.
    limit: Option<u32>,
}

/// A page of channels.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ChannelPage {
    channels: Vec<JoinedView>,
    /// Where the next page begins; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<String>,
}

impl Ask for ListChannels {
    type Answer = ChannelPage;

    async fn handle(self, chat: &Chat, caller: &Caller) -> Result<ChannelPage, ChatError> {
        let user = caller.known_user()?;
        let page = Page::of(&self.cursor, self.limit)?;
        let found = chat
            .records()?
            .channels_of(user, &page.after, page.ask())
            .await?;
        let (found, cursor) = page.cut(found, |joined| joined.channel.channel.as_str());
        Ok(ChannelPage {
            channels: found.into_iter().map(JoinedView::from).collect(),
            cursor,
        })
    }
}

/// Keeps a channel's pushes from the user until a time.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct MuteChannel {
    channel: String,
    /// Unix milliseconds; 0 ends it, 9007199254740991 means for good.
    until: i64,
}

impl Ask for MuteChannel {
    type Answer = Done;

    async fn handle(self, chat: &Chat, caller: &Caller) -> Result<Done, ChatError> {
        let user = caller.known_user()?;
        let (channel, _) = chat.with_members(&self.channel)?;
        validate::require(self.until >= 0, || "until: 0 or above".to_owned())?;
        if chat.records()?.mute(&channel, user, self.until).await? {
            Ok(Done {})
        } else {
            Err(ChatError::Forbidden("you are no member"))
        }
    }
}
