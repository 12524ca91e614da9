//! `message.send`, `message.list`: what is said in a channel; `changes` edits and deletes it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use shared::events::EventClientInfo;
use shared::protocol::{ClientError, Tags, payload};
use store::archive::{ArchivedMessage, MessageQuery};

use super::error::ChatError;
use super::operation::{Ask, Publish};
use super::{Caller, Chat};
use crate::broker::{NewPublication, Published};
use crate::channel::Action;
use crate::session::identify;

/// Messages that one `message.list` answers when it does not say how many, and at most.
const LIST_LIMIT: usize = 50;
const LIST_LIMIT_MAX: usize = 300;

/// Publishes a message, and says where it is.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct SendMessage {
    channel: String,
    /// The message: any JSON value.
    #[schemars(with = "serde_json::Value")]
    data: Box<RawValue>,
    /// Names the message for good: sent again with the same key, it is published once.
    #[serde(default)]
    idempotency_key: String,
}

/// Where a message is.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct SentMessage {
    id: String,
    epoch: String,
    offset: u64,
    /// Unix milliseconds.
    time: u64,
}

impl From<&Published> for SentMessage {
    fn from(published: &Published) -> Self {
        let position = published.position.as_ref();
        Self {
            id: published.id.to_string(),
            epoch: position.map_or_else(String::new, |p| p.epoch.as_str().to_owned()),
            offset: position.map_or(0, |p| p.offset),
            time: published.published_at_ms,
        }
    }
}

impl Publish for SendMessage {
    async fn publication(self, chat: &Chat, caller: &Caller) -> Result<NewPublication, ChatError> {
        chat.publication(caller, &self.channel, &self.data, &self.idempotency_key)
            .await
    }
}

impl Chat {
    /// Checks that the caller may publish, and makes the publication; an empty `key` is none.
    pub(super) async fn publication(
        &self,
        caller: &Caller,
        channel: &str,
        data: &RawValue,
        key: &str,
    ) -> Result<NewPublication, ChatError> {
        let channels = &self.rules.channels;
        let (channel, namespace) = channels.resolve(channel)?;
        channels.may(Action::Publish, &namespace, caller.asker(&channel))?;
        if channels.needs_membership(&namespace) {
            let memberships = &self.memberships;
            memberships.may_write(&channel, caller.user()).await?;
        }
        let data = payload::from_raw(data);
        if data.len() > self.data_bytes_max {
            let max = self.data_bytes_max;
            return Err(ChatError::TooLarge(format!("data: at most {max} bytes")));
        }
        let scope = format!("user:{}", caller.user());
        let (id, idempotency) = identify(&scope, &channel, &namespace, key)?;
        Ok(NewPublication {
            info: Some(caller.info_on(&channel)),
            channel,
            data,
            tags: Tags::new(),
            id,
            history: namespace.history.clone(),
            durable: namespace.options.durable,
            idempotency,
        })
    }
}

/// Reads messages as they are now: the first after a place or a time, else the last before.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct ListMessages {
    channel: String,
    /// Only offsets above.
    after: Option<u64>,
    /// Only offsets below.
    before: Option<u64>,
    /// Only later than this, Unix milliseconds.
    after_time: Option<u64>,
    /// Only earlier than this, Unix milliseconds.
    before_time: Option<u64>,
    /// At most 300.
    limit: Option<usize>,
    /// Newest first; else oldest first.
    #[serde(default)]
    reverse: bool,
}

/// A page of the archive.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct MessagePage {
    messages: Vec<MessageView>,
    /// Messages at or below this offset may be gone: the archive keeps them for a time only.
    #[serde(skip_serializing_if = "Option::is_none")]
    floor: Option<u64>,
}

/// An archived message.
#[derive(Debug, Serialize, JsonSchema)]
struct MessageView {
    id: String,
    epoch: String,
    offset: u64,
    /// Who wrote it; empty: the backend, or a user who was erased.
    user: String,
    /// The connection it came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<serde_json::Value>")]
    info: Option<EventClientInfo>,
    /// What it says now; `null` when it was deleted.
    #[schemars(with = "serde_json::Value")]
    data: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Tags::is_empty")]
    #[schemars(with = "std::collections::BTreeMap<String, String>")]
    tags: Tags,
    /// Unix milliseconds.
    time: u64,
    /// When it was last edited, Unix milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    edited_at: Option<u64>,
    /// When it was deleted, Unix milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted_at: Option<u64>,
}

impl From<ArchivedMessage> for MessageView {
    fn from(message: ArchivedMessage) -> Self {
        Self {
            id: message.id.to_string(),
            epoch: message.epoch.as_str().to_owned(),
            offset: message.offset,
            user: message.user,
            info: message.info,
            data: message.data,
            tags: message.tags,
            time: message.published_at_ms,
            edited_at: message.edited_at_ms,
            deleted_at: message.deleted_at_ms,
        }
    }
}

impl Ask for ListMessages {
    type Answer = MessagePage;

    async fn handle(self, chat: &Chat, caller: &Caller) -> Result<MessagePage, ChatError> {
        let channels = &chat.rules.channels;
        let (channel, namespace) = channels.resolve(&self.channel)?;
        channels.may(Action::History, &namespace, caller.asker(&channel))?;
        if channels.needs_membership(&namespace) {
            chat.memberships.may_read(&channel, caller.user()).await?;
        }
        let archive = chat.archive.as_ref().filter(|_| namespace.options.durable);
        let archive = archive.ok_or(ClientError::NOT_AVAILABLE)?;
        let query = MessageQuery {
            after: self.after,
            before: self.before,
            after_time_ms: self.after_time,
            before_time_ms: self.before_time,
            limit: self.limit.unwrap_or(LIST_LIMIT).min(LIST_LIMIT_MAX),
            // Without a place to begin at, the newest are wanted.
            reverse: self.after.is_none() && self.after_time.is_none(),
        };
        let is_reversed = query.reverse;
        let mut page = archive.messages(&channel, query).await?;
        if is_reversed != self.reverse {
            page.messages.reverse();
        }
        Ok(MessagePage {
            messages: page.messages.into_iter().map(MessageView::from).collect(),
            floor: page.floor,
        })
    }
}
