//! `wyd dlq`: dead letters found, looked at and sent back.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use shared::config::Config;
use shared::config::check::Role;
use store::job_log::{EmbeddedJobLog, JobLog, JobLogError};
use workers::dlq::letters::{Filter, Letter, list, redrive};

use super::{kafka, with_sources};
use crate::cli::{DlqArgs, DlqCommand, DlqFilter, DlqTopic, LetterPosition};
use crate::process::{Failure, Source};

pub(crate) async fn run(source: Source<'_>, args: DlqArgs) -> Result<(), Failure> {
    let job_log = job_log(source, &args).await?;
    match args.command {
        DlqCommand::List { filter, json } => {
            let letters = found(&*job_log, &filter).await?;
            for (topic, letter) in &letters {
                if json {
                    println!("{}", line_json(topic, letter));
                } else {
                    println!("{}", line(topic, letter));
                }
            }
            eprintln!("{} dead letters", letters.len());
            Ok(())
        }
        DlqCommand::Show { topic, position } => show(&*job_log, topic, position).await,
        DlqCommand::Redrive { filter, dry_run } => send_back(&*job_log, &filter, dry_run).await,
    }
}

async fn job_log(source: Source<'_>, args: &DlqArgs) -> Result<Arc<dyn JobLog>, Failure> {
    if let Some(data) = &args.data {
        let path = data.join("jobs.db");
        if !path.is_file() {
            return Err(Failure::Configuration(vec![format!(
                "--data {}: there is no jobs.db; name the data folder of a `wyd dev`",
                data.display()
            )]));
        }
        let opened = EmbeddedJobLog::open(&super::dev::sqlite_url(&path)).await;
        return Ok(Arc::new(opened.map_err(|error| failure(&error))?));
    }
    let config = source.start(&Config::default(), Role::Migrate)?;
    kafka(&config)?.ok_or_else(|| {
        Failure::Configuration(vec![
            "kafka.brokers is not set (KAFKA_BROKERS); or name the data folder of a `wyd dev` with --data".to_owned(),
        ])
    })
}

async fn found(
    job_log: &dyn JobLog,
    filter: &DlqFilter,
) -> Result<Vec<(DlqTopic, Letter)>, Failure> {
    let mut all = Vec::new();
    for topic in DlqTopic::chosen(filter.topic) {
        let letters = list(job_log, topic.name(), &wanted(filter)).await;
        let letters = letters.map_err(|error| failure(&error))?;
        all.extend(letters.into_iter().map(|letter| (topic, letter)));
    }
    all.truncate(filter.limit);
    Ok(all)
}

fn wanted(filter: &DlqFilter) -> Filter {
    Filter {
        position: None,
        key: filter.key.clone(),
        error: filter.error.clone(),
        class: filter.class.clone(),
        since_ms: filter.since.map(ago_ms),
        with_redriven: filter.redriven,
    }
}

async fn show(
    job_log: &dyn JobLog,
    topic: DlqTopic,
    position: LetterPosition,
) -> Result<(), Failure> {
    let filter = Filter {
        position: Some(position.0),
        with_redriven: true,
        ..Filter::default()
    };
    let letters = list(job_log, topic.name(), &filter).await;
    let letters = letters.map_err(|error| failure(&error))?;
    let Some(letter) = letters.first() else {
        return Err(Failure::Other(format!(
            "there is no dead letter {position} of {}; `wyd dlq list --redriven` shows all",
            topic.name()
        )));
    };
    println!("{}", line(&topic, letter));
    println!("key: {}", letter.job.key);
    for (name, value) in &letter.job.headers {
        println!("{name}: {value}");
    }
    println!();
    println!("{}", String::from_utf8_lossy(&letter.job.value));
    Ok(())
}

async fn send_back(job_log: &dyn JobLog, filter: &DlqFilter, dry_run: bool) -> Result<(), Failure> {
    let letters = found(job_log, filter).await?;
    for (topic, letter) in &letters {
        if !dry_run {
            redrive(job_log, letter)
                .await
                .map_err(|error| failure(&error))?;
        }
        println!("{}", line(topic, letter));
    }
    let what = if dry_run { "would be" } else { "were" };
    eprintln!("{} dead letters {what} sent back", letters.len());
    Ok(())
}

fn line(topic: &DlqTopic, letter: &Letter) -> String {
    let at = letter.first_failure_ms().unwrap_or_default();
    let at = UNIX_EPOCH + Duration::from_millis(at);
    let redriven = letter.redriven_at_ms.map_or("", |_| "  (sent back)");
    format!(
        "{}  {}:{}  {}  {}  tries {}  key {}  {}{redriven}",
        topic.name(),
        letter.job.partition,
        letter.job.offset,
        humantime::format_rfc3339_seconds(at),
        letter.class(),
        letter.attempts(),
        letter.job.key,
        letter.error(),
    )
}

fn line_json(topic: &DlqTopic, letter: &Letter) -> serde_json::Value {
    serde_json::json!({
        "topic": topic.name(),
        "partition": letter.job.partition,
        "offset": letter.job.offset,
        "key": letter.job.key,
        "class": letter.class(),
        "error": letter.error(),
        "attempts": letter.attempts(),
        "first_failure_ms": letter.first_failure_ms(),
        "redriven_at_ms": letter.redriven_at_ms,
    })
}

fn ago_ms(time: Duration) -> u64 {
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since_epoch.saturating_sub(time).as_millis()).unwrap_or(u64::MAX)
}

fn failure(error: &JobLogError) -> Failure {
    Failure::Dependency(vec![with_sources(error)])
}
