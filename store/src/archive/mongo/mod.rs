//! The archive in MongoDB: unique keys instead of transactions.
//!
//! Rows first, position second: a crash between the two repeats the append, and the keys make a
//! repetition harmless. No multi-document transaction, TTL index or change stream is relied on.
//! `messages` reads the view, `upkeep` is retention and users' data.

mod messages;
mod upkeep;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use async_trait::async_trait;
use futures::TryStreamExt;
use mongodb::bson::{Document, doc};
use mongodb::error::{Error, ErrorKind};
use mongodb::options::{ClientOptions, IndexOptions, ReadPreference, SelectionCriteria};
use mongodb::{Client, Collection, Database, IndexModel};
use shared::events::PublicationEvent;
use shared::ids::{ChannelName, MessageId};
use uuid::Uuid;

use super::row::{Row, rows};
use super::{
    Appended, ArchiveError, ArchivedMessage, ConsumerPosition, Expired, MessageArchive,
    MessagePage, MessageQuery, PageQuery,
};

/// Database used when the address names none.
const DATABASE: &str = "wyd";
/// Server error code of a unique key that is taken.
const DUPLICATE_KEY: i32 = 11000;
const SERVER_TIMEOUT: Duration = Duration::from_secs(5);

impl From<Error> for ArchiveError {
    fn from(error: Error) -> Self {
        Self::Unavailable(Box::new(error))
    }
}

/// The archive in MongoDB.
#[derive(Debug, Clone)]
pub struct MongoArchive {
    database: Database,
    messages: Collection<Document>,
    aliases: Collection<Document>,
    positions: Collection<Document>,
    floors: Collection<Document>,
}

impl MongoArchive {
    /// Connects, and checks that the unique keys are there.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    pub async fn open(url: &str) -> Result<Self, ArchiveError> {
        let archive = Self::connect(url).await?;
        let names = archive
            .messages
            .list_index_names()
            .await
            .unwrap_or_default();
        archive.ping().await?;
        for wanted in [PLACE_INDEX, TARGET_INDEX] {
            if !names.iter().any(|name| name == wanted) {
                return Err(ArchiveError::Schema(format!(
                    "the index {wanted:?} on messages is missing; run `wyd migrate`"
                )));
            }
        }
        Ok(archive)
    }

    async fn connect(url: &str) -> Result<Self, ArchiveError> {
        let mut options = ClientOptions::parse(url).await?;
        options.app_name = Some("wyd".to_owned());
        options
            .server_selection_timeout
            .get_or_insert(SERVER_TIMEOUT);
        options.connect_timeout.get_or_insert(SERVER_TIMEOUT);
        // A reader must see what was acknowledged.
        options.selection_criteria =
            Some(SelectionCriteria::ReadPreference(ReadPreference::Primary));
        let name = options
            .default_database
            .clone()
            .unwrap_or_else(|| DATABASE.to_owned());
        let database = Client::with_options(options)?.database(&name);
        Ok(Self {
            messages: database.collection("messages"),
            aliases: database.collection("message_aliases"),
            positions: database.collection("consumer_positions"),
            floors: database.collection("archive_floors"),
            database,
        })
    }

    /// Finds the places of stored messages, by id.
    async fn places(
        &self,
        ids: Vec<String>,
    ) -> Result<HashMap<String, (String, String, i64)>, ArchiveError> {
        let mut places = HashMap::new();
        let mut found = self.messages.find(doc! { "_id": { "$in": ids } }).await?;
        while let Some(document) = found.try_next().await? {
            let id = text(&document, "_id")?;
            let place = (
                text(&document, "channel")?,
                text(&document, "epoch")?,
                number(&document, "offset")?,
            );
            places.insert(id, place);
        }
        Ok(places)
    }

    async fn insert(&self, rows: &[Row]) -> Result<HashSet<usize>, ArchiveError> {
        if rows.is_empty() {
            return Ok(HashSet::new());
        }
        let documents: Vec<Document> = rows.iter().map(document).collect();
        match self.messages.insert_many(documents).ordered(false).await {
            Ok(_) => Ok(HashSet::new()),
            Err(error) => taken(error),
        }
    }

    async fn take_alias(&self, row: &Row) -> Result<(), ArchiveError> {
        let id = format!("{}\u{0}{}\u{0}{}", row.channel, row.epoch, row.offset).replace('\0', "|");
        let change = doc! { "$setOnInsert": {
            "channel": &row.channel, "epoch": &row.epoch, "offset": row.offset,
            "message": row.id.to_string(),
        } };
        self.aliases
            .update_one(doc! { "_id": id }, change)
            .upsert(true)
            .await?;
        Ok(())
    }
}

/// Name of the unique index on (channel, epoch, offset).
const PLACE_INDEX: &str = "place";
/// Name of the index that finds a message's changes.
const TARGET_INDEX: &str = "target";

/// Makes the indexes.
pub(super) async fn migrate(url: &str) -> Result<(), ArchiveError> {
    let archive = MongoArchive::connect(url).await?;
    let unique = IndexOptions::builder()
        .name(PLACE_INDEX.to_owned())
        .unique(true)
        .build();
    let place = IndexModel::builder()
        .keys(doc! { "channel": 1, "epoch": 1, "offset": 1 })
        .options(unique)
        .build();
    archive.messages.create_index(place).await?;
    let channel = doc! { "channel": 1, "offset": 1 };
    let time = doc! { "channel": 1, "published_at_ms": 1, "offset": 1 };
    let user = doc! { "user": 1, "_id": 1 };
    let target = doc! { "target": 1, "kind": 1, "offset": -1 };
    let alias = doc! { "channel": 1, "epoch": 1, "offset": 1 };
    for (collection, name, keys) in [
        (&archive.messages, "channel_offset", channel),
        (&archive.messages, "channel_time", time),
        (&archive.messages, "user", user),
        (&archive.aliases, "alias", alias),
        // Made last: `open` looks for it.
        (&archive.messages, TARGET_INDEX, target),
    ] {
        let named = IndexOptions::builder().name(name.to_owned()).build();
        let index = IndexModel::builder().keys(keys).options(named).build();
        collection.create_index(index).await?;
    }
    Ok(())
}

#[async_trait]
impl MessageArchive for MongoArchive {
    async fn append(
        &self,
        batch: &[PublicationEvent],
        positions: &[ConsumerPosition],
    ) -> Result<Appended, ArchiveError> {
        let rows = rows(batch)?;
        let taken = self.insert(&rows).await?;
        let mut appended = Appended {
            inserted: rows.len() - taken.len(),
            ..Appended::default()
        };
        let known: Vec<&Row> = rows
            .iter()
            .enumerate()
            .filter(|(n, _)| taken.contains(n))
            .map(|(_, row)| row)
            .collect();
        if !known.is_empty() {
            let ids = known.iter().map(|row| row.id.to_string()).collect();
            let places = self.places(ids).await?;
            for row in known {
                match places.get(&row.id.to_string()) {
                    Some((channel, epoch, offset)) if row.place() == (channel, epoch, *offset) => {}
                    Some(_) => self.take_alias(row).await?,
                    None => appended.conflicting.push(MessageId::from(row.id)),
                }
            }
        }
        let movable = if appended.conflicting.is_empty() {
            positions
        } else {
            &[]
        };
        for position in movable {
            let change = doc! { "$max": { "next_offset": position.next_offset } };
            let filter =
                doc! { "_id": position_id(&position.group, &position.topic, position.partition) };
            self.positions
                .update_one(filter, change)
                .upsert(true)
                .await?;
        }
        appended.known = batch.len() - appended.inserted - appended.conflicting.len();
        Ok(appended)
    }

    async fn consumer_position(
        &self,
        group: &str,
        topic: &str,
        partition: i32,
    ) -> Result<Option<i64>, ArchiveError> {
        let found = self
            .positions
            .find_one(doc! { "_id": position_id(group, topic, partition) });
        let found = found.await?;
        found
            .map(|document| number(&document, "next_offset"))
            .transpose()
    }

    async fn page(
        &self,
        channel: &ChannelName,
        query: PageQuery,
    ) -> Result<Vec<PublicationEvent>, ArchiveError> {
        self.log_page(channel, &query).await
    }

    async fn messages(
        &self,
        channel: &ChannelName,
        query: MessageQuery,
    ) -> Result<MessagePage, ArchiveError> {
        self.message_page(channel, &query).await
    }

    async fn message(
        &self,
        channel: &ChannelName,
        id: MessageId,
    ) -> Result<Option<ArchivedMessage>, ArchiveError> {
        self.one_message(channel, id).await
    }

    async fn count(
        &self,
        channel: &ChannelName,
        after_offset: u64,
        not_by_user: &str,
    ) -> Result<u64, ArchiveError> {
        self.count_messages(channel, after_offset, not_by_user)
            .await
    }

    async fn floor(&self, channel: &ChannelName) -> Result<Option<u64>, ArchiveError> {
        self.channel_floor(channel).await
    }

    async fn channels(
        &self,
        after: Option<&ChannelName>,
        limit: usize,
    ) -> Result<Vec<ChannelName>, ArchiveError> {
        self.channel_names(after, limit).await
    }

    async fn expire(
        &self,
        channel: &ChannelName,
        before_ms: u64,
        limit: usize,
    ) -> Result<Expired, ArchiveError> {
        self.expire_rows(channel, before_ms, limit).await
    }

    async fn of_user(
        &self,
        user: &str,
        after: Option<MessageId>,
        limit: usize,
    ) -> Result<Vec<PublicationEvent>, ArchiveError> {
        self.rows_of_user(user, after, limit).await
    }

    async fn erase(&self, user: &str, limit: usize) -> Result<usize, ArchiveError> {
        self.erase_rows(user, limit).await
    }

    async fn ping(&self) -> Result<(), ArchiveError> {
        self.database.run_command(doc! { "ping": 1 }).await?;
        Ok(())
    }
}

fn position_id(group: &str, topic: &str, partition: i32) -> String {
    format!("{group}/{topic}/{partition}")
}

fn document(row: &Row) -> Document {
    let mut document = doc! {
        "_id": row.id.to_string(),
        "channel": &row.channel,
        "epoch": &row.epoch,
        "offset": row.offset,
        "kind": &row.kind,
        "user": &row.user_id,
        "info": row.info.clone(),
        "data": &row.data,
        "tags": &row.tags,
        "published_at_ms": row.published_at_ms,
    };
    if let Some(target) = row.target_id {
        document.insert("target", target.to_string());
    }
    document
}

fn read(document: &Document) -> Result<Row, ArchiveError> {
    let uuid = |text: &str| {
        Uuid::try_parse(text).map_err(|error| ArchiveError::Unavailable(Box::new(error)))
    };
    let target = document.get_str("target").ok();
    Ok(Row {
        channel: text(document, "channel")?,
        epoch: text(document, "epoch")?,
        offset: number(document, "offset")?,
        id: uuid(&text(document, "_id")?)?,
        kind: text(document, "kind")?,
        user_id: text(document, "user")?,
        info: document.get_str("info").ok().map(str::to_owned),
        data: text(document, "data")?,
        tags: text(document, "tags")?,
        published_at_ms: number(document, "published_at_ms")?,
        target_id: target.map(uuid).transpose()?,
        erased_at_ms: number(document, "erased_at_ms").ok(),
    })
}

fn text(document: &Document, key: &str) -> Result<String, ArchiveError> {
    let found = document.get_str(key).map(str::to_owned);
    found.map_err(|error| ArchiveError::Unavailable(Box::new(error)))
}

fn number(document: &Document, key: &str) -> Result<i64, ArchiveError> {
    // Some servers give a small number back as the shorter type.
    let found = document
        .get_i64(key)
        .or_else(|_| document.get_i32(key).map(i64::from));
    found.map_err(|error| ArchiveError::Unavailable(Box::new(error)))
}

/// Returns which documents of an unordered insert met a key that is taken.
fn taken(error: Error) -> Result<HashSet<usize>, ArchiveError> {
    let ErrorKind::InsertMany(failed) = error.kind.as_ref() else {
        return Err(error.into());
    };
    let errors = failed.write_errors.as_deref().unwrap_or_default();
    let is_only_taken = failed.write_concern_error.is_none()
        && !errors.is_empty()
        && errors.iter().all(|error| error.code == DUPLICATE_KEY);
    if is_only_taken {
        Ok(errors.iter().map(|error| error.index).collect())
    } else {
        Err(error.into())
    }
}
