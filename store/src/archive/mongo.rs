//! The archive in MongoDB: unique keys instead of transactions.
//!
//! Rows first, position second: a crash between the two repeats the append, and the keys make a
//! repetition harmless. No multi-document transaction, TTL index or change stream is relied on.

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

use super::row::{Bounds, Row, rows};
use super::{Appended, ArchiveError, ConsumerPosition, MessageArchive, PageQuery};

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
        if names.iter().any(|name| name == PLACE_INDEX) {
            archive.ping().await?;
            return Ok(archive);
        }
        archive.ping().await?;
        Err(ArchiveError::Schema(
            "the unique index on messages is missing; run `wyd migrate`".to_owned(),
        ))
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
    let named = IndexOptions::builder()
        .name("channel_offset".to_owned())
        .build();
    let order = IndexModel::builder()
        .keys(doc! { "channel": 1, "offset": 1 })
        .options(named)
        .build();
    archive.messages.create_index(order).await?;
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
        let bounds = Bounds::of(&query);
        let mut filter = doc! {
            "channel": channel.as_str(),
            "offset": { "$gt": bounds.above, "$lt": bounds.below },
        };
        if let Some(epoch) = &query.epoch {
            filter.insert("epoch", epoch.as_str());
        }
        let order = if query.reverse { -1 } else { 1 };
        // A limit of 0 means "no limit" to the server.
        if bounds.limit == 0 {
            return Ok(Vec::new());
        }
        let found = self
            .messages
            .find(filter)
            .sort(doc! { "offset": order })
            .limit(bounds.limit);
        let documents: Vec<Document> = found.await?.try_collect().await?;
        documents
            .iter()
            .map(|document| read(document)?.into_event())
            .collect()
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
    doc! {
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
    }
}

fn read(document: &Document) -> Result<Row, ArchiveError> {
    let id = text(document, "_id")?;
    Ok(Row {
        channel: text(document, "channel")?,
        epoch: text(document, "epoch")?,
        offset: number(document, "offset")?,
        id: Uuid::try_parse(&id).map_err(|error| ArchiveError::Unavailable(Box::new(error)))?,
        kind: text(document, "kind")?,
        user_id: text(document, "user")?,
        info: document.get_str("info").ok().map(str::to_owned),
        data: text(document, "data")?,
        tags: text(document, "tags")?,
        published_at_ms: number(document, "published_at_ms")?,
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
