//! What tells two payloads under one idempotency key apart.

use xxhash_rust::xxh3::Xxh3Default;

use super::NewPublication;

/// Tag that the gateway itself adds; derived from the key, so no part of the payload.
const TAG_ID: &str = "id";

/// Hashes what the caller chose: data and tags, not who was connected from where.
pub(super) fn fingerprint(publication: &NewPublication) -> [u8; 16] {
    let mut hasher = Xxh3Default::new();
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    part(&publication.data);
    for (name, value) in &publication.tags {
        if name != TAG_ID {
            part(name.as_bytes());
            part(value.as_bytes());
        }
    }
    hasher.digest128().to_le_bytes()
}
