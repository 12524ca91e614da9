//! The commands, a file each.

pub(crate) mod check;
pub(crate) mod config;
pub(crate) mod dev;
pub(crate) mod dlq;
pub(crate) mod gateway;
pub(crate) mod migrate;
pub(crate) mod token;
pub(crate) mod user;
pub(crate) mod worker;

use std::sync::Arc;

use shared::config::Config;
use store::archive::{ArchiveError, MessageArchive};
use store::job_log::{JobLog, KafkaJobLog};
use store::records::{Records, RecordsError};

use crate::process::Failure;

/// Connects to Kafka when it is configured.
pub(crate) fn kafka(config: &Config) -> Result<Option<Arc<dyn JobLog>>, Failure> {
    if config.kafka.brokers.is_empty() {
        return Ok(None);
    }
    let connected = KafkaJobLog::connect(&config.kafka);
    let job_log =
        connected.map_err(|error| Failure::Configuration(vec![format!("kafka: {error}")]))?;
    Ok(Some(Arc::new(job_log)))
}

/// Opens the archive when one is configured.
pub(crate) async fn archive(config: &Config) -> Result<Option<Arc<dyn MessageArchive>>, Failure> {
    store::archive::open(config)
        .await
        .map_err(|error| archive_failure(&error))
}

/// Opens the chat records when an SQL database is configured.
pub(crate) async fn records(config: &Config) -> Result<Option<Records>, Failure> {
    let opened = Records::open(&config.database).await;
    opened.map_err(|error| records_failure(&error))
}

/// Says what is wrong with the chat records.
pub(crate) fn records_failure(error: &RecordsError) -> Failure {
    Failure::Dependency(vec![format!("database: {}", with_sources(error))])
}

/// Says what is wrong with an archive.
pub(crate) fn archive_failure(error: &ArchiveError) -> Failure {
    Failure::Dependency(vec![format!("archive: {}", with_sources(error))])
}

/// Writes an error with everything that caused it, on one line.
pub(crate) fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text.replace('\n', " ")
}
