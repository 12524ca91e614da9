//! `message.edit`, `message.delete`: a publication of its own, by the author or a moderator.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};
use shared::events::{
    DeletedData, EditedData, MESSAGE_DELETED, MESSAGE_EDITED, PublicationKind, TAG_ID, change_tags,
};
use shared::ids::{ChannelName, MessageId};
use shared::protocol::ClientError;

use super::error::ChatError;
use super::operation::Publish;
use super::{Caller, Chat};
use crate::broker::{HistoryPolicy, HistoryRange, NewPublication};
use crate::session::call::client_error;

/// Newest publications that are searched for a message that the archive does not have yet.
const RECENT_MAX: usize = 300;

/// Gives a message new data; the answer is where the edit is.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct EditMessage {
    channel: String,
    /// The message.
    #[schemars(with = "String")]
    id: MessageId,
    /// What it says from now on: any JSON value.
    #[schemars(with = "serde_json::Value")]
    data: Box<RawValue>,
    /// Names the edit for good: sent again with the same key, it is published once.
    #[serde(default)]
    idempotency_key: String,
}

/// Deletes a message for good; the answer is where the deletion is.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct DeleteMessage {
    channel: String,
    /// The message.
    #[schemars(with = "String")]
    id: MessageId,
    /// Names the deletion for good: sent again with the same key, it is published once.
    #[serde(default)]
    idempotency_key: String,
}

impl Publish for EditMessage {
    async fn publication(self, chat: &Chat, caller: &Caller) -> Result<NewPublication, ChatError> {
        let data = to_raw_value(&EditedData {
            event: MESSAGE_EDITED.into(),
            id: self.id,
            data: &self.data,
        });
        let data = data.map_err(|error| ChatError::Invalid(error.to_string()))?;
        let publication = chat
            .publication(caller, &self.channel, &data, &self.idempotency_key)
            .await?;
        chat.change(caller, publication, PublicationKind::Edited, self.id)
            .await
    }
}

impl Publish for DeleteMessage {
    async fn publication(self, chat: &Chat, caller: &Caller) -> Result<NewPublication, ChatError> {
        let data = to_raw_value(&DeletedData {
            event: MESSAGE_DELETED.into(),
            id: self.id,
        });
        let data = data.map_err(|error| ChatError::Invalid(error.to_string()))?;
        let publication = chat
            .publication(caller, &self.channel, &data, &self.idempotency_key)
            .await?;
        chat.change(caller, publication, PublicationKind::Deleted, self.id)
            .await
    }
}

/// What of a message decides who may change it.
struct Target {
    /// Who wrote it; empty for the server API, and after an erasure.
    author: String,
    is_deleted: bool,
}

impl Chat {
    /// Makes a publication an edit or a deletion, if the caller may change that message.
    async fn change(
        &self,
        caller: &Caller,
        mut publication: NewPublication,
        kind: PublicationKind,
        id: MessageId,
    ) -> Result<NewPublication, ChatError> {
        if !publication.durable {
            // Nothing keeps whose message it is.
            return Err(ClientError::NOT_AVAILABLE.into());
        }
        let target = self.target(&publication, id).await?;
        let target = target.ok_or(ChatError::NotFound("there is no such message here"))?;
        // The anonymous user is everybody, and nobody's messages are the server API's.
        let user = caller.known_user()?;
        if target.author != user.as_str() {
            self.may_moderate(caller, &publication.channel).await?;
        }
        // With a key it may be an edit from before the deletion that is sent again: the broker
        // knows. An edit of a deleted message changes nothing in any case.
        let is_new = publication.idempotency.is_none();
        if kind == PublicationKind::Edited && target.is_deleted && is_new {
            return Err(ChatError::NotFound("the message was deleted"));
        }
        publication.tags = change_tags(kind, id);
        Ok(publication)
    }

    async fn may_moderate(&self, caller: &Caller, channel: &ChannelName) -> Result<(), ChatError> {
        let others = ChatError::Forbidden("the message is not yours");
        if self.with_members(channel.as_str()).is_err() {
            return Err(others);
        }
        let standing = self.moderator(channel, caller.user()).await;
        standing.map(drop).map_err(|error| match error {
            ChatError::Unavailable(_) => error,
            _ => others,
        })
    }

    /// Finds a message: in the archive, else among the newest of the history.
    async fn target(
        &self,
        publication: &NewPublication,
        id: MessageId,
    ) -> Result<Option<Target>, ChatError> {
        let channel = &publication.channel;
        if let Some(archive) = &self.archive
            && let Some(message) = archive.message(channel, id).await?
        {
            return Ok(Some(Target {
                author: message.user,
                is_deleted: message.deleted_at_ms.is_some(),
            }));
        }
        match &publication.history {
            Some(policy) => self.recent(channel, policy, id).await,
            None => Ok(None),
        }
    }

    async fn recent(
        &self,
        channel: &ChannelName,
        policy: &HistoryPolicy,
        id: MessageId,
    ) -> Result<Option<Target>, ChatError> {
        let range = HistoryRange {
            since: None,
            limit: Some(RECENT_MAX),
            reverse: true,
        };
        let page = self.broker.history(channel, policy, range).await;
        let page = page.map_err(|error| client_error(&error))?;
        let id = id.to_string();
        let found = page.publications.iter().find(|publication| {
            let kind = PublicationKind::of_tags(&publication.tags);
            kind == PublicationKind::Message && publication.tags.get(TAG_ID) == Some(&id)
        });
        Ok(found.map(|publication| Target {
            author: publication
                .info
                .as_ref()
                .map_or_else(String::new, |info| info.user.as_str().to_owned()),
            is_deleted: false,
        }))
    }
}
