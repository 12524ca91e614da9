//! Relays accepted publications of durable channels to the job log (step 10 of a message's life).
//!
//! A durable publish is acknowledged when its channel's stream *and* the job log have it, and the
//! stream is still the current one. [`Publisher`] is the one thing that sessions and API call:
//! it publishes at the broker, appends to the job log from memory, then settles the outbox entry.
//! What a dead node left in the outbox, any node's sweeper relays. So the log may hold a message
//! twice: consumers go by offset and id.
//!
//! While the log is away, durable publishes are refused before anything is shown to anybody; the
//! breaker opens after a failure and closes when the log answers a ping.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde_json::value::RawValue;
use shared::config::Config;
use shared::events::{EventClientInfo, PublicationEvent, PublicationKind};
use store::job_log::{JobLog, JobLogError, publication_job};
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::{Broker, BrokerError, NewPublication, OutboxEntry, Published};

/// Durable publishes of this node under way at most; one more is refused (error 100).
const RELAYS_MAX: usize = 10_000;
/// Leftovers relayed in one round of the sweeper.
const SWEEP_ENTRIES: usize = 500;
/// Pause between two rounds of the sweeper.
const SWEEP_PAUSE: Duration = Duration::from_millis(500);
/// How long a ping of the job log may take while the breaker is open.
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// How often one publish is made again because its stream ended before it was safe.
const REPUBLISH_MAX: usize = 3;

/// The outbox inside a broker.
#[async_trait]
pub trait OutboxStore: Send + Sync + 'static {
    /// Removes an entry that reached the job log, and says whether its stream is still current.
    ///
    /// # Errors
    /// See [`BrokerError`].
    async fn settle(&self, entry: &OutboxEntry) -> Result<Settled, BrokerError>;

    /// Lists entries that have waited for longer than `age`, oldest first, of the partitions
    /// whose sweeper lease this node has or gets.
    ///
    /// # Errors
    /// See [`BrokerError`].
    async fn leftovers(&self, age: Duration, limit: usize)
    -> Result<Vec<OutboxEntry>, BrokerError>;

    /// Counts what waits.
    ///
    /// # Errors
    /// See [`BrokerError`].
    async fn stats(&self) -> Result<OutboxStats, BrokerError>;
}

/// What settling an entry found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// The entry's stream is the current one: the publication may be acknowledged.
    Current,
    /// The stream has ended (failover): publish again under the new epoch, with the same id.
    Superseded,
}

/// What waits in the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OutboxStats {
    /// Entries.
    pub pending: u64,
    /// Age of the oldest.
    pub age: Duration,
}

/// Publishes, and makes durable publications safe.
pub struct Publisher {
    broker: Arc<dyn Broker>,
    outbox: Arc<dyn OutboxStore>,
    job_log: Option<Arc<dyn JobLog>>,
    /// The job log failed and has not answered since.
    is_open: AtomicBool,
    relays: Arc<Semaphore>,
    tasks: TaskTracker,
    publish_timeout: Duration,
    sweep_age: Duration,
    pending: Gauge,
    age_seconds: Gauge<f64, std::sync::atomic::AtomicU64>,
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").finish_non_exhaustive()
    }
}

/// A publish that has its place in the stream.
#[derive(Debug)]
pub struct PendingPublish {
    state: Pending,
    timeout: Duration,
}

#[derive(Debug)]
enum Pending {
    Safe(Published),
    Relaying(oneshot::Receiver<Result<Published, BrokerError>>),
}

impl PendingPublish {
    /// Waits until the publication is as safe as its channel promises.
    ///
    /// Dropping this does not stop the relay.
    ///
    /// # Errors
    /// [`BrokerError::Unavailable`] when it is not safe in time: it may still become safe, so
    /// retry with the same key.
    pub async fn finish(self) -> Result<Published, BrokerError> {
        let relaying = match self.state {
            Pending::Safe(published) => return Ok(published),
            Pending::Relaying(relaying) => relaying,
        };
        match tokio::time::timeout(self.timeout, relaying).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(BrokerError::Unavailable("the relay was stopped".into())),
            Err(_) => Err(BrokerError::Unavailable(
                "the job log did not answer in time".into(),
            )),
        }
    }
}

impl Publisher {
    /// Makes the publisher and starts its sweeper.
    pub fn start(
        broker: Arc<dyn Broker>,
        outbox: Arc<dyn OutboxStore>,
        job_log: Option<Arc<dyn JobLog>>,
        config: &Config,
        registry: &mut Registry,
        tasks: &TaskTracker,
        cancel: &CancellationToken,
    ) -> Arc<Self> {
        let publisher = Arc::new(Self {
            broker,
            outbox,
            job_log,
            is_open: AtomicBool::new(false),
            relays: Arc::new(Semaphore::new(RELAYS_MAX)),
            tasks: tasks.clone(),
            publish_timeout: config.client.publish_timeout,
            sweep_age: config.broker.outbox_sweep_age,
            pending: Gauge::default(),
            age_seconds: Gauge::default(),
        });
        registry.register(
            "wyd_outbox_pending",
            "Accepted publications that are not in Kafka",
            publisher.pending.clone(),
        );
        registry.register(
            "wyd_outbox_age_seconds",
            "Age of the oldest publication that is not in Kafka",
            publisher.age_seconds.clone(),
        );
        if let Some(job_log) = publisher.job_log.clone() {
            let sweeper = Arc::clone(&publisher);
            tasks.spawn(sweeper.sweep(job_log, cancel.clone()));
        }
        publisher
    }

    /// Publishes, and waits until it is safe.
    ///
    /// # Errors
    /// See [`BrokerError`].
    pub async fn publish(
        self: &Arc<Self>,
        publication: NewPublication,
    ) -> Result<Published, BrokerError> {
        self.begin(publication).await?.finish().await
    }

    /// Publishes: when this resolves, the publication has its place, and publishes begun after
    /// it come after it.
    ///
    /// # Errors
    /// [`BrokerError::Refused`] for a durable publication while the job log is away: nothing was
    /// shown to anybody. Else see [`BrokerError`].
    pub async fn begin(
        self: &Arc<Self>,
        publication: NewPublication,
    ) -> Result<PendingPublish, BrokerError> {
        let timeout = self.publish_timeout;
        if !publication.durable {
            let published = self.publish_in_time(publication).await?;
            return Ok(PendingPublish {
                state: Pending::Safe(published),
                timeout,
            });
        }
        let Some(job_log) = self.job_log.clone() else {
            return Err(BrokerError::Refused("no job log is configured"));
        };
        if self.is_open.load(Ordering::Relaxed) {
            return Err(BrokerError::Refused("Kafka is away"));
        }
        let permit = Arc::clone(&self.relays).try_acquire_owned();
        let permit = permit.map_err(|_| BrokerError::Refused("too many publishes under way"))?;
        let published = self.publish_in_time(publication.clone()).await?;
        let Some(entry) = published.outbox.clone() else {
            return Ok(PendingPublish {
                state: Pending::Safe(published),
                timeout,
            });
        };
        let (sender, receiver) = oneshot::channel();
        let publisher = Arc::clone(self);
        self.tasks.spawn(async move {
            let result = publisher
                .relay_until_current(job_log, publication, published, entry)
                .await;
            drop(permit);
            // The caller may have gone away; the relay was worth finishing all the same.
            drop(sender.send(result));
        });
        Ok(PendingPublish {
            state: Pending::Relaying(receiver),
            timeout,
        })
    }

    /// Waits until every publish under way is finished; false when `timeout` came first.
    pub async fn flush(&self, timeout: Duration) -> bool {
        let all = u32::try_from(RELAYS_MAX).unwrap_or(u32::MAX);
        let idle = self.relays.acquire_many(all);
        tokio::time::timeout(timeout, idle).await.is_ok()
    }

    async fn publish_in_time(&self, publication: NewPublication) -> Result<Published, BrokerError> {
        let published = self.broker.publish(publication);
        match tokio::time::timeout(self.publish_timeout, published).await {
            Ok(published) => published,
            Err(_) => Err(BrokerError::Unavailable(
                "the broker did not answer in time".into(),
            )),
        }
    }

    /// Relays an entry; publishes again when its stream has ended meanwhile.
    async fn relay_until_current(
        &self,
        job_log: Arc<dyn JobLog>,
        publication: NewPublication,
        mut published: Published,
        mut entry: OutboxEntry,
    ) -> Result<Published, BrokerError> {
        for _ in 0..REPUBLISH_MAX {
            self.append(&*job_log, &entry).await?;
            if self.outbox.settle(&entry).await? == Settled::Current {
                return Ok(published);
            }
            tracing::warn!(
                channel = %entry.channel, epoch = %entry.epoch, offset = entry.publication.offset,
                "stream ended before its publication was safe: publishing again"
            );
            published = self.publish_in_time(publication.clone()).await?;
            match published.outbox.clone() {
                Some(again) => entry = again,
                None => return Ok(published),
            }
        }
        Err(BrokerError::Unavailable(
            "the stream ended again and again".into(),
        ))
    }

    async fn append(&self, job_log: &dyn JobLog, entry: &OutboxEntry) -> Result<(), BrokerError> {
        let event = event(entry)?;
        let job =
            publication_job(&event).map_err(|error| BrokerError::Corrupt(error.to_string()))?;
        match job_log.append(job).await {
            Ok(_) => Ok(()),
            Err(JobLogError::Refused(reason)) => Err(BrokerError::Corrupt(reason)),
            Err(JobLogError::Unavailable(source)) => {
                if !self.is_open.swap(true, Ordering::Relaxed) {
                    tracing::warn!(error = %source, "job log is away: durable publishes are refused");
                }
                Err(BrokerError::Unavailable(source))
            }
        }
    }

    /// Relays what others left, and closes the breaker when the log is back.
    async fn sweep(self: Arc<Self>, job_log: Arc<dyn JobLog>, cancel: CancellationToken) {
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(SWEEP_PAUSE) => {}
            }
            if self.is_open.load(Ordering::Relaxed) && job_log.ping(PING_TIMEOUT).await.is_ok() {
                tracing::info!("job log is back: durable publishes are accepted");
                self.is_open.store(false, Ordering::Relaxed);
            }
            if let Err(error) = self.sweep_once(&*job_log).await {
                tracing::debug!(%error, "outbox could not be swept");
            }
        }
    }

    async fn sweep_once(&self, job_log: &dyn JobLog) -> Result<(), BrokerError> {
        let stats = self.outbox.stats().await?;
        self.pending
            .set(i64::try_from(stats.pending).unwrap_or(i64::MAX));
        self.age_seconds.set(stats.age.as_secs_f64());
        if self.is_open.load(Ordering::Relaxed) {
            return Ok(());
        }
        for entry in self.outbox.leftovers(self.sweep_age, SWEEP_ENTRIES).await? {
            self.append(job_log, &entry).await?;
            self.outbox.settle(&entry).await?;
            tracing::info!(
                channel = %entry.channel, offset = entry.publication.offset,
                "relayed a publication that its node had left"
            );
        }
        Ok(())
    }
}

/// Makes the event that the archive gets.
fn event(entry: &OutboxEntry) -> Result<PublicationEvent, BrokerError> {
    let publication = &entry.publication;
    let id = publication
        .id
        .ok_or_else(|| BrokerError::Corrupt("no message id".to_owned()))?;
    let info = match &publication.info {
        Some(info) => Some(EventClientInfo {
            user: info.user.to_string(),
            client: info.client.to_string(),
            conn_info: info.conn_info.as_deref().map(raw).transpose()?,
            chan_info: info.chan_info.as_deref().map(raw).transpose()?,
        }),
        None => None,
    };
    Ok(PublicationEvent {
        id,
        kind: PublicationKind::Message,
        channel: entry.channel.clone(),
        epoch: entry.epoch.clone(),
        offset: publication.offset,
        user: info
            .as_ref()
            .map(|info| info.user.clone())
            .unwrap_or_default(),
        info,
        data: raw(&publication.data)?,
        tags: publication.tags.clone(),
        published_at_ms: publication.published_at_ms,
    })
}

fn raw(json: &[u8]) -> Result<Box<RawValue>, BrokerError> {
    serde_json::from_slice(json).map_err(|error| BrokerError::Corrupt(error.to_string()))
}
