//! The broker over Redis: streams are the truth, sharded pub/sub is the bell.
//!
//! `publish` gives a publication its place, in one script; `bell` hears what is published and
//! `reader` hands it to this node's sink in order, repairing from the stream what was not heard;
//! `history` reads streams; `outbox` keeps what is not in the job log yet. Below them: `lanes`
//! (ordered calls), `link` (connections), `scripts`, `keys`, `wire` (values) and `reply`.
//! `docs/wire.md` describes what is stored.

mod bell;
mod feed;
mod history;
pub(crate) mod keys;
mod lanes;
pub(crate) mod link;
mod outbox;
mod publish;
mod reader;
pub(crate) mod reply;
pub(crate) mod scripts;
pub(crate) mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use redis::Value;
use shared::config::BrokerConfig;
use shared::ids::{ChannelName, NodeId, StreamPosition};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::history::{Page, history_call};
use self::keys::Keys;
use self::lanes::Lanes;
use self::link::{Connector, Link, command};
use self::reader::{Reader, Subscriptions};
use self::wire::Item;
use super::{
    Broker, BrokerError, BrokerMetrics, Deliver, HistoryPage, HistoryPolicy, HistoryRange,
    NewPublication, Published, Signal,
};
use crate::control::Obeyer;
use crate::control::redis::RedisControl;
use crate::outbox::OutboxStore;
use crate::parts::Parts;
use crate::presence::Presence;
use crate::presence::redis::{LEASE, RedisPresence};

/// How long the start waits for Redis.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// The oldest Redis that has sharded pub/sub.
const REDIS_MAJOR_MIN: u32 = 7;

/// Joins this node to the others on a Redis; what runs in the background belongs to `tasks` and
/// ends with `cancel`.
///
/// # Errors
/// [`BrokerError::Incompatible`] when the address is none, Redis is older than 7 or was set up
/// with another number of partitions; [`BrokerError::Unavailable`] when it does not answer.
pub async fn connect(
    config: &BrokerConfig,
    url: &str,
    node: NodeId,
    deliver: Arc<dyn Deliver>,
    obeyer: Obeyer,
    tasks: &TaskTracker,
    cancel: CancellationToken,
) -> Result<Parts, BrokerError> {
    let cancel = cancel.child_token();
    // Disarmed at the end: a start that fails leaves nothing behind.
    let guard = cancel.clone().drop_guard();
    let connector = Connector::new(url, node.as_str(), config.command_timeout)?;
    let link = Link::start(connector.clone(), "main", tasks, cancel.clone());
    prepare_in_time(&link, config.partitions).await?;
    let keys = Keys::new(config.partitions);
    let metrics = BrokerMetrics::default();
    let is_bell_up = Arc::new(AtomicBool::new(false));
    let (subscriptions, requests) = Subscriptions::new(config.command_timeout);
    let reader = Reader::new(
        keys,
        link.clone(),
        Arc::clone(&deliver),
        metrics.clone(),
        Arc::clone(&is_bell_up),
        requests,
    );
    reader.start(connector.clone(), tasks, &cancel);
    let broker = Arc::new(RedisBroker {
        keys,
        node: node.clone(),
        lanes: Lanes::start(&connector, tasks, &cancel),
        link: link.clone(),
        subscriptions,
        is_bell_up,
        command_timeout: config.command_timeout,
        outbox_entries_max: config.outbox_entries_max,
    });
    spawn_up_gauge(Arc::clone(&broker), metrics.clone(), tasks, cancel.clone());
    let presence = RedisPresence::start(link.clone(), keys, node, LEASE, tasks, &cancel);
    let control = RedisControl::start(connector, link, obeyer, tasks, &cancel).await?;
    guard.disarm();
    Ok(Parts {
        outbox: Arc::clone(&broker) as Arc<dyn OutboxStore>,
        broker,
        presence,
        control,
        metrics,
    })
}

/// Joins a process that is no node: it reads who is present, and nothing else. What runs in the
/// background belongs to `tasks` and ends with `cancel`.
///
/// # Errors
/// As those of [`connect`].
pub async fn presence_reader(
    config: &BrokerConfig,
    url: &str,
    tasks: &TaskTracker,
    cancel: CancellationToken,
) -> Result<Arc<dyn Presence>, BrokerError> {
    let connector = Connector::new(url, "presence", config.command_timeout)?;
    let link = Link::start(connector, "reader", tasks, cancel);
    prepare_in_time(&link, config.partitions).await?;
    Ok(RedisPresence::reader(link, Keys::new(config.partitions)))
}

/// The broker of one node on a Redis.
pub struct RedisBroker {
    keys: Keys,
    node: NodeId,
    lanes: Lanes,
    link: Link,
    subscriptions: Subscriptions,
    is_bell_up: Arc<AtomicBool>,
    command_timeout: Duration,
    outbox_entries_max: u64,
}

impl std::fmt::Debug for RedisBroker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisBroker")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl RedisBroker {
    /// Waits for the answer of a queued call.
    async fn in_time(
        &self,
        answer: oneshot::Receiver<Result<Value, BrokerError>>,
    ) -> Result<Value, BrokerError> {
        // Twice: the batch before this call's may need as long as its own.
        match tokio::time::timeout(self.command_timeout * 2, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(BrokerError::Unavailable("the broker was stopped".into())),
            Err(error) => Err(BrokerError::Unavailable(error.into())),
        }
    }
}

#[async_trait]
impl Broker for RedisBroker {
    async fn publish(&self, publication: NewPublication) -> Result<Published, BrokerError> {
        self.publish_new(publication, false).await
    }

    async fn history(
        &self,
        channel: &ChannelName,
        policy: &HistoryPolicy,
        range: HistoryRange,
    ) -> Result<HistoryPage, BrokerError> {
        let call = history_call(self.keys, channel, policy, &range);
        let page = Page::read(self.link.ask(call).await?)?;
        let is_other =
            |since: &StreamPosition| !since.epoch.as_str().is_empty() && since.epoch != page.epoch;
        if range.since.as_ref().is_some_and(is_other) {
            return Err(BrokerError::UnrecoverablePosition);
        }
        let publications = page
            .items
            .into_iter()
            .map(|item| item.into_publication().map(Arc::new))
            .collect::<Result<_, _>>()?;
        Ok(HistoryPage {
            publications,
            top: StreamPosition {
                offset: page.top,
                epoch: page.epoch,
            },
        })
    }

    async fn history_remove(&self, channel: &ChannelName) -> Result<(), BrokerError> {
        let mut delete = command("DEL");
        delete.arg(self.keys.stream(channel));
        self.link.ask(delete.into()).await.map(drop)
    }

    async fn subscribe(
        &self,
        channel: &ChannelName,
        history: Option<&HistoryPolicy>,
    ) -> Result<(), BrokerError> {
        self.subscriptions.subscribe(channel, history).await
    }

    async fn unsubscribe(&self, channel: &ChannelName) -> Result<(), BrokerError> {
        self.subscriptions.unsubscribe(channel).await
    }

    async fn signal(&self, channel: &ChannelName, signal: Signal) -> Result<(), BrokerError> {
        let mut ring = command("SPUBLISH");
        ring.arg(self.keys.bell(channel)).arg(Item::signal(&signal));
        // In the channel's lane: a leave must not pass the join that was told before it.
        let partition = self.keys.partition(channel);
        let answer = self.lanes.queue(partition, channel, ring.into())?;
        self.in_time(answer).await.map(drop)
    }

    fn is_up(&self) -> bool {
        self.link.is_up() && self.lanes.is_up() && self.is_bell_up.load(Ordering::Relaxed)
    }
}

/// Waits for Redis, for a while, and checks it.
async fn prepare_in_time(link: &Link, partitions: u16) -> Result<(), BrokerError> {
    let prepared = async {
        while let Err(error) = prepare(link, partitions).await {
            if !error.is_temporary() {
                return Err(error);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    };
    match tokio::time::timeout(START_TIMEOUT, prepared).await {
        Ok(prepared) => prepared,
        // Says why, unlike the timeout.
        Err(_) => prepare(link, partitions).await,
    }
}

/// Checks what must be true before anything is stored.
async fn prepare(link: &Link, partitions: u16) -> Result<(), BrokerError> {
    let info = info_text(link.call(command("INFO").into()).await?)?;
    let field = |name: &str| {
        info.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
    };
    let version = field("redis_version").unwrap_or_default();
    let major = version
        .split('.')
        .next()
        .and_then(|major| major.parse::<u32>().ok());
    if major.is_none_or(|major| major < REDIS_MAJOR_MIN) {
        return Err(BrokerError::Incompatible(format!(
            "Redis {version:?} has no sharded pub/sub: use Redis {REDIS_MAJOR_MIN} or newer"
        )));
    }
    let is_evicting = field("maxmemory_policy").is_some_and(|policy| policy != "noeviction");
    if is_evicting && field("maxmemory") != Some("0") {
        tracing::warn!(
            policy = field("maxmemory_policy"),
            "Redis may evict accepted publications: set maxmemory-policy to noeviction"
        );
    }
    claim_partitions(link, partitions).await
}

/// `INFO` is a string, in RESP3 one that names its format.
fn info_text(answer: Value) -> Result<String, BrokerError> {
    match answer {
        Value::VerbatimString { text, .. } => Ok(text),
        other => reply::text(other),
    }
}

/// Stores the number of partitions, once for the life of a Redis.
async fn claim_partitions(link: &Link, partitions: u16) -> Result<(), BrokerError> {
    let mut claim = command("SET");
    claim.arg(keys::PARTITIONS).arg(partitions).arg("NX");
    let mut read = command("GET");
    read.arg(keys::PARTITIONS);
    link.call(claim.into()).await?;
    let stored = reply::number(link.call(read.into()).await?)?;
    if stored == u64::from(partitions) {
        return Ok(());
    }
    Err(BrokerError::Incompatible(format!(
        "this Redis was set up with {stored} partitions, the configuration says {partitions}: \
         set broker.partitions (WYD__BROKER__PARTITIONS) to {stored}"
    )))
}

fn spawn_up_gauge(
    broker: Arc<RedisBroker>,
    metrics: BrokerMetrics,
    tasks: &TaskTracker,
    cancel: CancellationToken,
) {
    tasks.spawn(async move {
        loop {
            metrics.redis_up.set(i64::from(broker.is_up()));
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
    });
}
