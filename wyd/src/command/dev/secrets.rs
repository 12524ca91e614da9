//! The secrets of `wyd dev`: made at its first start, kept in its data folder, for nobody else.

use std::fs::{OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use shared::config::Secret;

/// Random bytes of a secret.
const SECRET_BYTES: usize = 32;
/// The owner reads and writes, nobody else does anything.
const MODE: u32 = 0o600;
/// Signs the demo's tokens.
pub(super) const HMAC_SECRET_FILE: &str = "jwt-secret";
/// Opens the server API.
pub(super) const API_KEY_FILE: &str = "api-key";

/// Both secrets.
pub(super) struct Secrets {
    pub(super) hmac_secret: Secret,
    pub(super) api_key: Secret,
}

impl Secrets {
    /// Reads the secrets of a data folder; makes those that are missing.
    pub(super) fn of(data: &Path) -> std::io::Result<Self> {
        Ok(Self {
            hmac_secret: read_or_make(&data.join(HMAC_SECRET_FILE))?,
            api_key: read_or_make(&data.join(API_KEY_FILE))?,
        })
    }
}

fn read_or_make(path: &Path) -> std::io::Result<Secret> {
    match std::fs::read_to_string(path) {
        Ok(known) if !known.trim().is_empty() => return Ok(known.trim().into()),
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        Ok(_) | Err(_) => {}
    }
    let bytes: [u8; SECRET_BYTES] = rand::random();
    let made: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(MODE)
        .open(path)?;
    // The mode above is for a new file; an empty one that was there keeps its own.
    file.set_permissions(Permissions::from_mode(MODE))?;
    writeln!(file, "{made}")?;
    file.sync_all()?;
    Ok(made.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_made_once_and_for_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(API_KEY_FILE), "").unwrap();
        let first = Secrets::of(folder.path()).unwrap();
        let second = Secrets::of(folder.path()).unwrap();
        assert_eq!(first.hmac_secret.expose(), second.hmac_secret.expose());
        assert_eq!(first.api_key.expose(), second.api_key.expose());
        assert_ne!(first.api_key.expose(), first.hmac_secret.expose());
        assert_eq!(first.hmac_secret.expose().len(), 2 * SECRET_BYTES);
        for name in [HMAC_SECRET_FILE, API_KEY_FILE] {
            let file = std::fs::metadata(folder.path().join(name)).unwrap();
            assert_eq!(file.permissions().mode() & 0o777, MODE, "{name}");
        }
    }
}
