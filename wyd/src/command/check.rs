//! `wyd check`: is the configuration right, and does everything answer?

use std::time::Duration;

use shared::config::check::{Role, check};
use shared::config::{Config, WorkerRoles};

use super::{kafka, with_sources};
use crate::cli::{CheckArgs, CheckRole};
use crate::process::{Failure, Source};

/// How long one dependency may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Lists all that is wrong: settings and services, in one go.
pub(crate) async fn run(source: Source<'_>, args: &CheckArgs) -> Result<(), Failure> {
    let config = source.load(&Config::default())?;
    let report = check(&config, role(args));
    for warning in &report.warnings {
        println!("warning: {warning}");
    }
    if report.errors.is_empty() {
        println!("configuration: ok");
    }
    let mut wrong = Vec::new();
    for (name, answer) in ask_all(&config).await {
        match answer {
            Ok(()) => println!("{name}: ok"),
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
    }
    if !report.errors.is_empty() {
        return Err(Failure::Configuration([report.errors, wrong].concat()));
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(Failure::Dependency(wrong))
    }
}

fn role(args: &CheckArgs) -> Role {
    match args.role {
        CheckRole::Gateway => Role::Gateway,
        CheckRole::Worker => Role::Worker(WorkerRoles::ALL),
        CheckRole::Migrate => Role::Migrate,
    }
}

async fn ask_all(config: &Config) -> Vec<(&'static str, Result<(), String>)> {
    let mut answers = Vec::new();
    if config.broker.redis_url.is_some() {
        answers.push(("redis", in_time(redis(config)).await));
    }
    if !config.kafka.brokers.is_empty() {
        answers.push(("kafka", in_time(ask_kafka(config)).await));
    }
    if config.database.url.is_some() {
        let sql = Config {
            mongo: shared::config::MongoConfig::default(),
            ..config.clone()
        };
        answers.push(("database", in_time(ask_archive(&sql)).await));
    }
    if config.mongo.url.is_some() {
        answers.push(("mongo", in_time(ask_archive(config)).await));
    }
    if !config.media.bucket.is_empty() {
        answers.push(("media", in_time(Box::pin(ask_media(config))).await));
    }
    answers
}

async fn in_time(ask: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    let answered = tokio::time::timeout(TIMEOUT + Duration::from_secs(1), ask).await;
    answered.unwrap_or_else(|_| Err(format!("no answer within {} s", TIMEOUT.as_secs())))
}

async fn redis(config: &Config) -> Result<(), String> {
    let url = config
        .broker
        .redis_url
        .as_ref()
        .map(|url| url.expose().to_owned());
    let text = |error: redis::RedisError| with_sources(&error);
    let client = redis::Client::open(url.unwrap_or_default()).map_err(text)?;
    let mut connection = client
        .get_multiplexed_async_connection()
        .await
        .map_err(text)?;
    redis::cmd("PING")
        .exec_async(&mut connection)
        .await
        .map_err(text)
}

async fn ask_kafka(config: &Config) -> Result<(), String> {
    let Ok(Some(job_log)) = kafka(config) else {
        return Err("cannot be configured".to_owned());
    };
    job_log
        .ping(TIMEOUT)
        .await
        .map_err(|error| with_sources(&error))
}

async fn ask_archive(config: &Config) -> Result<(), String> {
    let opened = store::archive::open(config)
        .await
        .map_err(|error| with_sources(&error))?;
    match opened {
        Some(archive) => archive.ping().await.map_err(|error| with_sources(&error)),
        None => Ok(()),
    }
}

async fn ask_media(config: &Config) -> Result<(), String> {
    let opened = store::media::open(&config.media).await;
    match opened.map_err(|error| with_sources(&error))? {
        Some(store) => store.ping().await.map_err(|error| with_sources(&error)),
        None => Ok(()),
    }
}
