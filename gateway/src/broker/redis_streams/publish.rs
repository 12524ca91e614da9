//! Step 5 of a message's life: one script gives a publication its offset and epoch, puts it in
//! the outbox and the stream, and rings the bell. The next step is `reader.rs`, on every node.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redis::Value;
use shared::ids::{Epoch, StreamPosition};
use shared::protocol::Publication;

use super::RedisBroker;
use super::reply::{self, Fields};
use super::scripts::{Call, PUBLISH};
use super::wire::{Item, KnownResult};
use crate::broker::fingerprint::fingerprint;
use crate::broker::{BrokerError, HistoryPolicy, NewPublication, OutboxEntry, Published};

impl RedisBroker {
    /// Publishes; `again`: a first result of its key from another epoch does not count.
    pub(super) async fn publish_new(
        &self,
        new: NewPublication,
        again: bool,
    ) -> Result<Published, BrokerError> {
        if new.durable && new.history.is_none() {
            return Err(BrokerError::Refused("a durable channel needs history"));
        }
        let payload = fingerprint(&new);
        let partition = self.keys.partition(&new.channel);
        // Nothing is awaited before the call is queued: first polled is first published.
        let answer = self.lanes.queue(
            partition,
            &new.channel,
            self.publish_call(&new, payload, again),
        )?;
        let answer = self.in_time(answer).await?;
        let mut fields = Fields::of(answer)?;
        match fields.text()?.as_str() {
            "published" => published(new, partition, fields),
            "known" => repeated(&new, payload, partition, fields),
            "full" => Err(BrokerError::Refused("the outbox is full")),
            other => Err(BrokerError::Corrupt(format!(
                "the script answered {other:?}"
            ))),
        }
    }

    fn publish_call(&self, new: &NewPublication, payload: [u8; 16], again: bool) -> Call {
        let channel = &new.channel;
        let meta = self.keys.meta(channel);
        let key = new.idempotency.as_ref();
        // Without a key nothing is read or written there; the name only has to be in the slot.
        let record = key.map_or_else(
            || meta.clone(),
            |key| self.keys.idempotency(channel, &key.scope, &key.key),
        );
        let outbox = super::keys::outbox(self.keys.partition(channel));
        let keys = [
            meta,
            self.keys.stream(channel),
            outbox,
            record,
            self.keys.bell(channel),
        ];
        let policy = new.history.as_ref();
        PUBLISH
            .call(&keys)
            .arg(Epoch::random().as_str())
            .arg(policy.map_or(0, |policy| policy.size))
            .arg(policy.map_or(0, |policy| millis(policy.ttl)))
            .arg(policy.map_or(0, meta_ttl))
            .arg(u8::from(
                new.durable || policy.is_some_and(|policy| policy.durable),
            ))
            .arg(Item::tail(new))
            .arg(
                key.map(|_| KnownResult::tail(payload, new.id))
                    .unwrap_or_default(),
            )
            .arg(key.map_or(0, |key| millis(key.ttl)))
            .arg(self.outbox_entries_max)
            .arg(channel.as_str())
            .arg(u8::from(again))
            .arg(u8::from(new.durable))
    }
}

/// Milliseconds for Redis, at least one: an expiry of 0 is an error there.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis())
        .unwrap_or(u64::MAX / 2)
        .max(1)
}

/// How long the meta lives: always longer than the stream, whose identity it is.
pub(super) fn meta_ttl(policy: &HistoryPolicy) -> u64 {
    millis(policy.meta_ttl.max(policy.ttl + Duration::from_secs(60)))
}

fn published(
    new: NewPublication,
    partition: u16,
    mut fields: Fields,
) -> Result<Published, BrokerError> {
    let epoch = Epoch::from(fields.text()?);
    let offset = fields.number()?;
    let published_at_ms = fields.number()?;
    let entry_id = fields.text()?;
    let outbox = new.durable.then(|| OutboxEntry {
        entry_id,
        partition,
        epoch: epoch.clone(),
        channel: new.channel,
        publication: Arc::new(Publication {
            offset,
            data: new.data,
            info: new.info,
            tags: new.tags,
            id: Some(new.id),
            published_at_ms,
        }),
    });
    let position = new.history.map(|_| StreamPosition { offset, epoch });
    Ok(Published {
        position,
        id: new.id,
        published_at_ms,
        is_repeat: false,
        outbox,
    })
}

fn repeated(
    new: &NewPublication,
    payload: [u8; 16],
    partition: u16,
    mut fields: Fields,
) -> Result<Published, BrokerError> {
    let known = KnownResult::read(fields.bytes()?)?;
    if known.payload != payload.as_slice() {
        return Err(BrokerError::KeyConflict);
    }
    let outbox = match fields.value()? {
        Value::Nil | Value::Boolean(false) => None,
        item => {
            let item: Bytes = reply::bytes(item)?;
            let entry_id = known.outbox_id.clone();
            Some(Item::read(item)?.into_outbox_entry(entry_id, partition, new.channel.clone())?)
        }
    };
    Ok(Published {
        position: known.position(),
        id: known.id()?,
        published_at_ms: known.published_at_ms,
        is_repeat: true,
        outbox,
    })
}
