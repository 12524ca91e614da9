//! The jobs that travel through Kafka: event types, topics and their JSON.
//!
//! CloudEvents 1.0 in Kafka's binary mode: attributes are `ce_*` headers, the value is the data
//! below. `docs/wire.md` describes both byte for byte.

mod push;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::ids::{ChannelName, Epoch, MessageId};
use crate::protocol::Tags;

pub use push::{PushAbout, PushEvent, PushNotification};

/// Topic of publications of durable channels; keyed by channel.
pub const TOPIC_MESSAGES: &str = "wyd.messages";
/// Topic of uploaded media; keyed by media id.
pub const TOPIC_UPLOADS: &str = "wyd.uploads";
/// Topic of pushes to make; keyed by user.
pub const TOPIC_PUSHES: &str = "wyd.pushes";
/// Consumer group of the persist worker.
pub const GROUP_PERSIST: &str = "wyd-persist";
/// Consumer group of the push worker.
pub const GROUP_PUSH: &str = "wyd-push";
/// Consumer group of the upload worker.
pub const GROUP_UPLOAD: &str = "wyd-upload";
/// Event type of [`PublicationEvent`].
pub const TYPE_PUBLICATION: &str = "wyd.publication";
/// Event type of [`PushEvent`].
pub const TYPE_PUSH_REQUESTED: &str = "wyd.push.requested";
/// Event type of an uploaded medium.
pub const TYPE_MEDIA_UPLOADED: &str = "wyd.media.uploaded";

/// Returns where jobs of a topic wait that are tried again later, apart from their order.
pub fn retry_topic(topic: &str) -> String {
    format!("{topic}.retry")
}

/// Returns where jobs of a topic go that can never succeed.
pub fn dead_letter_topic(topic: &str) -> String {
    format!("{topic}.dlq")
}

/// A publication of a durable channel, on its way to the archive.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PublicationEvent {
    /// The message's id: the same through retries and failovers.
    pub id: MessageId,
    /// What the publication is: `message`.
    pub kind: PublicationKind,
    /// The channel, also the Kafka key.
    pub channel: ChannelName,
    /// Identity of the stream that gave the offset.
    pub epoch: Epoch,
    /// Place in the channel; live order and archived order are this order.
    pub offset: u64,
    /// Who published; empty for the server API.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// The publishing connection, as subscribers saw it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub info: Option<EventClientInfo>,
    /// The application's JSON value, as published.
    pub data: Box<RawValue>,
    /// Labels of the publication.
    #[serde(default, skip_serializing_if = "Tags::is_empty")]
    pub tags: Tags,
    /// Redis time of the publish, Unix milliseconds.
    pub published_at_ms: u64,
}

/// What a publication stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PublicationKind {
    /// What a user or a backend wrote.
    Message,
}

/// The publishing client inside an event.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EventClientInfo {
    /// The user.
    pub user: String,
    /// The connection's id.
    pub client: String,
    /// The connection token's `info`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conn_info: Option<Box<RawValue>>,
    /// The subscription token's `info`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chan_info: Option<Box<RawValue>>,
}
