//! How a channel learns what came of a medium.

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::json;
use shared::ids::ChannelName;
use store::records::{MediaState, Medium};

/// Publishes into channels; the composition root joins it to the gateway's broker.
#[async_trait]
pub trait ChannelPublisher: Send + Sync + 'static {
    /// Publishes JSON; a repeated key publishes nothing and is no error.
    ///
    /// # Errors
    /// See [`PublishError`].
    async fn publish(
        &self,
        channel: &ChannelName,
        data: Bytes,
        key: &str,
    ) -> Result<(), PublishError>;
}

/// Why a publish failed.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// No answer, or "try later": publish again with the same key.
    #[error("cannot publish now: {0}")]
    Unavailable(String),
    /// It will never be published: the channel's namespace is gone, or the key was used.
    #[error("cannot publish: {0}")]
    Refused(String),
}

/// Writes what a channel learns about a medium whose work is over; made of its row alone, so that
/// it is the same however often it is made.
pub(crate) fn announcement(medium: &Medium) -> Bytes {
    let about = match (&medium.state, &medium.result) {
        (MediaState::Ready, Some(result)) => json!({
            "type": "media.ready",
            "media": {
                "id": medium.id,
                "user": medium.user,
                "name": medium.file_name,
                "content_type": result.content_type,
                "size": result.size,
                "picture": result.picture,
            },
        }),
        _ => {
            let (code, text) = medium.reason.split_once(": ").unwrap_or_default();
            json!({
                "type": "media.rejected",
                "media": {
                    "id": medium.id,
                    "user": medium.user,
                    "name": medium.file_name,
                    "reason": { "code": code, "message": text },
                },
            })
        }
    };
    Bytes::from(about.to_string())
}
