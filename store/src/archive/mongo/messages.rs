//! Reading messages as they are now, from MongoDB.

use futures::TryStreamExt;
use mongodb::bson::{Document, doc};
use shared::events::{PublicationEvent, PublicationKind};
use shared::ids::{ChannelName, MessageId};

use super::{MongoArchive, number, read, text};
use crate::archive::row::{Bounds, Row};
use crate::archive::view::{self, MessageBounds};
use crate::archive::{
    ArchiveError, ArchivedMessage, COUNT_MAX, MessagePage, MessageQuery, PAGE_LIMIT_MAX, PageQuery,
    capped, signed,
};

impl MongoArchive {
    pub(super) async fn log_page(
        &self,
        channel: &ChannelName,
        query: &PageQuery,
    ) -> Result<Vec<PublicationEvent>, ArchiveError> {
        let bounds = Bounds::of(query);
        // A limit of 0 means "no limit" to the server.
        if bounds.limit == 0 {
            return Ok(Vec::new());
        }
        let mut filter = doc! {
            "channel": channel.as_str(),
            "offset": { "$gt": bounds.above, "$lt": bounds.below },
        };
        if let Some(epoch) = &query.epoch {
            filter.insert("epoch", epoch.as_str());
        }
        let sort = doc! { "offset": if query.reverse { -1 } else { 1 } };
        let mut rows = self
            .rows(filter.clone(), sort.clone(), bounds.limit)
            .await?;
        if query.epoch.is_some() {
            rows.extend(self.aliased(filter, sort, bounds.limit).await?);
            rows.sort_by_key(|row| row.offset);
            if query.reverse {
                rows.reverse();
            }
            rows.truncate(query.limit.min(PAGE_LIMIT_MAX));
        }
        rows.into_iter().map(Row::into_event).collect()
    }

    /// Reads messages that have their rows elsewhere, at their aliases' places.
    async fn aliased(
        &self,
        filter: Document,
        sort: Document,
        limit: i64,
    ) -> Result<Vec<Row>, ArchiveError> {
        let found = self.aliases.find(filter).sort(sort).limit(limit);
        let aliases: Vec<Document> = found.await?.try_collect().await?;
        let mut rows = Vec::with_capacity(aliases.len());
        for alias in &aliases {
            let id = text(alias, "message")?;
            let found = self.messages.find_one(doc! { "_id": id }).await?;
            if let Some(document) = found {
                rows.push(Row {
                    epoch: text(alias, "epoch")?,
                    offset: number(alias, "offset")?,
                    ..read(&document)?
                });
            }
        }
        Ok(rows)
    }

    pub(super) async fn message_page(
        &self,
        channel: &ChannelName,
        query: &MessageQuery,
    ) -> Result<MessagePage, ArchiveError> {
        let bounds = MessageBounds::of(query);
        let order = if query.reverse { -1 } else { 1 };
        let mut filter = doc! {
            "channel": channel.as_str(),
            "offset": { "$gt": bounds.above, "$lt": bounds.below },
            "kind": PublicationKind::Message.name(),
        };
        let mut sort = doc! { "offset": order };
        if bounds.by_time {
            let times = doc! { "$gt": bounds.later, "$lt": bounds.earlier };
            filter.insert("published_at_ms", times);
            sort = doc! { "published_at_ms": order, "offset": order };
        }
        let rows = match bounds.limit {
            0 => Vec::new(),
            limit => self.rows(filter, sort, limit).await?,
        };
        let changes = self.changes(channel, &rows).await?;
        Ok(MessagePage {
            messages: view::messages(rows, &changes, query.reverse)?,
            floor: self.channel_floor(channel).await?,
        })
    }

    pub(super) async fn one_message(
        &self,
        channel: &ChannelName,
        id: MessageId,
    ) -> Result<Option<ArchivedMessage>, ArchiveError> {
        let filter = doc! {
            "_id": id.to_string(),
            "channel": channel.as_str(),
            "kind": PublicationKind::Message.name(),
        };
        let rows = self.rows(filter, doc! { "_id": 1 }, 1).await?;
        let changes = self.changes(channel, &rows).await?;
        Ok(view::messages(rows, &changes, false)?.pop())
    }

    pub(super) async fn count_messages(
        &self,
        channel: &ChannelName,
        after_offset: u64,
        not_by_user: &str,
    ) -> Result<u64, ArchiveError> {
        let mut counted = 0;
        let mut above = signed(after_offset);
        loop {
            let found = self
                .messages
                .find(doc! {
                    "channel": channel.as_str(),
                    "offset": { "$gt": above },
                    "user": { "$ne": not_by_user },
                    "kind": PublicationKind::Message.name(),
                    "erased_at_ms": { "$exists": false },
                })
                .projection(doc! { "_id": 1, "offset": 1 })
                .sort(doc! { "offset": 1 })
                .limit(capped(PAGE_LIMIT_MAX));
            let documents: Vec<Document> = found.await?.try_collect().await?;
            let ids = documents
                .iter()
                .map(|document| text(document, "_id"))
                .collect::<Result<Vec<_>, _>>()?;
            let deleted = self
                .messages
                .distinct(
                    "target",
                    doc! {
                        "channel": channel.as_str(),
                        "target": { "$in": &ids },
                        "kind": PublicationKind::Deleted.name(),
                    },
                )
                .await?;
            counted += (ids.len() - deleted.len()) as u64;
            if ids.len() < PAGE_LIMIT_MAX || counted >= COUNT_MAX {
                return Ok(counted.min(COUNT_MAX));
            }
            if let Some(last) = documents.last() {
                above = number(last, "offset")?;
            }
        }
    }

    /// Reads the last edit and the last deletion of messages. Few messages of a page change: which
    /// ones is asked once, the rest by message.
    async fn changes(&self, channel: &ChannelName, rows: &[Row]) -> Result<Vec<Row>, ArchiveError> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<String> = rows.iter().map(|row| row.id.to_string()).collect();
        let of_these = doc! { "channel": channel.as_str(), "target": { "$in": ids } };
        let changed = self.messages.distinct("target", of_these).await?;
        let mut changes = Vec::new();
        for target in changed {
            for kind in [PublicationKind::Edited, PublicationKind::Deleted] {
                let filter = doc! {
                    "channel": channel.as_str(), "target": target.clone(), "kind": kind.name(),
                };
                changes.extend(self.rows(filter, doc! { "offset": -1 }, 1).await?);
            }
        }
        Ok(changes)
    }

    pub(super) async fn rows(
        &self,
        filter: Document,
        sort: Document,
        limit: i64,
    ) -> Result<Vec<Row>, ArchiveError> {
        let found = self.messages.find(filter).sort(sort).limit(limit);
        let documents: Vec<Document> = found.await?.try_collect().await?;
        documents.iter().map(read).collect()
    }
}
