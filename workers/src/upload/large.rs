//! Files that are kept as they are: read in pieces from staging, checked, and written to their
//! place in parts. At no time more than one part is in memory.

use bytes::Bytes;
use sha2::{Digest, Sha256};
use shared::events::MediaEvent;
use store::media::{MediaError, MediaStore, PartOf, keys};

use super::{Failure, Rejection, check_sum, hex};

/// Bytes of one part; S3 allows 10,000 parts of at least 5 MiB.
pub(crate) const PART_BYTES: u64 = 8 << 20;
/// How often one part is tried beyond what the store itself does.
const PART_TRIES: u32 = 3;

/// Moves a checked file to its place.
///
/// # Errors
/// A rejection when it is not what was declared; nothing is left then.
pub(crate) async fn keep(store: &dyn MediaStore, event: &MediaEvent) -> Result<(), Failure> {
    let (from, to) = (
        keys::staging(&event.id.to_string()),
        keys::original(&event.id.to_string()),
    );
    if store.size(&to).await? == Some(event.size) {
        // Made whole by an earlier try: it was checked before it was put there.
        return Ok(());
    }
    if event.size <= PART_BYTES {
        let body = store.read(&from, 0, event.size).await?;
        check_sum(&body, &event.sha256)?;
        store.put(&to, body, &event.content_type).await?;
        return Ok(());
    }
    let upload = store.begin_parts(&to, &event.content_type).await?;
    let copied = copy(store, event, &from, &to, &upload).await;
    if copied.is_err() {
        // What cannot be aborted now is found by the sweep.
        if let Err(error) = store.abort_parts(&to, &upload).await {
            tracing::debug!(media = %event.id, %error, "upload was not aborted");
        }
    }
    copied
}

async fn copy(
    store: &dyn MediaStore,
    event: &MediaEvent,
    from: &str,
    to: &str,
    upload: &str,
) -> Result<(), Failure> {
    let mut hash = Sha256::new();
    let mut offset = 0;
    let mut number = 0;
    while offset < event.size {
        let length = PART_BYTES.min(event.size - offset);
        let body = store.read(from, offset, length).await?;
        if body.len() as u64 != length {
            return Err(Rejection::new("size_mismatch", "the file became shorter").into());
        }
        hash.update(&body);
        offset += length;
        number += 1;
        let part = PartOf {
            key: to,
            upload,
            number,
        };
        put_part(store, part, body).await?;
    }
    if hex(&hash.finalize()) != event.sha256 {
        return Err(Rejection::checksum().into());
    }
    store.complete_parts(to, upload, event.size).await?;
    Ok(())
}

async fn put_part(store: &dyn MediaStore, part: PartOf<'_>, body: Bytes) -> Result<(), MediaError> {
    let mut tries = 1;
    loop {
        match store.put_part(part, body.clone()).await {
            Err(MediaError::Unavailable(_)) if tries < PART_TRIES => tries += 1,
            answer => return answer,
        }
    }
}
