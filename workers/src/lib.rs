//! Kafka jobs to the stores.
//!
//! `consumer` is the loop of every role: jobs come, are handled, and their position is committed
//! after the effect. `persist` brings publications into the archive, `push` tells people who are
//! away, `dlq` keeps what can never succeed. Handlers know nothing of Kafka.

pub mod consumer;
pub mod dlq;
pub mod metrics;
pub mod persist;
pub mod push;
pub mod upload;

pub use metrics::Metrics;
