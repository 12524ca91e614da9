//! `message.list`: a page of the archive, messages as they are now.

use serde::Serialize;
use serde_json::value::RawValue;
use shared::events::EventClientInfo;
use shared::ids::ChannelName;
use shared::protocol::reply::Reply;
use shared::protocol::{ClientError, Tags};
use store::archive::{ArchivedMessage, MessageQuery};

use super::{Outcome, rpc};
use crate::session::Services;
use crate::session::state::error_reply;

impl Services {
    pub(super) async fn list(
        &self,
        id: u32,
        channel: &ChannelName,
        query: MessageQuery,
        newest_first: bool,
    ) -> Outcome {
        let Some(archive) = &self.archive else {
            return Outcome::Replied(error_reply(id, ClientError::NOT_AVAILABLE));
        };
        let is_reversed = query.reverse;
        match archive.messages(channel, query).await {
            Ok(mut page) => {
                if is_reversed != newest_first {
                    page.messages.reverse();
                }
                let messages = page.messages.iter().map(ListedMessage::from).collect();
                let floor = page.floor;
                let body = rpc(&ListedMessages { messages, floor });
                Outcome::Replied(Reply { id, body })
            }
            Err(error) => {
                tracing::warn!(%channel, %error, "archive could not be read");
                Outcome::Replied(error_reply(id, ClientError::INTERNAL))
            }
        }
    }
}

/// The answer of `message.list`.
#[derive(Debug, Serialize)]
struct ListedMessages<'a> {
    messages: Vec<ListedMessage<'a>>,
    /// Messages at or below this offset may be gone by retention.
    #[serde(skip_serializing_if = "Option::is_none")]
    floor: Option<u64>,
}

/// A message; all times are Unix milliseconds.
#[derive(Debug, Serialize)]
struct ListedMessage<'a> {
    id: String,
    epoch: &'a str,
    offset: u64,
    user: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    info: Option<&'a EventClientInfo>,
    /// `null`: deleted.
    data: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Tags::is_empty")]
    tags: &'a Tags,
    time: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    edited_at: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted_at: Option<u64>,
}

impl<'a> From<&'a ArchivedMessage> for ListedMessage<'a> {
    fn from(message: &'a ArchivedMessage) -> Self {
        Self {
            id: message.id.to_string(),
            epoch: message.epoch.as_str(),
            offset: message.offset,
            user: &message.user,
            info: message.info.as_ref(),
            data: message.data.as_deref(),
            tags: &message.tags,
            time: message.published_at_ms,
            edited_at: message.edited_at_ms,
            deleted_at: message.deleted_at_ms,
        }
    }
}
