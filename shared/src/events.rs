//! The jobs that travel through Kafka: event types, topics and their JSON.
//!
//! CloudEvents 1.0 in Kafka's binary mode: attributes are `ce_*` headers, the value is the data
//! below. `docs/wire.md` describes both byte for byte.

mod push;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::ids::{ChannelName, Epoch, MediaId, MessageId};
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

/// Tag with the message's id.
pub const TAG_ID: &str = "id";
/// Tag with the [`PublicationKind`] of what is no message; [`RESERVED_TAGS`] begins its name.
pub const TAG_KIND: &str = "wyd.kind";
/// Tag with the id of the message that an edit or a deletion is for.
pub const TAG_TARGET: &str = "wyd.target";
/// Tag of what the server says about a medium: its id. Data of that look without the tag is just
/// what somebody wrote.
pub const TAG_MEDIA: &str = "wyd.media";
/// Beginning of the names of tags that only this project's own publications carry.
pub const RESERVED_TAGS: &str = "wyd.";
/// `type` inside the data of an edit.
pub const MESSAGE_EDITED: &str = "message.edited";
/// `type` inside the data of a deletion.
pub const MESSAGE_DELETED: &str = "message.deleted";

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
    /// What the publication is: `message`, `edited` or `deleted`.
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
    /// Labels of the publication; [`RESERVED_TAGS`] say which message an edit is for.
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
    /// New data for a message of the same channel.
    Edited,
    /// A message of the same channel is to be shown no more.
    Deleted,
}

impl PublicationKind {
    /// Returns the kind's name, as jobs, tags and the archive write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::Edited => "edited",
            Self::Deleted => "deleted",
        }
    }

    /// Returns the kind of that name.
    pub fn of_name(name: &str) -> Option<Self> {
        [Self::Message, Self::Edited, Self::Deleted]
            .into_iter()
            .find(|kind| kind.name() == name)
    }

    /// Returns what a publication with these tags is.
    pub fn of_tags(tags: &Tags) -> Self {
        let named = tags.get(TAG_KIND).and_then(|name| Self::of_name(name));
        named.unwrap_or(Self::Message)
    }
}

impl PublicationEvent {
    /// Returns the message that an edit or a deletion is for.
    pub fn target(&self) -> Option<MessageId> {
        let target = self.tags.get(TAG_TARGET)?;
        MessageId::parse(target)
    }
}

/// The tags that make a publication an edit or a deletion of a message.
pub fn change_tags(kind: PublicationKind, target: MessageId) -> Tags {
    Tags::from([
        (TAG_KIND.to_owned(), kind.name().to_owned()),
        (TAG_TARGET.to_owned(), target.to_string()),
    ])
}

/// Data of a publication that edits a message.
#[derive(Debug, Serialize, Deserialize)]
pub struct EditedData<'a> {
    /// `message.edited`.
    #[serde(rename = "type")]
    pub event: Cow<'a, str>,
    /// The message.
    pub id: MessageId,
    /// What it says from now on.
    #[serde(borrow)]
    pub data: &'a RawValue,
}

/// Data of a publication that deletes a message.
#[derive(Debug, Serialize, Deserialize)]
pub struct DeletedData<'a> {
    /// `message.deleted`.
    #[serde(rename = "type")]
    pub event: Cow<'a, str>,
    /// The message.
    pub id: MessageId,
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

/// A medium that was uploaded and waits to be checked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MediaEvent {
    /// The medium, also the Kafka key.
    pub id: MediaId,
    /// The channel that learns what came of it.
    pub channel: ChannelName,
    /// Who uploaded it.
    pub user: String,
    /// Content type as the user declared it.
    pub content_type: String,
    /// Bytes, as declared.
    pub size: u64,
    /// SHA-256 of the bytes as declared, 64 hexadecimal digits.
    pub sha256: String,
    /// The bytes themselves, in base64; absent: they are in the media store's staging area.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<String>,
    /// When the upload was completed, Unix milliseconds.
    pub uploaded_at_ms: u64,
}
