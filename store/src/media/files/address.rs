//! Addresses that carry what they allow, signed: `/media/…?…&signature=HEX`.
//!
//! HMAC-SHA256 over method, path and query. The key is a file in the media folder, so addresses
//! stay good over a restart.

use std::path::Path;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::Sha256;

use super::super::SignedRequest;

/// Where the public port answers them.
const PATH: &str = "/media/";
const SIGNATURE: &str = "&signature=";
const KEY_FILE: &str = "address-key";
const KEY_BYTES: usize = 32;

/// What a signed address allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grant {
    /// To upload exactly this object.
    Put {
        /// Where to.
        key: String,
        /// Bytes.
        size: u64,
        /// Of the bytes.
        sha256: [u8; 32],
    },
    /// To upload a part.
    Part {
        /// Key of the object to be.
        key: String,
        /// The upload's id.
        upload: String,
        /// Its place.
        number: u16,
        /// Bytes.
        size: u64,
    },
    /// To download.
    Get {
        /// What.
        key: String,
        /// `Content-Type` of the answer.
        content_type: String,
        /// `Content-Disposition` of the answer.
        disposition: String,
    },
}

/// Signs addresses and checks them.
#[derive(Clone)]
pub(super) struct Signer {
    key: Vec<u8>,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").finish_non_exhaustive()
    }
}

impl Signer {
    /// Reads the folder's key, made when it is missing.
    pub(super) async fn of(folder: &Path) -> std::io::Result<Self> {
        let path = folder.join(KEY_FILE);
        if let Ok(key) = tokio::fs::read(&path).await
            && key.len() == KEY_BYTES
        {
            return Ok(Self { key });
        }
        // 122 random bits each.
        let halves = [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()];
        let key: Vec<u8> = halves.iter().flat_map(|half| *half.as_bytes()).collect();
        let mut options = tokio::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        options.mode(0o600);
        let mut file = options.open(&path).await?;
        tokio::io::AsyncWriteExt::write_all(&mut file, &key).await?;
        file.sync_all().await?;
        Ok(Self { key })
    }

    pub(super) fn sign(&self, grant: &Grant, until: SystemTime) -> SignedRequest {
        let until = until
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let (method, key, rest) = match grant {
            Grant::Put { key, size, sha256 } => {
                let sha256 = URL_SAFE_NO_PAD.encode(sha256);
                ("PUT", key, format!("size={size}&sha256={sha256}"))
            }
            Grant::Part {
                key,
                upload,
                number,
                size,
            } => {
                let rest = format!("size={size}&upload={}&part={number}", encoded(upload));
                ("PUT", key, rest)
            }
            Grant::Get {
                key,
                content_type,
                disposition,
            } => {
                let (content_type, disposition) = (encoded(content_type), encoded(disposition));
                let rest = format!("type={content_type}&disposition={disposition}");
                ("GET", key, rest)
            }
        };
        let address = format!("{PATH}{key}?expires={until}&{rest}");
        let signature = hex(&self.mac(method, &address).finalize().into_bytes());
        SignedRequest {
            method: method.to_owned(),
            url: format!("{address}{SIGNATURE}{signature}"),
            headers: Vec::new(),
        }
    }

    pub(super) fn grant(
        &self,
        method: &str,
        path_and_query: &str,
        now: SystemTime,
    ) -> Result<Grant, &'static str> {
        const UNSIGNED: &str = "the address is not signed by this node";
        let (address, signature) = path_and_query.rsplit_once(SIGNATURE).ok_or(UNSIGNED)?;
        let signature = unhex(signature).ok_or(UNSIGNED)?;
        let is_ours = self.mac(method, address).verify_slice(&signature);
        is_ours.map_err(|_| UNSIGNED)?;
        // From here on the text is our own.
        let broken = "the address is of another version";
        let (path, query) = address.split_once('?').ok_or(broken)?;
        let key = path.strip_prefix(PATH).ok_or(broken)?.to_owned();
        let value = |name: &str| {
            let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            let mut found = pairs.filter(|(known, _)| *known == name);
            let text = percent_decode_str(found.next()?.1).decode_utf8().ok()?;
            Some(text.into_owned())
        };
        let number = |name: &str| value(name)?.parse::<u64>().ok();
        let until = Duration::from_secs(number("expires").ok_or(broken)?);
        if now > SystemTime::UNIX_EPOCH + until {
            return Err("the address has expired: ask for a new one");
        }
        let grant = match (method, value("upload")) {
            ("GET", None) => Grant::Get {
                key,
                content_type: value("type").ok_or(broken)?,
                disposition: value("disposition").ok_or(broken)?,
            },
            (_, Some(upload)) => Grant::Part {
                key,
                upload,
                number: number("part")
                    .and_then(|number| u16::try_from(number).ok())
                    .ok_or(broken)?,
                size: number("size").ok_or(broken)?,
            },
            (_, None) => Grant::Put {
                key,
                size: number("size").ok_or(broken)?,
                sha256: value("sha256")
                    .and_then(|text| URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok())
                    .ok_or(broken)?,
            },
        };
        Ok(grant)
    }

    fn mac(&self, method: &str, address: &str) -> Hmac<Sha256> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        mac.update(method.as_bytes());
        mac.update(b"\n");
        mac.update(address.as_bytes());
        mac
    }
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .map(|digit| u8::try_from(digit.to_digit(16)?).ok())
        .collect();
    let digits = digits?;
    let pairs = digits.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return None;
    }
    Some(pairs.map(|pair| pair[0] << 4 | pair[1]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signer() -> Signer {
        Signer {
            key: vec![7; KEY_BYTES],
        }
    }

    fn grants() -> [Grant; 3] {
        let key = "pending/1".to_owned();
        [
            Grant::Put {
                key: key.clone(),
                size: 5,
                sha256: [9; 32],
            },
            Grant::Part {
                key: key.clone(),
                upload: "u&=?".to_owned(),
                number: 7,
                size: 5,
            },
            Grant::Get {
                key,
                content_type: "image/png".to_owned(),
                disposition: "inline; filename=\"a&b.png\"".to_owned(),
            },
        ]
    }

    #[test]
    fn an_address_allows_what_was_signed_until_it_expires() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        for grant in grants() {
            let signed = signer().sign(&grant, now);
            let read = |now| signer().grant(&signed.method, &signed.url, now);
            assert_eq!(read(now), Ok(grant));
            let later = read(now + Duration::from_secs(1));
            assert!(later.unwrap_err().contains("expired"));
        }
    }

    #[test]
    fn an_address_that_was_changed_allows_nothing() {
        let now = SystemTime::UNIX_EPOCH;
        for grant in grants() {
            let signed = signer().sign(&grant, now);
            let other = match signed.method.as_str() {
                "GET" => "PUT",
                _ => "GET",
            };
            assert!(signer().grant(other, &signed.url, now).is_err());
            for place in 0..signed.url.len() {
                let mut bytes = signed.url.clone().into_bytes();
                bytes[place] = if bytes[place] == b'0' { b'1' } else { b'0' };
                let url = String::from_utf8(bytes).unwrap();
                assert!(signer().grant(&signed.method, &url, now).is_err(), "{url}");
            }
            let foreign = Signer {
                key: vec![8; KEY_BYTES],
            };
            assert!(foreign.grant(&signed.method, &signed.url, now).is_err());
        }
    }
}
