//! Presence over Redis: each channel's members in a hash, each node's in a set under its lease.
//!
//! A node renews its lease in every partition where it has members. Where another one's has run
//! out, whoever notices removes the members and tells that they left, in one script. A node that
//! was cut off for longer than its lease finds it broken and adds its members again; for that,
//! and only that, it remembers them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use rand::RngExt;
use shared::ids::{ChannelName, ClientId, NodeId, UserId};
use shared::protocol::ClientInfo;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Presence, PresenceStats};
use crate::broker::redis_streams::keys::{Keys, presence_leases, presence_owned};
use crate::broker::redis_streams::link::{Link, command};
use crate::broker::redis_streams::reply::{self, Fields};
use crate::broker::redis_streams::scripts::{
    Call, PRESENCE_ADD, PRESENCE_REMOVE, PRESENCE_RENEW, PRESENCE_SWEEP,
};
use crate::broker::redis_streams::wire::{Item, Member};
use crate::broker::{BrokerError, Signal};

/// How long a node's members outlive its last sign of life.
pub const LEASE: Duration = Duration::from_secs(30);
/// Members of a dead node removed, or of this one added again, in one go.
const BATCH: usize = 128;
/// Removals that failed and are tried again; more are left to the end of the lease.
const DEPARTED_MAX: usize = 100_000;

type OwnMembers = HashMap<(ChannelName, ClientId), Arc<ClientInfo>>;

/// Who is on each channel, over all nodes.
pub struct RedisPresence {
    link: Link,
    keys: Keys,
    node: NodeId,
    lease: Duration,
    /// This node's members, by partition.
    own: Vec<Mutex<OwnMembers>>,
    /// Members whose removal failed.
    departed: Mutex<Vec<(ChannelName, ClientId, Arc<ClientInfo>)>>,
}

impl std::fmt::Debug for RedisPresence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisPresence")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl RedisPresence {
    /// Makes it and starts the renewal of its lease, three times in each lease.
    pub(crate) fn start(
        link: Link,
        keys: Keys,
        node: NodeId,
        lease: Duration,
        tasks: &TaskTracker,
        cancel: &CancellationToken,
    ) -> Arc<Self> {
        let presence = Arc::new(Self {
            link,
            keys,
            node,
            lease,
            own: (0..keys.partitions()).map(|_| Mutex::default()).collect(),
            departed: Mutex::default(),
        });
        let renewing = Arc::clone(&presence);
        let cancel = cancel.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = renewing.keep_alive() => {}
            }
        });
        presence
    }

    /// Makes one that only reads: it has no members and renews nothing.
    pub(crate) fn reader(link: Link, keys: Keys) -> Arc<Self> {
        Arc::new(Self {
            link,
            keys,
            node: NodeId::random(),
            lease: LEASE,
            own: (0..keys.partitions()).map(|_| Mutex::default()).collect(),
            departed: Mutex::default(),
        })
    }

    async fn keep_alive(&self) {
        loop {
            let pause = self
                .lease
                .div_f64(3.0)
                .mul_f64(rand::rng().random_range(0.8..1.0));
            tokio::time::sleep(pause).await;
            if let Err(error) = self.renew().await {
                tracing::debug!(node = %self.node, %error, "presence lease could not be renewed");
            }
        }
    }

    /// Renews this node's lease and sweeps the members of dead nodes.
    async fn renew(&self) -> Result<(), BrokerError> {
        self.remove_departed().await?;
        let mut calls = Vec::with_capacity(self.own.len());
        for (partition, own) in (0..self.keys.partitions()).zip(&self.own) {
            let has_members = !own.lock().is_empty();
            let call = PRESENCE_RENEW
                .call(&[presence_leases(partition)])
                .arg(self.node.as_str())
                .arg(lease_ms(self.lease))
                .arg(u8::from(has_members));
            calls.push((partition, has_members, call));
        }
        let (asked, calls): (Vec<_>, Vec<_>) = calls
            .into_iter()
            .map(|(partition, has, call)| ((partition, has), call))
            .unzip();
        for ((partition, has_members), answer) in
            asked.into_iter().zip(self.link.call_all(&calls).await?)
        {
            let mut fields = Fields::of(answer?)?;
            let is_unbroken = fields.number()? == 1;
            if has_members && !is_unbroken {
                self.add_again(partition).await?;
            }
            for dead in Fields::of(fields.value()?)?.rest() {
                let dead = reply::text(dead)?;
                if dead != self.node.as_str() {
                    self.sweep(partition, &dead).await?;
                }
            }
        }
        Ok(())
    }

    /// Adds this node's members of a partition that others took for dead.
    async fn add_again(&self, partition: u16) -> Result<(), BrokerError> {
        let own: Vec<_> = self.own[usize::from(partition)]
            .lock()
            .iter()
            .map(|((channel, _), info)| (channel.clone(), Arc::clone(info)))
            .collect();
        tracing::info!(node = %self.node, partition, members = own.len(), "adding members again");
        for members in own.chunks(BATCH) {
            let calls: Vec<Call> = members
                .iter()
                .map(|(channel, info)| self.add_call(channel, info))
                .collect();
            let mut bells = Vec::new();
            for ((channel, info), added) in members.iter().zip(self.link.call_all(&calls).await?) {
                // Their leave was told; who left meanwhile is not added for good: its removal
                // comes after this one's end, or is tried again.
                if reply::number(added?)? == 1 {
                    bells.push(self.bell_call(channel, &Signal::Join(Arc::clone(info))));
                }
            }
            self.link.call_all(&bells).await?;
        }
        self.drop_gone(partition, &own).await
    }

    /// Removes again whoever left while it was being added again.
    async fn drop_gone(
        &self,
        partition: u16,
        added: &[(ChannelName, Arc<ClientInfo>)],
    ) -> Result<(), BrokerError> {
        let gone: Vec<_> = {
            let own = self.own[usize::from(partition)].lock();
            added
                .iter()
                .filter(|(c, info)| !own.contains_key(&(c.clone(), info.client)))
                .cloned()
                .collect()
        };
        for (channel, info) in gone {
            self.depart(&channel, info.client, info);
        }
        self.remove_departed().await
    }

    /// Removes the members of a dead node from a partition.
    async fn sweep(&self, partition: u16, dead: &str) -> Result<(), BrokerError> {
        let owned = presence_owned(partition, dead);
        let mut removed = 0;
        loop {
            let mut list = command("SRANDMEMBER");
            list.arg(&owned).arg(BATCH);
            let members: Vec<String> = Fields::of(self.link.call(list.into()).await?)?
                .rest()
                .map(reply::text)
                .collect::<Result<_, _>>()?;
            let mut calls: Vec<Call> = members
                .iter()
                .filter_map(|member| self.sweep_call(partition, dead, member))
                .collect();
            if members.is_empty() {
                calls.push(self.forget_call(partition, dead));
            }
            let mut progress = 0;
            for answer in self.link.call_all(&calls).await? {
                progress += reply::number(answer?)?;
            }
            removed += progress;
            // No progress: it came back, or another node swept the rest.
            if members.is_empty() || progress == 0 {
                break;
            }
        }
        if removed > 0 {
            tracing::info!(
                partition,
                dead,
                removed,
                "removed members of a node that stopped"
            );
        }
        Ok(())
    }

    fn sweep_call(&self, partition: u16, dead: &str, member: &str) -> Option<Call> {
        // A client's id has 36 letters; the channel follows.
        let (client, channel) = member.split_at_checked(36)?;
        let name = ChannelName::new(channel).ok()?;
        let keys = [
            presence_leases(partition),
            presence_owned(partition, dead),
            self.keys.members(&name),
            self.keys.users(&name),
            self.keys.bell(&name),
        ];
        Some(
            PRESENCE_SWEEP
                .call(&keys)
                .arg(dead)
                .arg(client)
                .arg(channel),
        )
    }

    fn forget_call(&self, partition: u16, dead: &str) -> Call {
        let (leases, owned) = (presence_leases(partition), presence_owned(partition, dead));
        // Without a client the last three keys are not used.
        let keys = [
            leases.clone(),
            owned,
            leases.clone(),
            leases.clone(),
            leases,
        ];
        PRESENCE_SWEEP.call(&keys).arg(dead).arg("").arg("")
    }

    fn add_call(&self, channel: &ChannelName, info: &ClientInfo) -> Call {
        let partition = self.keys.partition(channel);
        let keys = [
            self.keys.members(channel),
            self.keys.users(channel),
            presence_owned(partition, self.node.as_str()),
            presence_leases(partition),
        ];
        PRESENCE_ADD
            .call(&keys)
            .arg(info.client.to_string())
            .arg(Member::value(info))
            .arg(info.user.as_str())
            .arg(channel.as_str())
            .arg(self.node.as_str())
            .arg(lease_ms(self.lease))
    }

    fn remove_call(&self, channel: &ChannelName, client: ClientId) -> Call {
        let partition = self.keys.partition(channel);
        let owned = presence_owned(partition, self.node.as_str());
        let keys = [self.keys.members(channel), self.keys.users(channel), owned];
        PRESENCE_REMOVE
            .call(&keys)
            .arg(client.to_string())
            .arg(channel.as_str())
    }

    fn bell_call(&self, channel: &ChannelName, signal: &Signal) -> Call {
        let mut ring = command("SPUBLISH");
        ring.arg(self.keys.bell(channel)).arg(Item::signal(signal));
        ring.into()
    }

    fn own_of(
        &self,
        channel: &ChannelName,
    ) -> &Mutex<HashMap<(ChannelName, ClientId), Arc<ClientInfo>>> {
        &self.own[usize::from(self.keys.partition(channel))]
    }

    /// Remembers a removal that has to be tried again.
    fn depart(&self, channel: &ChannelName, client: ClientId, info: Arc<ClientInfo>) {
        let mut departed = self.departed.lock();
        if departed.len() < DEPARTED_MAX {
            departed.push((channel.clone(), client, info));
        }
    }

    /// Tries again the removals that failed, and tells what their callers could not.
    async fn remove_departed(&self) -> Result<(), BrokerError> {
        loop {
            let batch: Vec<_> = {
                let mut departed = self.departed.lock();
                let rest = departed.len().saturating_sub(BATCH);
                departed.split_off(rest)
            };
            if batch.is_empty() {
                return Ok(());
            }
            let calls: Vec<Call> = batch
                .iter()
                .map(|(channel, client, _)| self.remove_call(channel, *client))
                .collect();
            let answers = match self.link.call_all(&calls).await {
                Ok(answers) => answers,
                Err(error) => {
                    self.departed.lock().extend(batch);
                    return Err(error);
                }
            };
            let mut bells = Vec::new();
            for ((channel, _, info), removed) in batch.iter().zip(answers) {
                if reply::number(removed?)? == 1 {
                    bells.push(self.bell_call(channel, &Signal::Leave(Arc::clone(info))));
                }
            }
            self.link.call_all(&bells).await?;
        }
    }
}

#[async_trait]
impl Presence for RedisPresence {
    async fn add(&self, channel: &ChannelName, info: Arc<ClientInfo>) -> Result<bool, BrokerError> {
        let call = self.add_call(channel, &info);
        // First here: a renewal that runs meanwhile keeps it.
        self.own_of(channel)
            .lock()
            .insert((channel.clone(), info.client), info);
        Ok(reply::number(self.link.call(call).await?)? == 1)
    }

    async fn remove(&self, channel: &ChannelName, client: ClientId) -> Result<bool, BrokerError> {
        let known = self
            .own_of(channel)
            .lock()
            .remove(&(channel.clone(), client));
        let removed = self.link.call(self.remove_call(channel, client)).await;
        match removed.and_then(reply::number) {
            Ok(removed) => Ok(removed == 1),
            Err(error) => {
                if let Some(info) = known {
                    self.depart(channel, client, info);
                }
                Err(error)
            }
        }
    }

    async fn members(&self, channel: &ChannelName) -> Result<Vec<Arc<ClientInfo>>, BrokerError> {
        let mut values = command("HVALS");
        values.arg(self.keys.members(channel));
        let values = Fields::of(self.link.ask(values.into()).await?)?.rest();
        values
            .map(|value| Ok(Arc::new(Member::read(reply::bytes(value)?)?)))
            .collect()
    }

    async fn stats(&self, channel: &ChannelName) -> Result<PresenceStats, BrokerError> {
        let count = |key: String| {
            let mut count = command("HLEN");
            count.arg(key);
            Call::from(count)
        };
        let calls = [
            count(self.keys.members(channel)),
            count(self.keys.users(channel)),
        ];
        let mut counts = self.link.call_all(&calls).await?.into_iter();
        let mut next = || match counts.next() {
            Some(count) => {
                reply::number(count?).map(|count| u32::try_from(count).unwrap_or(u32::MAX))
            }
            None => Ok(0),
        };
        Ok(PresenceStats {
            num_clients: next()?,
            num_users: next()?,
        })
    }

    async fn online(
        &self,
        channel: &ChannelName,
        users: &[UserId],
    ) -> Result<HashSet<UserId>, BrokerError> {
        if users.is_empty() {
            return Ok(HashSet::new());
        }
        let mut counts = command("HMGET");
        counts.arg(self.keys.users(channel));
        for user in users {
            counts.arg(user.as_str());
        }
        let counts = Fields::of(self.link.ask(counts.into()).await?)?.rest();
        let there = users.iter().zip(counts);
        let there = there.filter(|(_, count)| !matches!(count, redis::Value::Nil));
        Ok(there.map(|(user, _)| user.clone()).collect())
    }
}

fn lease_ms(lease: Duration) -> u64 {
    u64::try_from(lease.as_millis()).unwrap_or(u64::MAX / 2)
}
