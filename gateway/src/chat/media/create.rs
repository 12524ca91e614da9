//! `media.create`: a medium is announced, or sent whole when it is small.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use shared::ids::{ChannelName, MediaId};
use store::media::keys;
use store::records::{MediaCreated, MediaQuota, MediaState, Medium};

use super::super::error::ChatError;
use super::super::operation::Ask;
use super::super::validate::require;
use super::super::{Caller, Chat, now_ms};
use super::{Media, MediaView};

/// Time in which a user's bytes are counted.
const DAY_MS: u64 = 24 * 3600 * 1000;
/// Longest name of a file, in bytes.
const NAME_BYTES_MAX: usize = 255;
/// Longest idempotency key, in bytes.
const KEY_BYTES_MAX: usize = 255;

/// Announces a picture or a file of a channel, and says where to upload it. A small one may come
/// with its bytes; there is nothing to upload or to complete then.
#[derive(Debug, Deserialize, JsonSchema)]
pub(in super::super) struct CreateMedia {
    channel: String,
    /// What people call it.
    #[serde(default)]
    name: String,
    /// Its type, which its bytes must bear out.
    content_type: String,
    /// Its size in bytes; not needed with `bytes`.
    size: Option<u64>,
    /// SHA-256 of its bytes, 64 hexadecimal digits; not needed with `bytes`.
    #[serde(default)]
    sha256: String,
    /// The bytes themselves, in base64; only of a small file.
    bytes: Option<String>,
    /// Announced again with the same key, it is the same medium.
    #[serde(default)]
    idempotency_key: String,
}

impl Ask for CreateMedia {
    type Answer = MediaView;

    async fn handle(self, chat: &Chat, caller: &Caller) -> Result<MediaView, ChatError> {
        let user = caller.known_user()?.as_str();
        let media = chat.media()?;
        let channel = chat.may_upload(&self.channel, caller).await?;
        let file = self.file(media)?;
        let medium = self.medium(channel, user, file);
        let quota = MediaQuota {
            pending_max: media.config.pending_max,
            bytes_max: media.config.bytes_per_day_max,
            since_ms: medium.created_at_ms.saturating_sub(DAY_MS),
        };
        let medium = match chat.records()?.create_medium(&medium, &quota).await? {
            MediaCreated::New => medium,
            MediaCreated::Known(known) => same(*known, &medium)?,
            MediaCreated::TooManyPending => {
                let max = quota.pending_max;
                let text = format!("{max} media wait for their upload: complete them first");
                return Err(ChatError::Limit(text));
            }
            MediaCreated::TooManyBytes => {
                let text = format!("at most {} bytes in 24 hours", quota.bytes_max);
                return Err(ChatError::Limit(text));
            }
        };
        let medium = match medium.state {
            MediaState::Pending => chat.with_upload(media, medium).await?,
            MediaState::Uploaded => {
                // Again, too: the first attempt may have ended before its job was safe.
                media.submit(&medium, self.bytes).await?;
                medium
            }
            MediaState::Ready | MediaState::Rejected => medium,
        };
        chat.media_view(medium, true).await
    }
}

/// What is announced about the bytes.
struct File {
    size: u64,
    sha256: String,
}

impl CreateMedia {
    /// Checks the request and finds out about the bytes.
    fn file(&self, media: &Media) -> Result<File, ChatError> {
        let config = &media.config;
        let is_good = self.name.len() <= NAME_BYTES_MAX && !self.name.chars().any(char::is_control);
        require(is_good, || {
            format!("name: at most {NAME_BYTES_MAX} bytes, no control characters")
        })?;
        let is_good = self.idempotency_key.len() <= KEY_BYTES_MAX;
        require(is_good, || {
            format!("idempotency_key: at most {KEY_BYTES_MAX} bytes")
        })?;
        let is_good = config.content_types.contains(&self.content_type);
        require(is_good, || {
            let allowed = config.content_types.join(", ");
            format!("content_type: one of {allowed}")
        })?;
        let file = match &self.bytes {
            Some(encoded) => inline(encoded, config.small_bytes_max)?,
            None => {
                let size = self.size.unwrap_or_default();
                let is_digit = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
                let is_good = self.sha256.len() == 64 && self.sha256.chars().all(is_digit);
                require(is_good, || {
                    "sha256: 64 hexadecimal digits in lower case".to_owned()
                })?;
                File {
                    size,
                    sha256: self.sha256.clone(),
                }
            }
        };
        let is_good = self.size.is_none_or(|size| size == file.size) && file.size > 0;
        require(is_good, || "size: the number of its bytes".to_owned())?;
        let is_picture = self.content_type.starts_with("image/");
        let most = if is_picture {
            config.image_bytes_max
        } else {
            config.size_max
        };
        if file.size > most {
            return Err(ChatError::TooLarge(format!("size: at most {most} bytes")));
        }
        Ok(file)
    }

    fn medium(&self, channel: ChannelName, user: &str, file: File) -> Medium {
        let id = if self.idempotency_key.is_empty() {
            MediaId::now()
        } else {
            MediaId::of_key(user, &self.idempotency_key)
        };
        Medium {
            id,
            channel,
            user: user.to_owned(),
            state: match self.bytes {
                Some(_) => MediaState::Uploaded,
                None => MediaState::Pending,
            },
            file_name: self.name.clone(),
            content_type: self.content_type.clone(),
            size: file.size,
            sha256: file.sha256,
            upload: String::new(),
            result: None,
            reason: String::new(),
            created_at_ms: u64::try_from(now_ms()).unwrap_or_default(),
        }
    }
}

impl Chat {
    /// Begins the upload in parts that a large file needs, once.
    async fn with_upload(&self, media: &Media, medium: Medium) -> Result<Medium, ChatError> {
        if !media.has_parts(medium.size) || !medium.upload.is_empty() {
            return Ok(medium);
        }
        let key = keys::staging(&medium.id.to_string());
        let upload = media.store.begin_parts(&key, &medium.content_type).await?;
        // One that loses a race here is aborted by the sweep.
        self.records()?.set_media_upload(medium.id, &upload).await?;
        Ok(Medium { upload, ..medium })
    }
}

fn inline(encoded: &str, most: usize) -> Result<File, ChatError> {
    let bytes = STANDARD.decode(encoded);
    let bytes = bytes.map_err(|_| ChatError::Invalid("bytes: no base64".to_owned()))?;
    if bytes.len() > most {
        let text = format!("bytes: at most {most}; upload a larger file");
        return Err(ChatError::TooLarge(text));
    }
    let digest = Sha256::digest(&bytes);
    Ok(File {
        size: bytes.len() as u64,
        sha256: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
    })
}

/// A key stands for one announcement.
fn same(known: Medium, new: &Medium) -> Result<Medium, ChatError> {
    let is_same = known.user == new.user
        && known.channel == new.channel
        && known.content_type == new.content_type
        && known.sha256 == new.sha256
        && known.size == new.size;
    if is_same {
        Ok(known)
    } else {
        Err(ChatError::Conflict(
            "the idempotency key was used for another medium",
        ))
    }
}
