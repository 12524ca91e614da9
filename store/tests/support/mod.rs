//! What the store's integration tests share: stores of their own, and events.

use std::sync::Arc;

use serde_json::value::RawValue;
use shared::config::Config;
use shared::events::{EventClientInfo, PublicationEvent, PublicationKind, change_tags};
use shared::ids::{ChannelName, MessageId};
use sqlx::Connection;
use store::archive::{self, MessageArchive};
use uuid::Uuid;

/// Reads the address of a real service.
pub fn service(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run `./test services`"))
}

/// An archive in a database of its own, and what keeps it alive.
pub struct Fixture {
    pub archive: Arc<dyn MessageArchive>,
    pub config: Config,
    _folder: Option<tempfile::TempDir>,
}

async fn open(config: Config, folder: Option<tempfile::TempDir>) -> Fixture {
    archive::migrate(&config).await.unwrap();
    let archive = archive::open(&config).await.unwrap().unwrap();
    Fixture {
        archive,
        config,
        _folder: folder,
    }
}

pub async fn sqlite() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    let url = format!("sqlite://{}/archive.db", folder.path().display());
    config.database.url = Some(url.into());
    open(config, Some(folder)).await
}

pub async fn postgres() -> Fixture {
    let server = service("WYD_TEST_DATABASE_URL");
    let name = unique("wyd_test");
    let mut connection = sqlx::PgConnection::connect(&server).await.unwrap();
    let create = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"));
    sqlx::query(create).execute(&mut connection).await.unwrap();
    let (base, _) = server.rsplit_once('/').unwrap();
    let mut config = Config::default();
    config.database.url = Some(format!("{base}/{name}").into());
    open(config, None).await
}

pub async fn mongo() -> Fixture {
    let server = service("WYD_TEST_MONGO_URL");
    let (base, _) = server.rsplit_once('/').unwrap();
    let mut config = Config::default();
    config.mongo.url = Some(format!("{base}/{}", unique("wyd_test")).into());
    open(config, None).await
}

pub fn unique(prefix: &str) -> String {
    format!("{prefix}_{}", Uuid::new_v4().simple())
}

pub fn channel(name: &str) -> ChannelName {
    ChannelName::new(name).unwrap()
}

/// An event with a new id.
pub fn event(channel_name: &str, epoch: &str, offset: u64) -> PublicationEvent {
    PublicationEvent {
        id: MessageId::now(),
        kind: PublicationKind::Message,
        channel: channel(channel_name),
        epoch: epoch.into(),
        offset,
        user: "ann".to_owned(),
        info: Some(EventClientInfo {
            user: "ann".to_owned(),
            client: Uuid::new_v4().to_string(),
            conn_info: Some(RawValue::from_string(r#"{"name":"Ann"}"#.to_owned()).unwrap()),
            chan_info: None,
        }),
        data: RawValue::from_string(format!(r#"{{"n":{offset}}}"#)).unwrap(),
        tags: [("k".to_owned(), "v".to_owned())].into(),
        published_at_ms: 1_700_000_000_000 + offset,
    }
}

/// An edit of a message, in its channel.
pub fn edit(target: &PublicationEvent, offset: u64, data: &str) -> PublicationEvent {
    let text = format!(
        r#"{{"type":"message.edited","id":"{}","data":{data}}}"#,
        target.id
    );
    change(target, PublicationKind::Edited, offset, text)
}

/// A deletion of a message, in its channel.
pub fn deletion(target: &PublicationEvent, offset: u64) -> PublicationEvent {
    let text = format!(r#"{{"type":"message.deleted","id":"{}"}}"#, target.id);
    change(target, PublicationKind::Deleted, offset, text)
}

fn change(
    target: &PublicationEvent,
    kind: PublicationKind,
    offset: u64,
    text: String,
) -> PublicationEvent {
    PublicationEvent {
        kind,
        data: RawValue::from_string(text).unwrap(),
        tags: change_tags(kind, target.id),
        ..event(target.channel.as_str(), target.epoch.as_str(), offset)
    }
}

/// The S3 server's bucket.
pub fn s3() -> shared::config::MediaConfig {
    shared::config::MediaConfig {
        bucket: service("WYD_TEST_S3_BUCKET"),
        endpoint: service("WYD_TEST_S3_ENDPOINT"),
        region: "us-east-1".to_owned(),
        ..shared::config::MediaConfig::default()
    }
}
