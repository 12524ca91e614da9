//! The one check that application data goes through where it enters.

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::value::RawValue;

/// Why application data was refused.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// Nothing was sent where something must be.
    #[error("data is empty")]
    Empty,
    /// The bytes are not one JSON value.
    #[error("data is not one valid JSON value: {0}")]
    Json(String),
}

/// Returns `data` as one JSON value without raw line breaks.
///
/// A line break outside a string is legal JSON, but frames join messages with `\n`: left in, a
/// publisher could forge a frame for every subscriber. Inside strings JSON forbids raw breaks, so
/// turning each into a space never changes the value.
///
/// # Errors
/// [`PayloadError`] when there is not exactly one JSON value.
pub fn json(data: &[u8]) -> Result<Bytes, PayloadError> {
    if data.is_empty() {
        return Err(PayloadError::Empty);
    }
    let text =
        simdutf8::basic::from_utf8(data).map_err(|error| PayloadError::Json(error.to_string()))?;
    serde_json::from_str::<&RawValue>(text)
        .map_err(|error| PayloadError::Json(error.to_string()))?;
    Ok(Bytes::copy_from_slice(single_line(text).as_bytes()))
}

/// Returns an already checked JSON value without raw line breaks.
pub fn from_raw(value: &RawValue) -> Bytes {
    Bytes::copy_from_slice(single_line(value.get()).as_bytes())
}

fn single_line(text: &str) -> Cow<'_, str> {
    if text.contains(['\n', '\r']) {
        Cow::Owned(text.replace(['\n', '\r'], " "))
    } else {
        Cow::Borrowed(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_breaks_become_spaces() {
        assert_eq!(json(b"{\n\"a\":\r\n1}").unwrap(), "{ \"a\":  1}");
    }

    #[test]
    fn only_one_json_value_passes() {
        for bad in [
            &b""[..],
            b"{",
            b"{} {}",
            b"\xff",
            b"{}\n{\"push\":{}}",
            b"nul",
        ] {
            assert!(json(bad).is_err(), "{bad:?}");
        }
    }
}
