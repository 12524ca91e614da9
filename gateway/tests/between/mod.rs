//! What the tests of the parts between nodes share: a node's parts on either broker, a sink that
//! remembers, and small words for publications.

#![allow(
    dead_code,
    reason = "every test file uses its own share of the vocabulary"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gateway::broker::{
    Broker, BrokerError, Deliver, Delivery, HistoryPage, HistoryPolicy, HistoryRange, Idempotency,
    NewPublication, Signal, memory, redis_streams,
};
use gateway::control::{ControlCommand, Obey};
use gateway::parts::Parts;
use parking_lot::Mutex;
use shared::config::BrokerConfig;
use shared::ids::{ChannelName, ClientId, Epoch, MessageId, NodeId, StreamPosition};
use shared::protocol::{ClientInfo, Publication};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Which broker a test runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Memory,
    /// A Redis database of its own: sweepers of one test must not relay another's entries.
    Redis(u8),
}

/// Makes a test of each function, on both brokers; the number is the Redis database.
#[macro_export]
macro_rules! on_both_brokers {
    ($($database:literal: $($name:ident),+);+ $(;)?) => {
        mod on_memory {
            $($(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::between::Kind::Memory).await;
            })+)+
        }
        mod on_redis {
            $($(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::between::Kind::Redis($database)).await;
            })+)+
        }
    };
}

/// One node's parts between nodes, and what it was handed.
pub(crate) struct TestNode {
    pub(crate) id: NodeId,
    pub(crate) parts: Parts,
    pub(crate) seen: Arc<Seen>,
    pub(crate) tasks: TaskTracker,
    pub(crate) cancel: CancellationToken,
}

impl TestNode {
    /// Ends the node as a crash does: nothing is said to anybody.
    pub(crate) fn die(&self) {
        self.cancel.cancel();
    }

    pub(crate) fn broker(&self) -> Arc<dyn Broker> {
        Arc::clone(&self.parts.broker)
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// Starts two nodes; on the memory broker, which has only one, the same twice.
pub(crate) async fn two_nodes(kind: Kind) -> (Arc<TestNode>, Arc<TestNode>) {
    let first = Arc::new(node(kind).await);
    match kind {
        Kind::Memory => (Arc::clone(&first), first),
        Kind::Redis(_) => (first, Arc::new(node(kind).await)),
    }
}

pub(crate) async fn node(kind: Kind) -> TestNode {
    node_with(kind, BrokerConfig::default()).await.unwrap()
}

pub(crate) async fn node_with(kind: Kind, config: BrokerConfig) -> Result<TestNode, BrokerError> {
    let seen = Arc::new(Seen::default());
    let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
    let deliver = Arc::clone(&seen) as Arc<dyn Deliver>;
    let obeyer = Arc::clone(&seen) as Arc<dyn Obey>;
    let id = NodeId::random();
    let parts = match kind {
        Kind::Memory => memory::parts(deliver, obeyer, &tasks, cancel.clone()),
        Kind::Redis(database) => {
            let url = redis_url(database);
            redis_streams::connect(
                &config,
                &url,
                id.clone(),
                deliver,
                obeyer,
                &tasks,
                cancel.clone(),
            )
            .await?
        }
    };
    let node = TestNode {
        id,
        parts,
        seen,
        tasks,
        cancel,
    };
    eventually("the broker is up", || node.parts.broker.is_up()).await;
    Ok(node)
}

pub(crate) fn redis_url(database: u8) -> String {
    let url = std::env::var("WYD_TEST_REDIS_URL")
        .expect("WYD_TEST_REDIS_URL is not set: run ./test services");
    format!("{}/{database}", url.trim_end_matches('/'))
}

/// Opens a plain connection, for what no node would do.
pub(crate) async fn raw_redis(kind: Kind) -> redis::aio::MultiplexedConnection {
    let Kind::Redis(database) = kind else {
        panic!("only on Redis");
    };
    let client = redis::Client::open(redis_url(database)).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

/// The name of a key of a channel: `s` stream, `m` meta.
pub(crate) fn key(kind: &str, channel: &ChannelName) -> String {
    let partition = xxhash_rust::xxh3::xxh3_64(channel.as_str().as_bytes()) % 256;
    format!("wyd:{{{partition}}}:{kind}:{channel}")
}

/// The key of the outbox that a channel's publications wait in.
pub(crate) fn outbox_key(channel: &ChannelName) -> String {
    let stream = key("s", channel);
    let (partition, _) = stream.split_once(":s:").unwrap();
    format!("{partition}:outbox")
}

/// Entries of a stream as the driver reads them: id, then fields.
pub(crate) type Entries = Vec<(String, Vec<(String, Vec<u8>)>)>;

/// A sink that remembers.
#[derive(Default)]
pub(crate) struct Seen {
    deliveries: Mutex<Vec<(ChannelName, Delivery)>>,
    commands: Mutex<Vec<ControlCommand>>,
}

impl Deliver for Seen {
    fn deliver(&self, batch: Vec<(ChannelName, Delivery)>) {
        self.deliveries.lock().extend(batch);
    }
}

impl Obey for Seen {
    fn obey(&self, command: ControlCommand) {
        self.commands.lock().push(command);
    }
}

/// A delivery in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Line {
    Publication {
        epoch: Option<Epoch>,
        offset: u64,
        data: String,
    },
    Join(String),
    Leave(String),
    Lost,
}

impl Seen {
    pub(crate) fn commands(&self) -> Vec<ControlCommand> {
        self.commands.lock().clone()
    }

    pub(crate) fn lines(&self, channel: &ChannelName) -> Vec<Line> {
        let of_channel = |(name, delivery): &(ChannelName, Delivery)| {
            (name == channel).then(|| Line::of(delivery))
        };
        self.deliveries
            .lock()
            .iter()
            .filter_map(of_channel)
            .collect()
    }

    pub(crate) fn publications(&self, channel: &ChannelName) -> Vec<Arc<Publication>> {
        let publication = |(name, delivery): &(ChannelName, Delivery)| match delivery {
            Delivery::Publication { publication, .. } if name == channel => {
                Some(Arc::clone(publication))
            }
            _ => None,
        };
        self.deliveries
            .lock()
            .iter()
            .filter_map(publication)
            .collect()
    }

    /// What publications said, in the order of delivery.
    pub(crate) fn data(&self, channel: &ChannelName) -> Vec<String> {
        texts(&self.publications(channel))
    }

    pub(crate) fn offsets(&self, channel: &ChannelName) -> Vec<u64> {
        self.publications(channel)
            .iter()
            .map(|publication| publication.offset)
            .collect()
    }

    /// Waits until so many publications have come, and a moment more for what must not come.
    pub(crate) async fn expect(&self, channel: &ChannelName, count: usize) -> Vec<String> {
        let name = format!("{count} publications in {channel}");
        eventually(&name, || self.publications(channel).len() >= count).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        self.data(channel)
    }
}

impl Line {
    fn of(delivery: &Delivery) -> Self {
        match delivery {
            Delivery::Publication { publication, epoch } => Self::Publication {
                epoch: epoch.clone(),
                offset: publication.offset,
                data: text(publication),
            },
            Delivery::Signal(Signal::Join(info)) => Self::Join(info.user.to_string()),
            Delivery::Signal(Signal::Leave(info)) => Self::Leave(info.user.to_string()),
            Delivery::Lost => Self::Lost,
        }
    }
}

/// Waits for a condition, or fails by its name.
pub(crate) async fn eventually(what: &str, condition: impl FnMut() -> bool) {
    within(PATIENCE, what, condition).await;
}

pub(crate) async fn within(patience: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + patience;
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) fn text(publication: &Publication) -> String {
    String::from_utf8(publication.data.to_vec()).unwrap()
}

pub(crate) fn texts(publications: &[Arc<Publication>]) -> Vec<String> {
    publications
        .iter()
        .map(|publication| text(publication))
        .collect()
}

/// A channel that no other test uses.
pub(crate) fn channel(name: &str) -> ChannelName {
    ChannelName::new(&format!("{name}:{}", MessageId::now())).unwrap()
}

pub(crate) fn policy(size: usize) -> HistoryPolicy {
    HistoryPolicy {
        size,
        ttl: Duration::from_secs(60),
        meta_ttl: Duration::from_secs(600),
        durable: false,
    }
}

pub(crate) fn durable_policy(size: usize) -> HistoryPolicy {
    HistoryPolicy {
        durable: true,
        ..policy(size)
    }
}

/// A publication without history.
pub(crate) fn ephemeral(channel: &ChannelName, data: &str) -> NewPublication {
    NewPublication {
        channel: channel.clone(),
        data: Bytes::copy_from_slice(data.as_bytes()),
        info: None,
        tags: BTreeMap::new(),
        id: MessageId::now(),
        history: None,
        durable: false,
        idempotency: None,
    }
}

pub(crate) fn kept(channel: &ChannelName, data: &str, policy: &HistoryPolicy) -> NewPublication {
    NewPublication {
        history: Some(policy.clone()),
        durable: policy.durable,
        ..ephemeral(channel, data)
    }
}

pub(crate) fn with_key(publication: NewPublication, scope: &str, key: &str) -> NewPublication {
    NewPublication {
        id: MessageId::of_key(scope, &publication.channel, key),
        idempotency: Some(Idempotency {
            scope: scope.to_owned(),
            key: key.to_owned(),
            ttl: Duration::from_secs(60),
        }),
        ..publication
    }
}

pub(crate) fn client(user: &str) -> Arc<ClientInfo> {
    Arc::new(ClientInfo {
        user: user.into(),
        client: ClientId::random(),
        conn_info: Some(Bytes::from_static(b"{\"name\":\"x\"}")),
        chan_info: None,
    })
}

pub(crate) fn all() -> HistoryRange {
    HistoryRange {
        since: None,
        limit: None,
        reverse: false,
    }
}

pub(crate) fn since(offset: u64, epoch: &Epoch) -> HistoryRange {
    let since = StreamPosition {
        offset,
        epoch: epoch.clone(),
    };
    HistoryRange {
        since: Some(since),
        ..all()
    }
}

pub(crate) async fn read(
    broker: &dyn Broker,
    channel: &ChannelName,
    policy: &HistoryPolicy,
    range: HistoryRange,
) -> HistoryPage {
    broker.history(channel, policy, range).await.unwrap()
}
