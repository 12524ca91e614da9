//! `wyd user`: what is kept about one user, handed out or erased.

use std::fs::File;
use std::io::{BufWriter, Write};

use serde_json::json;
use shared::config::Config;
use shared::config::check::Role;
use shared::ids::UserId;
use store::archive::{ArchiveError, MessageArchive, PAGE_LIMIT_MAX};
use store::records::Records;

use super::{archive, archive_failure, records, records_failure};
use crate::cli::{UserArgs, UserCommand, UserEraseArgs, UserExportArgs};
use crate::process::{Failure, Source};

pub(crate) async fn run(source: Source<'_>, args: UserArgs) -> Result<(), Failure> {
    let config = source.start(&Config::default(), Role::Migrate)?;
    let missing = || {
        Failure::Configuration(vec![
            "database.url: there is no archive; set DATABASE_URL (or MONGO_URL)".to_owned(),
        ])
    };
    let archive = archive(&config).await?.ok_or_else(missing)?;
    let records = records(&config).await?;
    match args.command {
        UserCommand::Export(args) => export(&*archive, records.as_ref(), &args).await,
        UserCommand::Erase(args) => erase(&*archive, records.as_ref(), &args).await,
    }
}

/// Writes a JSON value a line: what it is (`record`) and its columns (`row`).
async fn export(
    archive: &dyn MessageArchive,
    records: Option<&Records>,
    args: &UserExportArgs,
) -> Result<(), Failure> {
    let cannot = |error: std::io::Error| Failure::Other(format!("the export failed: {error}"));
    let out: Box<dyn Write> = match &args.out {
        Some(path) => {
            let file = File::create(path).map_err(|error| {
                Failure::Configuration(vec![format!("--out {}: {error}", path.display())])
            })?;
            Box::new(file)
        }
        None => Box::new(std::io::stdout().lock()),
    };
    let mut out = BufWriter::new(out);
    if let Some(records) = records {
        let found = records.of_user(&UserId::from(args.user.as_str())).await;
        for record in found.map_err(|error| records_failure(&error))? {
            writeln!(out, "{}", json!(record)).map_err(cannot)?;
        }
    }
    let mut after = None;
    loop {
        let page = archive.of_user(&args.user, after, PAGE_LIMIT_MAX).await;
        let page = page.map_err(|error| archive_failure(&error))?;
        for event in &page {
            // Not by way of a tree: what was published is given out byte for byte.
            let row = serde_json::to_string(event)
                .map_err(|error| Failure::Other(format!("message {}: {error}", event.id)))?;
            writeln!(out, r#"{{"record":"message","row":{row}}}"#).map_err(cannot)?;
        }
        match page.last() {
            Some(last) => after = Some(last.id),
            None => return out.flush().map_err(cannot),
        }
    }
}

async fn erase(
    archive: &dyn MessageArchive,
    records: Option<&Records>,
    args: &UserEraseArgs,
) -> Result<(), Failure> {
    if !args.yes {
        return Err(Failure::Configuration(vec![format!(
            "--yes: erasing {:?} cannot be undone; say --yes when it is meant",
            args.user
        )]));
    }
    if let Some(records) = records {
        let erased = records.erase_user(&UserId::from(args.user.as_str())).await;
        let erased = erased.map_err(|error| records_failure(&error))?;
        println!("records erased: {}", erased.records);
        for channel in erased.channels {
            println!("taken out of channel: {channel}");
        }
        for medium in erased.media {
            println!("medium whose objects are still there: {medium}");
        }
    }
    let mut messages = 0;
    loop {
        let erased: Result<usize, ArchiveError> = archive.erase(&args.user, PAGE_LIMIT_MAX).await;
        match erased.map_err(|error| archive_failure(&error))? {
            0 => break,
            rows => messages += rows,
        }
    }
    println!("messages, edits and deletions emptied: {messages}");
    Ok(())
}
