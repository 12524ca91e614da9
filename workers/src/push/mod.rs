//! `push`: tells members who are away what was said.
//!
//! `provider` is the seam to whoever brings pushes to devices; `fcm` is Google's.

pub mod fcm;
pub mod metrics;
pub mod provider;

/// Writes an error with everything that caused it.
pub(crate) fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}
