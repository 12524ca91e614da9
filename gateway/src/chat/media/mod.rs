//! `media.create`, `media.complete`, `media.get`: pictures and files of a channel.
//!
//! The bytes do not pass through a node, but for small files, which the request itself holds:
//! `address` signs where a client uploads to and downloads from. What is uploaded is a job for
//! the upload worker; what comes of it is published in the channel (`media.ready`,
//! `media.rejected`). Keys, names and types in addresses are never a client's to choose.

mod address;
mod complete;
mod create;

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use shared::config::MediaConfig;
use shared::ids::{ChannelName, MediaId};
use shared::protocol::ClientError;
use store::job_log::JobLog;
use store::media::{MediaError, MediaStore};
use store::records::{MediaState, Medium};

use super::error::ChatError;
use super::operation::Ask;
use super::{Caller, Chat};
use crate::channel::Action;

pub(super) use complete::CompleteMedia;
pub(super) use create::CreateMedia;

/// What media need besides the records.
pub(crate) struct Media {
    /// Where the objects are.
    pub(crate) store: Arc<dyn MediaStore>,
    /// Where the upload worker's jobs go.
    pub(crate) job_log: Arc<dyn JobLog>,
    /// What may be uploaded.
    pub(crate) config: MediaConfig,
}

/// Reads a medium; its uploader also learns where to upload what is missing.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct GetMedia {
    /// The medium's id.
    id: String,
    /// Its channel; needed only where a subscription token lets the user in.
    #[serde(default)]
    channel: String,
}

/// A medium.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct MediaView {
    id: String,
    channel: String,
    /// Who uploaded it.
    user: String,
    state: StateName,
    /// The uploader's name for it.
    name: String,
    content_type: String,
    /// Bytes.
    size: u64,
    /// Where to upload it; only while it is pending, and to its uploader.
    #[serde(skip_serializing_if = "Option::is_none")]
    upload: Option<address::Upload>,
    /// Where to download it, for a short time; only when it is ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    download: Option<address::Download>,
    /// Why it was rejected.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<ReasonView>,
}

/// How far a medium is.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum StateName {
    /// Its bytes are not there yet.
    Pending,
    /// Its bytes are being checked.
    Uploaded,
    /// It can be downloaded.
    Ready,
    /// It never will be.
    Rejected,
}

/// Why a medium was rejected.
#[derive(Debug, Serialize, JsonSchema)]
struct ReasonView {
    /// For programs.
    code: String,
    /// For people.
    message: String,
}

impl Chat {
    fn media(&self) -> Result<&Media, ChatError> {
        let media = self.media.as_ref();
        media.ok_or(ChatError::Protocol(ClientError::NOT_AVAILABLE))
    }

    /// Finds a medium by the id that a client sent.
    async fn medium(&self, id: &str) -> Result<Medium, ChatError> {
        let missing = ChatError::NotFound("there is no such medium");
        let Some(id) = MediaId::parse(id) else {
            return Err(missing);
        };
        self.records()?.medium(id).await?.ok_or(missing)
    }

    /// Checks that a caller may put something into a channel.
    async fn may_upload(&self, name: &str, caller: &Caller) -> Result<ChannelName, ChatError> {
        let channels = &self.rules.channels;
        let (channel, namespace) = channels.resolve(name)?;
        channels.may(Action::Publish, &namespace, caller.asker(&channel))?;
        if channels.needs_membership(&namespace) {
            self.memberships.may_write(&channel, caller.user()).await?;
        }
        Ok(channel)
    }

    /// Checks that a caller may see what is in a channel: whoever may subscribe.
    async fn may_see(&self, channel: &ChannelName, caller: &Caller) -> Result<(), ChatError> {
        let channels = &self.rules.channels;
        let (_, namespace) = channels.resolve(channel.as_str())?;
        if channels.needs_membership(&namespace) {
            return Ok(self.memberships.may_read(channel, caller.user()).await?);
        }
        if caller.asker(channel).is_subscribed {
            return Ok(());
        }
        Ok(channels.may_subscribe(channel, &namespace, caller.user())?)
    }

    async fn media_view(&self, medium: Medium, is_own: bool) -> Result<MediaView, ChatError> {
        let media = self.media()?;
        let upload = match medium.state {
            MediaState::Pending if is_own => Some(media.upload(&medium).await?),
            _ => None,
        };
        let download = media.download(&medium).await?;
        let (code, message) = medium.reason.split_once(": ").unwrap_or_default();
        let reason = (medium.state == MediaState::Rejected).then(|| ReasonView {
            code: code.to_owned(),
            message: message.to_owned(),
        });
        let (content_type, size) = match medium.result {
            Some(made) => (made.content_type, made.size),
            None => (medium.content_type, medium.size),
        };
        Ok(MediaView {
            id: medium.id.to_string(),
            channel: medium.channel.as_str().to_owned(),
            user: medium.user,
            state: medium.state.into(),
            name: medium.file_name,
            content_type,
            size,
            upload,
            download,
            reason,
        })
    }
}

impl Ask for GetMedia {
    type Answer = MediaView;

    async fn handle(self, chat: &Chat, caller: &Caller) -> Result<MediaView, ChatError> {
        chat.media()?;
        let medium = chat.medium(&self.id).await?;
        let is_own = !caller.user().is_anonymous() && medium.user == caller.user().as_str();
        let is_named = self.channel.is_empty() || self.channel == medium.channel.as_str();
        // Who may not see it learns not even that it is there.
        let hidden = |_| ChatError::NotFound("there is no such medium");
        if !is_own {
            chat.may_see(&medium.channel, caller)
                .await
                .map_err(hidden)?;
        }
        let is_visible = is_own || medium.state == MediaState::Ready;
        if !is_named || !is_visible {
            return Err(ChatError::NotFound("there is no such medium"));
        }
        chat.media_view(medium, is_own).await
    }
}

impl From<MediaState> for StateName {
    fn from(state: MediaState) -> Self {
        match state {
            MediaState::Pending => Self::Pending,
            MediaState::Uploaded => Self::Uploaded,
            MediaState::Ready => Self::Ready,
            MediaState::Rejected => Self::Rejected,
        }
    }
}

impl From<MediaError> for ChatError {
    fn from(error: MediaError) -> Self {
        let source = std::error::Error::source(&error).map(ToString::to_string);
        tracing::warn!(%error, source, "media store failed");
        Self::Unavailable("the media store did not answer")
    }
}
