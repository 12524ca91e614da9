//! Joins the upload worker to the stores and to the gateway's publishing.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use gateway::{ServerPublishError, ServerPublisher};
use shared::config::Config;
use shared::events::TAG_MEDIA;
use shared::ids::ChannelName;
use store::media::MediaStore;
use workers::upload::{ChannelPublisher, PublishError};

use crate::command::with_sources;
use crate::process::Failure;

/// Scope of the keys that uploads publish with.
const SCOPE: &str = "media";

/// Opens the media store when one is configured.
pub(crate) async fn media_store(config: &Config) -> Result<Option<Arc<dyn MediaStore>>, Failure> {
    let opened = store::media::open(&config.media).await;
    opened.map_err(|error| Failure::Dependency(vec![format!("media: {}", with_sources(&error))]))
}

/// Announces media in their channels.
pub(crate) struct Announcer(pub(crate) ServerPublisher);

#[async_trait]
impl ChannelPublisher for Announcer {
    async fn publish(
        &self,
        channel: &ChannelName,
        data: Bytes,
        key: &str,
    ) -> Result<(), PublishError> {
        // The key is the medium's id.
        let tags = [(TAG_MEDIA.to_owned(), key.to_owned())].into();
        match self.0.publish(channel, data, tags, SCOPE, key).await {
            Ok(()) => Ok(()),
            Err(ServerPublishError::Broker(error)) if error.is_temporary() => {
                Err(PublishError::Unavailable(with_sources(&error)))
            }
            Err(error) => Err(PublishError::Refused(with_sources(&error))),
        }
    }
}
