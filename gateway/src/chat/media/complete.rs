//! `media.complete`: the bytes are uploaded, the upload worker may begin.

use schemars::JsonSchema;
use serde::Deserialize;
use shared::events::MediaEvent;
use store::job_log::media_job;
use store::media::{MediaError, keys};
use store::records::{MediaState, Medium};

use super::super::error::ChatError;
use super::super::operation::Ask;
use super::super::{Caller, Chat, now_ms};
use super::{Media, MediaView};

/// Says that a medium was uploaded. It is checked, and its channel learns what comes of it.
#[derive(Debug, Deserialize, JsonSchema)]
pub(in super::super) struct CompleteMedia {
    /// The medium's id.
    id: String,
}

impl Ask for CompleteMedia {
    type Answer = MediaView;

    async fn handle(self, chat: &Chat, caller: &Caller) -> Result<MediaView, ChatError> {
        let user = caller.known_user()?;
        let media = chat.media()?;
        let mut medium = chat.medium(&self.id).await?;
        if medium.user != user.as_str() {
            return Err(ChatError::NotFound("there is no such medium"));
        }
        if medium.state == MediaState::Pending {
            // Who was a member at the beginning may be none any more.
            chat.may_upload(medium.channel.as_str(), caller).await?;
            media.check_upload(&medium).await?;
            let now = u64::try_from(now_ms()).unwrap_or_default();
            // Noted before the job: the sweep must not take away what a job waits for.
            chat.records()?.media_uploaded(medium.id, now).await?;
            medium.state = MediaState::Uploaded;
        }
        if medium.state == MediaState::Uploaded {
            // Again, too: the first attempt may have ended before its job was safe.
            media.submit(&medium, None).await?;
        }
        chat.media_view(medium, true).await
    }
}

impl Media {
    /// Puts the parts together, if there are any, and checks that all bytes are there.
    async fn check_upload(&self, medium: &Medium) -> Result<(), ChatError> {
        let key = keys::staging(&medium.id.to_string());
        if !medium.upload.is_empty() {
            match self
                .store
                .complete_parts(&key, &medium.upload, medium.size)
                .await
            {
                // An earlier attempt has put them together.
                Ok(_) | Err(MediaError::NotFound) => {}
                Err(MediaError::Refused(why)) => {
                    tracing::debug!(media = %medium.id, why, "parts cannot be put together");
                    return Err(ChatError::Conflict("parts of the upload are missing"));
                }
                Err(error) => return Err(error.into()),
            }
        }
        match self.store.size(&key).await? {
            Some(size) if size == medium.size => Ok(()),
            Some(_) => Err(ChatError::Conflict("parts of the upload are missing")),
            None => Err(ChatError::Conflict("nothing was uploaded yet")),
        }
    }

    /// Gives a medium to the upload worker. One that is given twice is worked on once; one that
    /// neither came with its bytes nor is in staging is being worked on, or was.
    pub(super) async fn submit(
        &self,
        medium: &Medium,
        bytes: Option<String>,
    ) -> Result<(), ChatError> {
        let key = keys::staging(&medium.id.to_string());
        if bytes.is_none() && self.store.size(&key).await?.is_none() {
            return Ok(());
        }
        let event = MediaEvent {
            id: medium.id,
            channel: medium.channel.clone(),
            user: medium.user.clone(),
            content_type: medium.content_type.clone(),
            size: medium.size,
            sha256: medium.sha256.clone(),
            bytes,
            uploaded_at_ms: u64::try_from(now_ms()).unwrap_or_default(),
        };
        let unavailable = |error: &dyn std::fmt::Display| {
            tracing::warn!(media = %event.id, %error, "upload job was not taken");
            ChatError::Unavailable("the job log did not answer")
        };
        let job = media_job(&event).map_err(|error| unavailable(&error))?;
        let appended = self.job_log.append(job).await;
        appended.map_err(|error| unavailable(&error))?;
        Ok(())
    }
}
