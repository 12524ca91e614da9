//! Where clients upload to and download from: signed addresses that are good for a short time.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use schemars::JsonSchema;
use serde::Serialize;
use store::media::{DownloadTerms, MediaError, PartOf, SignedRequest, UploadTerms, keys};
use store::records::{Medium, PictureResult};

use super::Media;

/// Parts of one upload at most: an answer holds all their addresses.
const PARTS_MAX: u64 = 50;
/// Smallest part, but for the last.
const PART_BYTES_MIN: u64 = 8 << 20;

/// How a medium is uploaded: by one request, or by one for each part.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Upload {
    /// All of them must succeed, in any order; each may be sent again.
    requests: Vec<UploadRequest>,
    /// How many seconds the addresses are good; `media.get` gives new ones.
    expires_in: u64,
}

/// One request of an upload.
#[derive(Debug, Serialize, JsonSchema)]
struct UploadRequest {
    method: String,
    /// A path is one on the node's own address.
    url: String,
    /// Headers that the request must have.
    headers: Vec<(String, String)>,
    /// First byte of the file that it carries.
    offset: u64,
    /// Bytes of the file that it carries: exactly so many.
    size: u64,
}

/// Where a medium can be had.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Download {
    url: String,
    /// How many seconds the addresses are good.
    expires_in: u64,
    /// What only pictures have.
    #[serde(skip_serializing_if = "Option::is_none")]
    picture: Option<Picture>,
}

/// A picture.
#[derive(Debug, Serialize, JsonSchema)]
struct Picture {
    width: u32,
    height: u32,
    /// A blur to show before it is loaded (blurha.sh).
    blurhash: String,
    /// From the smallest to the largest.
    thumbnails: Vec<ThumbnailView>,
}

/// A smaller copy of a picture.
#[derive(Debug, Serialize, JsonSchema)]
struct ThumbnailView {
    width: u32,
    height: u32,
    url: String,
}

/// Returns the size of an upload's parts.
pub(super) fn part_bytes(size: u64) -> u64 {
    size.div_ceil(PARTS_MAX).max(PART_BYTES_MIN)
}

impl Media {
    /// True when a file is uploaded in parts.
    pub(super) fn has_parts(&self, size: u64) -> bool {
        size >= self.config.multipart_bytes_min
    }

    /// Signs the requests that upload a pending medium.
    pub(super) async fn upload(&self, medium: &Medium) -> Result<Upload, MediaError> {
        let key = keys::staging(&medium.id.to_string());
        let ttl = self.config.upload_url_ttl;
        let mut requests = Vec::new();
        if medium.upload.is_empty() {
            let terms = UploadTerms {
                size: medium.size,
                content_type: medium.content_type.clone(),
                sha256: sha256(&medium.sha256),
            };
            let signed = self.store.sign_put(&key, &terms, ttl).await?;
            requests.push(request(signed, 0, medium.size));
        } else {
            let part_bytes = part_bytes(medium.size);
            let mut offset = 0;
            let mut number = 0;
            while offset < medium.size {
                number += 1;
                let size = part_bytes.min(medium.size - offset);
                let part = PartOf {
                    key: &key,
                    upload: &medium.upload,
                    number,
                };
                let signed = self.store.sign_part(part, size, ttl).await?;
                requests.push(request(signed, offset, size));
                offset += size;
            }
        }
        Ok(Upload {
            requests,
            expires_in: ttl.as_secs(),
        })
    }

    /// Signs the downloads of a medium that is ready.
    pub(super) async fn download(&self, medium: &Medium) -> Result<Option<Download>, MediaError> {
        let Some(made) = &medium.result else {
            return Ok(None);
        };
        let id = medium.id.to_string();
        // A picture was made anew by the worker; anything else is what its uploader wrote, and
        // no browser may open it as if it were ours.
        let kind = if made.picture.is_some() {
            "inline"
        } else {
            "attachment"
        };
        let terms = DownloadTerms {
            content_type: made.content_type.clone(),
            disposition: disposition(kind, &medium.file_name),
        };
        let ttl = self.config.download_url_ttl;
        let url = self
            .store
            .sign_get(&keys::original(&id), &terms, ttl)
            .await?;
        let picture = match &made.picture {
            Some(about) => Some(self.picture(&id, about, &terms).await?),
            None => None,
        };
        Ok(Some(Download {
            url,
            expires_in: ttl.as_secs(),
            picture,
        }))
    }

    async fn picture(
        &self,
        id: &str,
        about: &PictureResult,
        original: &DownloadTerms,
    ) -> Result<Picture, MediaError> {
        let mut thumbnails = Vec::new();
        for thumbnail in &about.thumbnails {
            let terms = DownloadTerms {
                content_type: thumbnail.content_type.clone(),
                disposition: original.disposition.clone(),
            };
            let key = keys::thumbnail(id, thumbnail.side);
            let ttl = self.config.download_url_ttl;
            thumbnails.push(ThumbnailView {
                width: thumbnail.width,
                height: thumbnail.height,
                url: self.store.sign_get(&key, &terms, ttl).await?,
            });
        }
        Ok(Picture {
            width: about.width,
            height: about.height,
            blurhash: about.blurhash.clone(),
            thumbnails,
        })
    }
}

fn request(signed: SignedRequest, offset: u64, size: u64) -> UploadRequest {
    UploadRequest {
        method: signed.method,
        url: signed.url,
        headers: signed.headers,
        offset,
        size,
    }
}

/// Writes `Content-Disposition` (RFC 6266) with a name in any script.
fn disposition(kind: &str, name: &str) -> String {
    if name.is_empty() {
        return kind.to_owned();
    }
    let name = utf8_percent_encode(name, NON_ALPHANUMERIC);
    format!("{kind}; filename*=UTF-8''{name}")
}

/// Reads the 64 digits that `media.create` has checked.
fn sha256(digits: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (place, byte) in bytes.iter_mut().enumerate() {
        let pair = digits.get(place * 2..place * 2 + 2).unwrap_or_default();
        *byte = u8::from_str_radix(pair, 16).unwrap_or_default();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_header() {
        let written = disposition("attachment", "a\"\r\nSet-Cookie: é.pdf");
        assert_eq!(
            written,
            "attachment; filename*=UTF-8''a%22%0D%0ASet%2DCookie%3A%20%C3%A9%2Epdf"
        );
        assert_eq!(disposition("inline", ""), "inline");
    }

    #[test]
    fn an_upload_has_a_bounded_number_of_parts() {
        for size in [16 << 20, 1 << 30, 5 << 30] {
            let parts = u64::div_ceil(size, part_bytes(size));
            assert!((2..=PARTS_MAX).contains(&parts), "{size}: {parts}");
        }
    }
}
