//! `message.list`: a page of the archive.

use serde::Serialize;
use serde_json::value::RawValue;
use shared::events::{EventClientInfo, PublicationEvent};
use shared::ids::ChannelName;
use shared::protocol::reply::Reply;
use shared::protocol::{ClientError, Tags};
use store::archive::PageQuery;

use super::{Outcome, rpc};
use crate::session::Services;
use crate::session::state::error_reply;

impl Services {
    pub(super) async fn list(
        &self,
        id: u32,
        channel: &ChannelName,
        query: PageQuery,
        newest_first: bool,
    ) -> Outcome {
        let Some(archive) = &self.archive else {
            return Outcome::Replied(error_reply(id, ClientError::NOT_AVAILABLE));
        };
        let is_reversed = query.reverse;
        match archive.page(channel, query).await {
            Ok(mut events) => {
                if is_reversed != newest_first {
                    events.reverse();
                }
                let messages = events.iter().map(ListedMessage::from).collect();
                let body = rpc(&ListedMessages { messages });
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
}

#[derive(Debug, Serialize)]
struct ListedMessage<'a> {
    id: String,
    epoch: &'a str,
    offset: u64,
    user: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    info: Option<&'a EventClientInfo>,
    data: &'a RawValue,
    #[serde(skip_serializing_if = "Tags::is_empty")]
    tags: &'a Tags,
    /// Unix milliseconds.
    time: u64,
}

impl<'a> From<&'a PublicationEvent> for ListedMessage<'a> {
    fn from(event: &'a PublicationEvent) -> Self {
        Self {
            id: event.id.to_string(),
            epoch: event.epoch.as_str(),
            offset: event.offset,
            user: &event.user,
            info: event.info.as_ref(),
            data: &event.data,
            tags: &event.tags,
            time: event.published_at_ms,
        }
    }
}
