//! A push to make.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::ids::{ChannelName, MessageId};

/// A push to one user, on all of the user's devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushEvent {
    /// Names the push: made from what it is about, so that a job that is done again makes the
    /// same one.
    pub id: Uuid,
    /// The user, also the Kafka key.
    pub user: String,
    /// What was said; absent for a push of the server API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<PushAbout>,
    /// What is shown; absent: the app decides from `data`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notification: Option<PushNotification>,
    /// What the app reads.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub data: BTreeMap<String, String>,
    /// Pushes with one key replace each other on the screen; empty: this one replaces none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub collapse_key: String,
    /// When it was asked for, Unix milliseconds.
    pub requested_at_ms: u64,
    /// When nobody wants it any more, Unix milliseconds.
    pub expires_at_ms: u64,
}

/// The messages of a channel that a push is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushAbout {
    /// The channel.
    pub channel: ChannelName,
    /// Its newest message among them.
    pub message_id: MessageId,
    /// That one's place in the channel.
    pub offset: u64,
    /// How many they are.
    pub count: u32,
}

/// What a push shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PushNotification {
    /// First line.
    #[serde(default)]
    pub title: String,
    /// The rest; shortened when the provider cannot carry all of it.
    #[serde(default)]
    pub body: String,
}
