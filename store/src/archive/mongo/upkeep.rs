//! Retention and one user's data, in MongoDB: each step may be repeated after a crash.

use futures::TryStreamExt;
use mongodb::bson::{Bson, Document, doc};
use shared::events::{PublicationEvent, PublicationKind};
use shared::ids::{ChannelName, MessageId};

use super::{MongoArchive, number, text};
use crate::archive::retention::{Expired, Old};
use crate::archive::row::Row;
use crate::archive::{
    ArchiveError, PAGE_LIMIT_MAX, capped, channel_name, now_ms, signed, unsigned,
};

impl MongoArchive {
    pub(super) async fn channel_floor(
        &self,
        channel: &ChannelName,
    ) -> Result<Option<u64>, ArchiveError> {
        let found = self.floors.find_one(doc! { "_id": channel.as_str() });
        let found = found.await?;
        let floor = found.map(|document| number(&document, "offset"));
        floor.transpose()?.map(unsigned).transpose()
    }

    pub(super) async fn channel_names(
        &self,
        after: Option<&ChannelName>,
        limit: usize,
    ) -> Result<Vec<ChannelName>, ArchiveError> {
        let mut names: Vec<ChannelName> = Vec::new();
        while names.len() < limit {
            let last = names.last().or(after).map_or("", ChannelName::as_str);
            let next = self
                .messages
                .find_one(doc! { "channel": { "$gt": last } })
                .projection(doc! { "channel": 1 })
                .sort(doc! { "channel": 1 });
            let Some(document) = next.await? else {
                break;
            };
            names.push(channel_name(&text(&document, "channel")?)?);
        }
        Ok(names)
    }

    /// The floor first, aliases second, rows last: whoever finds a row missing finds the floor.
    pub(super) async fn expire_rows(
        &self,
        channel: &ChannelName,
        before_ms: u64,
        limit: usize,
    ) -> Result<Expired, ArchiveError> {
        let oldest = self
            .messages
            .find(doc! { "channel": channel.as_str() })
            .projection(doc! { "_id": 1, "offset": 1, "published_at_ms": 1 })
            .sort(doc! { "offset": 1 })
            .limit(capped(limit.max(1)));
        let oldest: Vec<Document> = oldest.await?.try_collect().await?;
        let times = oldest
            .iter()
            .map(|row| Ok((number(row, "offset")?, number(row, "published_at_ms")?)))
            .collect::<Result<Vec<_>, ArchiveError>>()?;
        let old = Old::of(&times, signed(before_ms), limit.min(PAGE_LIMIT_MAX));
        let Some(top) = old.top else {
            return Ok(old.expired());
        };
        let ids = oldest
            .iter()
            .take(old.rows)
            .map(|row| text(row, "_id"))
            .collect::<Result<Vec<_>, _>>()?;
        let of_rows = doc! { "channel": channel.as_str(), "message": { "$in": ids } };
        let aliases: Vec<Document> = self.aliases.find(of_rows).await?.try_collect().await?;
        let mut floor = top;
        for alias in &aliases {
            floor = floor.max(number(alias, "offset")?);
        }
        self.floors
            .update_one(
                doc! { "_id": channel.as_str() },
                doc! { "$max": { "offset": floor } },
            )
            .upsert(true)
            .await?;
        let below = |offset: i64| doc! { "channel": channel.as_str(), "offset": { "$lte": offset }};
        self.aliases.delete_many(below(floor)).await?;
        self.messages.delete_many(below(top)).await?;
        Ok(old.expired())
    }

    pub(super) async fn rows_of_user(
        &self,
        user: &str,
        after: Option<MessageId>,
        limit: usize,
    ) -> Result<Vec<PublicationEvent>, ArchiveError> {
        if user.is_empty() || limit == 0 {
            return Ok(Vec::new());
        }
        let after = after.map_or_else(String::new, |id| id.to_string());
        let filter = doc! { "user": user, "_id": { "$gt": after } };
        let rows = self.rows(filter, doc! { "_id": 1 }, capped(limit)).await?;
        rows.into_iter().map(Row::into_event).collect()
    }

    /// Edits first, then the rows that lead to them.
    pub(super) async fn erase_rows(&self, user: &str, limit: usize) -> Result<usize, ArchiveError> {
        if user.is_empty() || limit == 0 {
            return Ok(0);
        }
        let own = self
            .messages
            .find(doc! { "user": user })
            .projection(doc! { "_id": 1 })
            .sort(doc! { "_id": 1 })
            .limit(capped(limit));
        let own: Vec<Document> = own.await?.try_collect().await?;
        let ids = own
            .iter()
            .map(|row| text(row, "_id"))
            .collect::<Result<Vec<_>, _>>()?;
        let emptied = doc! { "$set": {
            "user": "", "info": Bson::Null, "data": "null", "tags": "{}", "erased_at_ms": now_ms(),
        } };
        let edits = doc! { "target": { "$in": &ids }, "kind": PublicationKind::Edited.name() };
        self.messages.update_many(edits, emptied.clone()).await?;
        self.messages
            .update_many(doc! { "_id": { "$in": &ids } }, emptied)
            .await?;
        Ok(ids.len())
    }
}
