//! The outbox in Redis: a stream in each partition, and a lease for who sweeps it.

use std::time::Duration;

use async_trait::async_trait;
use rand::RngExt;
use redis::Value;
use shared::ids::ChannelName;

use super::RedisBroker;
use super::keys;
use super::link::command;
use super::reply::{self, Fields};
use super::scripts::{Call, SETTLE, TAKE};
use super::wire::Item;
use crate::broker::{BrokerError, NewPublication, OutboxEntry, Published};
use crate::outbox::{OutboxStats, OutboxStore, Settled};

/// Entries taken from one partition at once: the answer is one reply of Redis.
const TAKEN_MAX: usize = 1_000;
/// How long a sweeper keeps a partition after it last asked for its entries.
const LEASE: Duration = Duration::from_secs(10);

#[async_trait]
impl OutboxStore for RedisBroker {
    async fn settle(&self, entry: &OutboxEntry) -> Result<Settled, BrokerError> {
        let keys = [
            keys::outbox(entry.partition),
            self.keys.meta(&entry.channel),
        ];
        let call = SETTLE.call(&keys).arg(&entry.entry_id);
        let epoch = reply::text(self.link.ask(call).await?)?;
        // An entry that is gone while primary and epoch are unchanged was relayed by a sweeper:
        // nothing else removes entries, and a primary that lost it would have another identity.
        Ok(if epoch == entry.epoch.as_str() {
            Settled::Current
        } else {
            Settled::Superseded
        })
    }

    async fn publish_again(&self, publication: NewPublication) -> Result<Published, BrokerError> {
        self.publish_new(publication, true).await
    }

    async fn leftovers(
        &self,
        age: Duration,
        limit: usize,
    ) -> Result<Vec<OutboxEntry>, BrokerError> {
        let looked = self.look_at_outboxes(false).await?;
        let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let old_until = looked.now_ms.saturating_sub(age_ms);
        let mut old: Vec<u16> = looked
            .partitions
            .iter()
            .filter(|(_, oldest_ms, _)| *oldest_ms <= old_until)
            .map(|(partition, ..)| *partition)
            .collect();
        if !old.is_empty() {
            // Nodes begin at different places, so that each gets a share of the leases.
            let start = rand::rng().random_range(0..old.len());
            old.rotate_left(start);
        }
        let mut taken = Vec::new();
        for partition in old {
            if taken.len() >= limit {
                break;
            }
            let room = limit - taken.len();
            taken.extend(self.take(partition, old_until, room).await?);
        }
        Ok(taken)
    }

    async fn stats(&self) -> Result<OutboxStats, BrokerError> {
        let looked = self.look_at_outboxes(true).await?;
        let oldest = looked
            .partitions
            .iter()
            .map(|(_, oldest_ms, _)| *oldest_ms)
            .min();
        let age_ms = oldest.map_or(0, |oldest| looked.now_ms.saturating_sub(oldest));
        Ok(OutboxStats {
            pending: looked.partitions.iter().map(|(.., entries)| entries).sum(),
            age: Duration::from_millis(age_ms),
        })
    }
}

/// The outboxes with an entry.
struct Looked {
    /// Redis time, which the entries' ids are made of.
    now_ms: u64,
    /// Partition, time of its oldest entry, number of entries (0 when not asked for).
    partitions: Vec<(u16, u64, u64)>,
}

impl RedisBroker {
    /// Looks at the oldest entry of every partition, in one round trip.
    async fn look_at_outboxes(&self, with_counts: bool) -> Result<Looked, BrokerError> {
        let mut calls: Vec<Call> = vec![command("TIME").into()];
        for partition in 0..self.keys.partitions() {
            let outbox = keys::outbox(partition);
            let mut oldest = command("XRANGE");
            oldest.arg(&outbox).arg("-").arg("+").arg("COUNT").arg(1);
            calls.push(oldest.into());
            if with_counts {
                let mut count = command("XLEN");
                count.arg(outbox);
                calls.push(count.into());
            }
        }
        let mut answers = self.link.call_all(&calls).await?.into_iter();
        let mut next = || {
            answers
                .next()
                .unwrap_or_else(|| Err(super::link::missing_answer()))
        };
        let now_ms = {
            let mut time = Fields::of(next()?)?;
            time.number()? * 1000 + time.number()? / 1000
        };
        let mut partitions = Vec::new();
        for partition in 0..self.keys.partitions() {
            let oldest = first_id_ms(next()?)?;
            let entries = if with_counts {
                reply::number(next()?)?
            } else {
                0
            };
            partitions.extend(oldest.map(|oldest| (partition, oldest, entries)));
        }
        Ok(Looked { now_ms, partitions })
    }

    /// Takes entries up to a time from a partition whose lease this node has or gets.
    async fn take(
        &self,
        partition: u16,
        until_ms: u64,
        limit: usize,
    ) -> Result<Vec<OutboxEntry>, BrokerError> {
        let call = TAKE
            .call(&[keys::lease(partition), keys::outbox(partition)])
            .arg(self.node.as_str())
            .arg(super::publish::millis(LEASE))
            .arg(until_ms)
            .arg(limit.min(TAKEN_MAX));
        let mut fields = Fields::of(self.link.call(call).await?)?;
        let mut entries = Vec::new();
        while !fields.is_empty() {
            let entry_id = fields.text()?;
            let (item, channel) = (fields.bytes()?, fields.text()?);
            let channel = ChannelName::new(&channel);
            let entry = channel
                .map_err(|error| BrokerError::Corrupt(error.to_string()))
                .and_then(|channel| {
                    Item::read(item)?.into_outbox_entry(entry_id, partition, channel)
                });
            match entry {
                Ok(entry) => entries.push(entry),
                // One that cannot be read stays for a version that can, and holds up no other.
                Err(error) => tracing::error!(partition, %error, "outbox entry cannot be read"),
            }
        }
        Ok(entries)
    }
}

/// Returns the time in the id of the first entry, Unix milliseconds.
fn first_id_ms(entries: Value) -> Result<Option<u64>, BrokerError> {
    let mut entries = Fields::of(entries)?;
    if entries.is_empty() {
        return Ok(None);
    }
    let id = Fields::of(entries.value()?)?.text()?;
    let ms = id.split('-').next().and_then(|ms| ms.parse().ok());
    ms.map(Some)
        .ok_or_else(|| BrokerError::Corrupt(format!("outbox entry id {id}")))
}
