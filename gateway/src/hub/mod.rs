//! This node's sessions and subscriptions.
//!
//! The hub knows who is connected (`clients`), who is on which channel (`channel`), and hands
//! what the broker delivers to every subscriber's send queue (`fanout`). It knows no transport
//! and decides nothing about rights. Locks: a shard of the channel map, then one channel, then
//! one client's queue; never the other way round, none across an `.await`.

mod channel;
mod clients;
mod fanout;

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use shared::ids::{ChannelName, StreamPosition};
use tokio_util::task::TaskTracker;

use crate::broker::{Broker, BrokerError};
use crate::channel::Namespace;
use crate::metrics::{Metrics, NamespaceLabel};

pub use clients::{Client, Clients};

use channel::{Added, Channel};
pub(crate) use channel::{Left, NotContiguous, WantsSignals};

const SHARDS: usize = 64;
/// Locks that order the first subscribe and the last unsubscribe of a channel at the broker.
const INTEREST_LOCKS: usize = 1024;
/// How long a subscribe waits for its turn at the broker.
const INTEREST_WAIT: Duration = Duration::from_secs(2);

/// This node's sessions and subscriptions.
#[derive(Debug)]
pub struct Hub {
    /// Who is connected.
    pub clients: Clients,
    shards: Vec<Mutex<HashMap<ChannelName, Arc<Channel>, RandomState>>>,
    hasher: RandomState,
    interest: Vec<tokio::sync::Mutex<()>>,
    broker: OnceLock<BrokerHandle>,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
}

/// The broker behind a name that can be printed.
struct BrokerHandle(Arc<dyn Broker>);

impl std::fmt::Debug for BrokerHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Broker")
    }
}

impl Hub {
    /// Makes an empty hub; `tasks` owns what it does in the background.
    pub fn new(metrics: Arc<Metrics>, tasks: TaskTracker) -> Self {
        Self {
            clients: Clients::default(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::default(),
            interest: (0..INTEREST_LOCKS)
                .map(|_| tokio::sync::Mutex::default())
                .collect(),
            broker: OnceLock::new(),
            metrics,
            tasks,
        }
    }

    /// Gives the hub the broker it asks for channels; once, before the first session.
    pub fn attach(&self, broker: Arc<dyn Broker>) {
        assert!(
            self.broker.set(BrokerHandle(broker)).is_ok(),
            "a hub has one broker"
        );
    }

    /// Puts a client on a channel. Publications are kept for it until [`Hub::go_live`].
    ///
    /// When this returns, nothing that is accepted later is missed.
    ///
    /// # Errors
    /// What the broker answers; the client is then not on the channel.
    pub(crate) async fn subscribe(
        &self,
        channel: &ChannelName,
        namespace: &Namespace,
        client: &Arc<Client>,
        wants_signals: WantsSignals,
    ) -> Result<(), BrokerError> {
        // Most subscribes find the channel in use and need no word with the broker.
        if let Some(known) = self.find(channel)
            && known.add_if_active(client, wants_signals) == Added::Active
        {
            self.metrics.subscriptions.inc();
            return Ok(());
        }
        // While the broker does not answer, those behind the first give up and come again instead
        // of waiting for its time limit one after another.
        let locked = tokio::time::timeout(INTEREST_WAIT, self.interest_lock(channel).lock()).await;
        let _first_or_last = locked.map_err(|_| {
            BrokerError::Unavailable("an earlier subscribe still waits for the broker".into())
        })?;
        let known = self.find_or_insert(channel, namespace);
        let added = known.add(client, wants_signals);
        self.metrics.subscriptions.inc();
        if added == Added::Active {
            return Ok(());
        }
        let subscribed = self
            .broker()
            .subscribe(channel, namespace.history.as_ref())
            .await;
        match subscribed {
            Ok(()) => {
                known.activate();
                Ok(())
            }
            Err(error) => {
                self.remove_from(&known, client);
                self.forget_if_empty(&known);
                Err(error)
            }
        }
    }

    /// Begins to hand publications to a subscriber: first those that were kept for it.
    ///
    /// `after` is the position its reply named; `None` without one.
    ///
    /// # Errors
    /// [`NotContiguous`] when what was kept does not follow on `after` without a gap.
    pub(crate) fn go_live(
        &self,
        channel: &ChannelName,
        client: &Arc<Client>,
        after: Option<&StreamPosition>,
    ) -> Result<(), NotContiguous> {
        match self.find(channel) {
            Some(known) => known.go_live(client, after),
            None => Ok(()),
        }
    }

    /// Takes a client off a channel, and says how far it was.
    pub(crate) fn unsubscribe(
        self: &Arc<Self>,
        channel: &ChannelName,
        client: &Arc<Client>,
    ) -> Left {
        let Some(known) = self.find(channel) else {
            return Left::NotThere;
        };
        let (left, is_empty) = self.remove_from(&known, client);
        if left != Left::NotThere && is_empty {
            self.leave_broker(known);
        }
        left
    }

    /// Counts the channels with a subscriber on this node.
    pub fn channel_count(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    fn remove_from(&self, known: &Channel, client: &Arc<Client>) -> (Left, bool) {
        let (left, is_empty) = known.remove(client);
        if left != Left::NotThere {
            self.metrics.subscriptions.dec();
        }
        (left, is_empty)
    }

    /// Tells the broker that nobody is left, in the background: no client waits for it.
    fn leave_broker(self: &Arc<Self>, known: Arc<Channel>) {
        let hub = Arc::clone(self);
        self.tasks.spawn(async move {
            let _first_or_last = hub.interest_lock(known.name()).lock().await;
            if !hub.forget_if_empty(&known) {
                return;
            }
            if let Err(error) = hub.broker().unsubscribe(known.name()).await {
                tracing::debug!(channel = %known.name(), %error, "unsubscribe at the broker failed");
            }
        });
    }

    /// Removes a channel nobody is on; only while its interest lock is held.
    fn forget_if_empty(&self, known: &Arc<Channel>) -> bool {
        let mut shard = self.shard(known.name()).lock();
        if !known.retire_if_empty() {
            return false;
        }
        let is_forgotten = shard.remove(known.name()).is_some();
        if is_forgotten {
            self.metrics.channels.dec();
        }
        is_forgotten
    }

    fn find(&self, channel: &ChannelName) -> Option<Arc<Channel>> {
        self.shard(channel).lock().get(channel).cloned()
    }

    fn find_or_insert(&self, channel: &ChannelName, namespace: &Namespace) -> Arc<Channel> {
        let mut shard = self.shard(channel).lock();
        if let Some(known) = shard.get(channel) {
            return Arc::clone(known);
        }
        let label = NamespaceLabel {
            namespace: namespace.name.clone(),
        };
        let deliveries = self.metrics.deliveries.get_or_create(&label).clone();
        let known = Arc::new(Channel::new(channel.clone(), deliveries));
        shard.insert(channel.clone(), Arc::clone(&known));
        self.metrics.channels.inc();
        known
    }

    fn broker(&self) -> &Arc<dyn Broker> {
        let broker = self.broker.get();
        &broker
            .expect("`attach` is called before the first session")
            .0
    }

    fn hash(&self, channel: &ChannelName) -> usize {
        #[allow(
            clippy::cast_possible_truncation,
            reason = "any bits of a hash will do"
        )]
        let hash = self.hasher.hash_one(channel) as usize;
        hash
    }

    fn shard(
        &self,
        channel: &ChannelName,
    ) -> &Mutex<HashMap<ChannelName, Arc<Channel>, RandomState>> {
        &self.shards[self.hash(channel) % SHARDS]
    }

    fn interest_lock(&self, channel: &ChannelName) -> &tokio::sync::Mutex<()> {
        &self.interest[self.hash(channel) % INTEREST_LOCKS]
    }
}
