//! Durable things that gateway and workers share: the archive, the chat records, the job log.
//!
//! Each is a trait with its promises written on it and one implementation a file; `tests/` holds
//! the conformance suites that every implementation must pass.

pub mod archive;
pub mod job_log;
pub mod media;
pub mod records;

/// A boxed error of a driver, kept as the source.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
