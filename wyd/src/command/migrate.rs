//! `wyd migrate`: databases and Kafka topics to this version.

use shared::config::Config;
use shared::config::check::Role;

use super::{archive_failure, with_sources};
use crate::process::{Failure, Source};

pub(crate) async fn run(source: Source<'_>) -> Result<(), Failure> {
    let config = source.start(&Config::default(), Role::Migrate)?;
    let has_database = config.database.url.is_some() || config.mongo.url.is_some();
    let has_kafka = !config.kafka.brokers.is_empty();
    if has_database {
        store::archive::migrate(&config)
            .await
            .map_err(|error| archive_failure(&error))?;
        println!("databases are up to date");
    }
    if has_kafka {
        let topics = store::job_log::ensure_topics(&config.kafka).await;
        let topics = topics.map_err(|error| Failure::Dependency(vec![with_sources(&error)]))?;
        for line in topics {
            println!("{line}");
        }
    }
    Ok(())
}
