//! Who is connected to this node.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hash};
use std::ops::Bound;
use std::sync::Arc;

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use shared::ids::{ClientId, UserId};

use crate::session::send_queue::{SendQueue, Signal};
use crate::session::ticks::NextTick;

const SHARDS: usize = 64;

/// One connection, as everybody but its own session sees it.
#[derive(Debug)]
pub struct Client {
    /// The connection's id.
    pub id: ClientId,
    /// What waits to be written to it.
    pub queue: SendQueue,
    /// When its session wants to be woken.
    pub(crate) next_tick: NextTick,
}

impl PartialEq for Client {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Client {}

impl Hash for Client {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.id.hash(state);
    }
}

type Shard = BTreeMap<(UserId, ClientId), Arc<Client>>;

/// The connections of this node: those whose `connect` succeeded by user, and the newcomers.
#[derive(Debug)]
pub struct Clients {
    /// Connections that have not yet sent their `connect`.
    newcomers: Mutex<Newcomers>,
    // Ordered by user, then connection: a user's connections are a range, and a user with one
    // connection costs one entry, not a map of its own.
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct Newcomers {
    clients: HashMap<ClientId, Arc<Client>, RandomState>,
    /// The node drains: whoever comes now is told at once.
    is_draining: bool,
}

impl Default for Clients {
    fn default() -> Self {
        Self {
            newcomers: Mutex::default(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::default(),
        }
    }
}

impl Clients {
    /// Adds a connection that still has to say who it is.
    pub(crate) fn welcome(&self, client: Arc<Client>) {
        let mut newcomers = self.newcomers.lock();
        if newcomers.is_draining {
            client.queue.signal(Signal::Drain);
        }
        newcomers.clients.insert(client.id, client);
    }

    /// Notes whose a connection is.
    pub(crate) fn insert(&self, user: &UserId, client: Arc<Client>) {
        let id = client.id;
        // Known to its user before it stops being a newcomer: a drain finds it in one of the two.
        self.shard(user).lock().insert((user.clone(), id), client);
        self.newcomers.lock().clients.remove(&id);
    }

    /// Removes a connection; `user` is who it said it is, if it did.
    pub(crate) fn remove(&self, user: Option<&UserId>, client: ClientId) {
        self.newcomers.lock().clients.remove(&client);
        if let Some(user) = user {
            self.shard(user).lock().remove(&(user.clone(), client));
        }
    }

    /// From now on whoever comes is told to go; returns all connections there are.
    pub(crate) fn begin_drain(&self) -> Vec<Arc<Client>> {
        let mut all: Vec<Arc<Client>> = {
            let mut newcomers = self.newcomers.lock();
            newcomers.is_draining = true;
            newcomers.clients.values().cloned().collect()
        };
        all.extend(self.all());
        all
    }

    /// Lists a user's connections.
    pub fn of_user(&self, user: &UserId) -> Vec<Arc<Client>> {
        let lowest = ClientId::from_u128(0);
        let range = (Bound::Included((user.clone(), lowest)), Bound::Unbounded);
        let shard = self.shard(user).lock();
        shard
            .range(range)
            .take_while(|((other, _), _)| other == user)
            .map(|(_, client)| Arc::clone(client))
            .collect()
    }

    /// Lists all connections that are somebody's.
    pub fn all(&self) -> Vec<Arc<Client>> {
        let mut all = Vec::new();
        for shard in &self.shards {
            all.extend(shard.lock().values().cloned());
        }
        all
    }

    /// Counts the connections that are somebody's, and different users.
    pub fn count(&self) -> (usize, usize) {
        let mut clients = 0;
        let mut users = 0;
        for shard in &self.shards {
            let shard = shard.lock();
            clients += shard.len();
            let mut last: Option<&UserId> = None;
            for (user, _) in shard.keys() {
                users += usize::from(last != Some(user));
                last = Some(user);
            }
        }
        (clients, users)
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
