//! One medium, from its job to what its channel learns.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use shared::config::MediaConfig;
use shared::events::MediaEvent;
use store::media::{self, MediaError, MediaStore, keys};
use store::records::{MediaResult, MediaState, Medium, Records};
use tokio::sync::Semaphore;

use super::picture::{self, Bounds};
use super::pool::Pool;
use super::publisher::{ChannelPublisher, PublishError, announcement};
use super::{Failure, Rejection, check_sum, kind, large, now_ms, with_source};

/// Pictures that are read while others are made: enough to keep the threads busy.
const READ_MAX: usize = 3;

/// Works on media.
pub(crate) struct Worker {
    store: Arc<dyn MediaStore>,
    records: Records,
    publisher: Arc<dyn ChannelPublisher>,
    pool: Pool,
    /// Whole pictures read into memory and not yet made, whichever consumer brought them.
    read: Semaphore,
    bounds: Arc<Bounds>,
    content_types: Vec<String>,
    size_max: u64,
    image_bytes_max: u64,
}

/// What a job came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    /// The medium's outcome is new.
    New,
    /// It was known, or the medium is gone.
    Before,
}

impl Worker {
    pub(crate) fn new(
        config: &MediaConfig,
        store: Arc<dyn MediaStore>,
        records: Records,
        publisher: Arc<dyn ChannelPublisher>,
    ) -> Self {
        Self {
            store,
            records,
            publisher,
            pool: Pool::new(config.image_memory_max, config.image_timeout),
            read: Semaphore::new(READ_MAX),
            bounds: Arc::new(Bounds::of(config)),
            content_types: config.content_types.clone(),
            size_max: config.size_max,
            image_bytes_max: config.image_bytes_max,
        }
    }

    /// Brings a medium to its end: an outcome in its row, a publication, nothing in staging.
    ///
    /// # Errors
    /// In plain words, why the same job must be tried again later.
    pub(crate) async fn work(&self, event: MediaEvent) -> Result<Done, String> {
        let later = |failure: Failure| match failure {
            Failure::Later(why) => why,
            Failure::Rejected(why) => why.text,
        };
        let id = event.id;
        let found = self.records.medium(id).await;
        let Some(medium) = found.map_err(|error| later(error.into()))? else {
            // Erased, with its user perhaps: nothing of it may stay.
            let erased = media::erase(&*self.store, &id.to_string()).await;
            erased.map_err(|error| with_source(&error))?;
            return Ok(Done::Before);
        };
        let is_over = matches!(medium.state, MediaState::Ready | MediaState::Rejected);
        if !is_over {
            let noted = match self.make(&event).await {
                Ok(result) => self.records.media_ready(id, &result, now_ms()).await,
                Err(Failure::Rejected(why)) => {
                    tracing::info!(media = %id, code = why.code, why = why.text, "medium rejected");
                    let reason = format!("{}: {}", why.code, why.text);
                    self.records.media_rejected(id, &reason, now_ms()).await
                }
                Err(Failure::Later(why)) => return Err(why),
            };
            noted.map_err(|error| later(error.into()))?;
        }
        self.announce(&event, medium).await?;
        self.unstage(&event).await?;
        Ok(if is_over { Done::Before } else { Done::New })
    }

    /// Checks the file and writes what is kept of it.
    async fn make(&self, event: &MediaEvent) -> Result<MediaResult, Failure> {
        let file = File::of(event, &*self.store)?;
        self.check_size(event, file.size().await?)?;
        let prefix = file.read(kind::PREFIX_BYTES.min(event.size)).await?;
        kind::check(&prefix, &event.content_type, &self.content_types)?;
        match picture::format_of(&event.content_type) {
            Some(format) => {
                let reading = self.read.acquire().await;
                let _reading =
                    reading.map_err(|_| Failure::Later("the worker stops".to_owned()))?;
                let bytes = file.read(event.size).await?;
                self.make_picture(event, format, bytes).await
            }
            None => self.make_file(event, file).await,
        }
    }

    fn check_size(&self, event: &MediaEvent, size: u64) -> Result<(), Rejection> {
        if size != event.size {
            let text = format!("the file has {size} bytes, not {}", event.size);
            return Err(Rejection::new("size_mismatch", text));
        }
        let is_picture = picture::format_of(&event.content_type).is_some();
        let most = if is_picture {
            self.image_bytes_max
        } else {
            self.size_max
        };
        if size > most {
            let text = format!("the file has {size} bytes; at most {most} are allowed");
            return Err(Rejection::new("too_large", text));
        }
        Ok(())
    }

    async fn make_picture(
        &self,
        event: &MediaEvent,
        format: image::ImageFormat,
        bytes: Bytes,
    ) -> Result<MediaResult, Failure> {
        check_sum(&bytes, &event.sha256)?;
        let memory = picture::cost(&bytes, format, &self.bounds)?;
        let bounds = Arc::clone(&self.bounds);
        let made = self.pool.run(memory, move |deadline| {
            picture::make(bytes, format, &bounds, deadline)
        });
        let made = made.await?;
        let id = event.id.to_string();
        let size = made.bytes.len() as u64;
        for (thumbnail, bytes) in made.about.thumbnails.iter().zip(made.thumbnails) {
            let key = keys::thumbnail(&id, thumbnail.side);
            let put = self.store.put(&key, bytes, &thumbnail.content_type);
            put.await?;
        }
        let key = keys::original(&id);
        self.store.put(&key, made.bytes, made.content_type).await?;
        Ok(MediaResult {
            content_type: made.content_type.to_owned(),
            size,
            picture: Some(made.about),
        })
    }

    async fn make_file(&self, event: &MediaEvent, file: File<'_>) -> Result<MediaResult, Failure> {
        match file {
            File::Inline(bytes) => {
                check_sum(&bytes, &event.sha256)?;
                let key = keys::original(&event.id.to_string());
                self.store.put(&key, bytes, &event.content_type).await?;
            }
            File::Staged(..) => large::keep(&*self.store, event).await?,
        }
        Ok(MediaResult {
            content_type: event.content_type.clone(),
            size: event.size,
            picture: None,
        })
    }

    /// Tells the channel; what it learns is made of the row, not of this try.
    async fn announce(&self, event: &MediaEvent, before: Medium) -> Result<(), String> {
        let found = self.records.medium(event.id).await;
        let medium = match found.map_err(|error| with_source(&error))? {
            Some(medium) => medium,
            None => before,
        };
        if !matches!(medium.state, MediaState::Ready | MediaState::Rejected) {
            return Err("the row has no outcome yet".to_owned());
        }
        let key = medium.id.to_string();
        let published = self
            .publisher
            .publish(&medium.channel, announcement(&medium), &key);
        match published.await {
            Err(PublishError::Refused(why)) => {
                // Everybody can still ask for the medium; the channel just does not hear of it.
                tracing::warn!(media = %medium.id, channel = %medium.channel, why, "medium is not announced");
                Ok(())
            }
            answer => answer.map_err(|error| error.to_string()),
        }
    }

    async fn unstage(&self, event: &MediaEvent) -> Result<(), String> {
        if event.bytes.is_some() {
            return Ok(());
        }
        let deleted = self.store.delete(&staging(event)).await;
        deleted.map_err(|error| with_source(&error))
    }
}

fn staging(event: &MediaEvent) -> String {
    keys::staging(&event.id.to_string())
}

/// Where an uploaded file is.
enum File<'a> {
    /// In the job.
    Inline(Bytes),
    /// In staging, under this key.
    Staged(&'a dyn MediaStore, String),
}

impl<'a> File<'a> {
    fn of(event: &MediaEvent, store: &'a dyn MediaStore) -> Result<Self, Rejection> {
        let Some(encoded) = &event.bytes else {
            return Ok(Self::Staged(store, staging(event)));
        };
        let bytes = STANDARD.decode(encoded);
        bytes
            .map(|bytes| Self::Inline(bytes.into()))
            .map_err(|_| Rejection::new("size_mismatch", "the file's bytes are no base64"))
    }

    async fn size(&self) -> Result<u64, MediaError> {
        match self {
            Self::Inline(bytes) => Ok(bytes.len() as u64),
            Self::Staged(store, key) => store.size(key).await?.ok_or(MediaError::NotFound),
        }
    }

    /// Reads its begin; no more than it has.
    async fn read(&self, length: u64) -> Result<Bytes, MediaError> {
        match self {
            Self::Inline(bytes) => {
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                Ok(bytes.slice(..length.min(bytes.len())))
            }
            Self::Staged(store, key) => store.read(key, 0, length).await,
        }
    }
}
