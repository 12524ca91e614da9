//! `message.send`, `message.list`: what is said in a channel.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use shared::events::{EventClientInfo, PublicationEvent};
use shared::protocol::{ClientError, Tags, payload};
use store::archive::PageQuery;

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
        let channels = &chat.rules.channels;
        let (channel, namespace) = channels.resolve(&self.channel)?;
        channels.may(Action::Publish, &namespace, caller.asker(&channel))?;
        if channels.needs_membership(&namespace) {
            let memberships = &chat.memberships;
            memberships.may_write(&channel, caller.user()).await?;
        }
        let data = payload::from_raw(&self.data);
        if data.len() > chat.data_bytes_max {
            let max = chat.data_bytes_max;
            return Err(ChatError::TooLarge(format!("data: at most {max} bytes")));
        }
        let scope = format!("user:{}", caller.user());
        let (id, idempotency) = identify(&scope, &channel, &namespace, &self.idempotency_key)?;
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

/// Reads old messages: the first after `after`, else the last before `before`.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct ListMessages {
    channel: String,
    /// Only offsets above.
    after: Option<u64>,
    /// Only offsets below.
    before: Option<u64>,
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
}

/// An archived message.
#[derive(Debug, Serialize, JsonSchema)]
struct MessageView {
    id: String,
    epoch: String,
    offset: u64,
    /// Who wrote it; empty: the backend.
    user: String,
    /// The connection it came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<serde_json::Value>")]
    info: Option<EventClientInfo>,
    #[schemars(with = "serde_json::Value")]
    data: Box<RawValue>,
    #[serde(skip_serializing_if = "Tags::is_empty")]
    #[schemars(with = "std::collections::BTreeMap<String, String>")]
    tags: Tags,
    /// Unix milliseconds.
    time: u64,
}

impl From<PublicationEvent> for MessageView {
    fn from(event: PublicationEvent) -> Self {
        Self {
            id: event.id.to_string(),
            epoch: event.epoch.as_str().to_owned(),
            offset: event.offset,
            user: event.user,
            info: event.info,
            data: event.data,
            tags: event.tags,
            time: event.published_at_ms,
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
        let query = PageQuery {
            after: self.after,
            before: self.before,
            epoch: None,
            limit: self.limit.unwrap_or(LIST_LIMIT).min(LIST_LIMIT_MAX),
            // Without a place to begin at, the newest are wanted.
            reverse: self.after.is_none(),
        };
        let is_reversed = query.reverse;
        let mut events = archive.page(&channel, query).await?;
        if is_reversed != self.reverse {
            events.reverse();
        }
        Ok(MessagePage {
            messages: events.into_iter().map(MessageView::from).collect(),
        })
    }
}
