//! Who may be on the channels of a `membership` namespace, remembered for a short time.
//!
//! Only what lets somebody in is remembered, so that a new member is let in at once by every
//! node. A change is told to all nodes and forgets here what it concerns; a node that does not
//! hear of it forgets after `membership_cache_ttl`.

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::ops::Bound;
use std::time::Duration;

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use shared::config::ChatConfig;
use shared::ids::{ChannelName, UserId};
use shared::protocol::ClientError;
use store::records::{Records, Standing};
use tokio::time::Instant;

use super::error::ChatError;

const SHARDS: usize = 16;

/// The memberships that this node knows of.
#[derive(Debug)]
pub(crate) struct Memberships {
    records: Option<Records>,
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
    ttl: Duration,
    shard_entries_max: usize,
}

#[derive(Debug, Default)]
struct Shard {
    // Ordered by user: what concerns one user is a range. Bounded by `shard_entries_max`; a full
    // shard is emptied, which costs a question for each of its entries and nothing else.
    known: BTreeMap<(UserId, String), Known>,
    /// Grows when something is forgotten: an answer that was asked for before is not kept.
    changes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    standing: Standing,
    until: Instant,
}

impl Memberships {
    pub(crate) fn new(records: Option<Records>, config: &ChatConfig) -> Self {
        Self {
            records,
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::default(),
            ttl: config.membership_cache_ttl,
            shard_entries_max: config.membership_cache_entries_max.div_ceil(SHARDS),
        }
    }

    /// Refuses who may not read a channel.
    ///
    /// # Errors
    /// 103 for who is no member, 100 when the database does not answer.
    pub(crate) async fn may_read(
        &self,
        channel: &ChannelName,
        user: &UserId,
    ) -> Result<(), ClientError> {
        self.standing(channel, user).await.map(drop)
    }

    /// Refuses who may not write into a channel.
    ///
    /// # Errors
    /// 103 for who is no member, or blocked; 100 when the database does not answer.
    pub(crate) async fn may_write(
        &self,
        channel: &ChannelName,
        user: &UserId,
    ) -> Result<(), ClientError> {
        if self.standing(channel, user).await?.is_blocked {
            return Err(ClientError::PERMISSION_DENIED);
        }
        Ok(())
    }

    /// Forgets what is known of a user; an empty `channel` means all.
    pub(crate) fn forget(&self, user: &UserId, channel: &str) {
        let mut shard = self.shard(user).lock();
        shard.changes += 1;
        if !channel.is_empty() {
            shard.known.remove(&(user.clone(), channel.to_owned()));
            return;
        }
        let lowest = (user.clone(), String::new());
        let of_user: Vec<_> = shard
            .known
            .range((Bound::Included(lowest), Bound::Unbounded))
            .map(|(key, _)| key)
            .take_while(|(other, _)| other == user)
            .cloned()
            .collect();
        for key in of_user {
            shard.known.remove(&key);
        }
    }

    async fn standing(
        &self,
        channel: &ChannelName,
        user: &UserId,
    ) -> Result<Standing, ClientError> {
        if user.is_anonymous() {
            return Err(ClientError::PERMISSION_DENIED);
        }
        let key = (user.clone(), channel.as_str().to_owned());
        let changes = {
            let shard = self.shard(user).lock();
            if let Some(known) = shard.known.get(&key)
                && known.until > Instant::now()
            {
                return Ok(known.standing);
            }
            shard.changes
        };
        let records = self.records.as_ref().ok_or(ClientError::NOT_AVAILABLE)?;
        let asked = records.standing(channel, user).await;
        let found = asked.map_err(|error| ChatError::from(error).client_error())?;
        let standing = found.ok_or(ClientError::PERMISSION_DENIED)?;
        let mut shard = self.shard(user).lock();
        if shard.changes == changes {
            if shard.known.len() >= self.shard_entries_max {
                shard.known.clear();
            }
            let until = Instant::now() + self.ttl;
            shard.known.insert(key, Known { standing, until });
        }
        Ok(standing)
    }

    fn shard(&self, user: &UserId) -> &Mutex<Shard> {
        #[allow(
            clippy::cast_possible_truncation,
            reason = "any bits of a hash will do"
        )]
        let hash = self.hasher.hash_one(user) as usize;
        &self.shards[hash % SHARDS]
    }
}
