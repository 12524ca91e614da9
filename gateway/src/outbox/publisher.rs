//! The one door that publications go through, in two phases for durable channels.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use shared::config::Config;
use store::job_log::{JobLog, JobLogError, publication_job};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::breaker::Breaker;
use super::event::publication_event;
use super::sweeper::{OutboxGauges, Sweeper};
use super::{OutboxStore, Settled};
use crate::broker::{Broker, BrokerError, NewPublication, OutboxEntry, Published};

/// Durable publishes of this node that may be under way; more are refused as "try later".
const IN_FLIGHT_MAX: u32 = 16_384;
/// Largest data of a durable publication: with all that goes with it, it stays below the largest
/// message that Kafka takes by default (1 MiB), which would refuse it after it was shown.
const DURABLE_BYTES_MAX: usize = 768 * 1024;
/// Pause before a failed append or settle is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Tag that carries the message id in durable channels.
const TAG_ID: &str = "id";

/// Publishes for sessions and for the server API, and relays to the job log.
pub struct Publisher {
    broker: Arc<dyn Broker>,
    relay: Option<Arc<Relay>>,
    in_flight: Arc<Semaphore>,
    publish_timeout: Duration,
    tasks: TaskTracker,
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").finish_non_exhaustive()
    }
}

/// A publication that the broker has accepted; for a durable channel it still has to reach the
/// job log. Dropping this loses only the answer: the relay goes on.
#[derive(Debug)]
pub struct PendingPublish(State);

#[derive(Debug)]
enum State {
    Finished(Published),
    Relaying(oneshot::Receiver<Result<Published, BrokerError>>),
}

impl PendingPublish {
    /// Waits until the publication is as safe as its channel's class promises.
    ///
    /// # Errors
    /// [`BrokerError::Unavailable`] when that was not known in time. The publication may have
    /// been seen, and will reach the archive then: retry with the same idempotency key.
    pub async fn finish(self) -> Result<Published, BrokerError> {
        match self.0 {
            State::Finished(published) => Ok(published),
            State::Relaying(answer) => answer
                .await
                .unwrap_or_else(|_| Err(unavailable("the relay was stopped"))),
        }
    }
}

impl Publisher {
    /// Makes the publisher and starts what it does in the background: the job log's circuit
    /// breaker and the sweeper, in `tasks`, until `cancel`.
    pub fn start(
        broker: Arc<dyn Broker>,
        outbox: Arc<dyn OutboxStore>,
        job_log: Option<Arc<dyn JobLog>>,
        config: &Config,
        registry: &mut Registry,
        tasks: &TaskTracker,
        cancel: &CancellationToken,
    ) -> Arc<Self> {
        let relay = job_log.map(|log| Arc::new(Relay::new(outbox, log)));
        if let Some(relay) = &relay {
            let breaker = Arc::clone(&relay.breaker);
            tasks.spawn(breaker.probe(Arc::clone(&relay.log), cancel.clone()));
            let gauges = OutboxGauges::register(registry);
            let sweeper = Sweeper::new(Arc::clone(relay), config.broker.outbox_sweep_age, gauges);
            tasks.spawn(sweeper.run(cancel.clone()));
        }
        Arc::new(Self {
            broker,
            relay,
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT_MAX as usize)),
            publish_timeout: config.client.publish_timeout,
            tasks: tasks.clone(),
        })
    }

    /// Gives a publication its place and shows it: phase 1.
    ///
    /// Publishes to one channel keep the order in which these futures are first polled.
    ///
    /// # Errors
    /// See [`BrokerError`]; durable publishes are refused while the job log is away.
    pub async fn begin(&self, publication: NewPublication) -> Result<PendingPublish, BrokerError> {
        if !publication.durable {
            let deadline = Instant::now() + self.publish_timeout;
            let published = self.broker_publish(publication, deadline).await?;
            return Ok(PendingPublish(State::Finished(published)));
        }
        self.begin_durable(publication).await
    }

    /// Publishes and waits until it is as safe as the channel's class promises.
    ///
    /// # Errors
    /// See [`BrokerError`].
    pub async fn publish(&self, publication: NewPublication) -> Result<Published, BrokerError> {
        self.begin(publication).await?.finish().await
    }

    /// Waits until every durable publish that was begun has ended; false when `deadline` passed
    /// first. What is left then is relayed by another node.
    pub async fn flush(&self, deadline: Duration) -> bool {
        let all = self.in_flight.acquire_many(IN_FLIGHT_MAX);
        tokio::time::timeout(deadline, all).await.is_ok()
    }

    /// Asks the broker, as long as somebody waits for the answer. What it accepted all the same is
    /// in the outbox.
    async fn broker_publish(
        &self,
        publication: NewPublication,
        deadline: Instant,
    ) -> Result<Published, BrokerError> {
        let published = tokio::time::timeout_at(deadline, self.broker.publish(publication)).await;
        published.unwrap_or_else(|_| Err(unavailable("the broker did not answer in time")))
    }

    async fn begin_durable(
        &self,
        mut publication: NewPublication,
    ) -> Result<PendingPublish, BrokerError> {
        let Some(relay) = &self.relay else {
            return Err(BrokerError::Refused("no job log is configured"));
        };
        if publication.data.len() > DURABLE_BYTES_MAX {
            return Err(BrokerError::TooLarge);
        }
        if !relay.breaker.admits() {
            return Err(BrokerError::Refused("the job log is away"));
        }
        // Waiting here could let a later publish of the same channel pass: no waiting, no limit
        // that is ever met by a node in health.
        let permit = Arc::clone(&self.in_flight)
            .try_acquire_owned()
            .map_err(|_| BrokerError::Refused("too many publishes are under way"))?;
        let deadline = Instant::now() + self.publish_timeout;
        publication
            .tags
            .insert(TAG_ID.to_owned(), publication.id.to_string());
        let again = publication.clone();
        let published = self.broker_publish(publication, deadline).await?;
        let Some(entry) = published.outbox.clone() else {
            return Ok(PendingPublish(State::Finished(published)));
        };
        let (answer, receiver) = oneshot::channel();
        let relaying = Relaying {
            relay: Arc::clone(relay),
            published,
            again,
            _permit: permit,
        };
        self.tasks.spawn(async move {
            // The caller may have gone; the entry is relayed all the same.
            drop(answer.send(relaying.run(entry, deadline).await));
        });
        Ok(PendingPublish(State::Relaying(receiver)))
    }
}

/// One durable publish on its way to the job log.
struct Relaying {
    relay: Arc<Relay>,
    published: Published,
    /// The publication, for the case that its stream is superseded.
    again: NewPublication,
    _permit: OwnedSemaphorePermit,
}

impl Relaying {
    /// Relays until the publication can be acknowledged, or `deadline` passes.
    async fn run(
        mut self,
        entry: OutboxEntry,
        deadline: Instant,
    ) -> Result<Published, BrokerError> {
        let relayed = tokio::time::timeout_at(deadline, self.relay_current(entry)).await;
        match relayed {
            Ok(Ok(())) => Ok(self.published),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(unavailable(
                "accepted, but not confirmed by the job log in time",
            )),
        }
    }

    async fn relay_current(&mut self, mut entry: OutboxEntry) -> Result<(), BrokerError> {
        loop {
            if self.relay.relay(&entry).await? == Settled::Current {
                return Ok(());
            }
            // The stream was superseded (a failover): nobody who follows the channel now sees the
            // message, so it is published again, with the same id.
            tracing::info!(channel = %entry.channel, epoch = %entry.epoch, "publishing again in a new epoch");
            let mut again = self.again.clone();
            again.id = self.published.id;
            let published = self.relay.outbox.publish_again(again).await?;
            debug_assert_eq!(published.id, self.published.id, "a message keeps its id");
            let is_repeat = self.published.is_repeat;
            self.published = Published {
                is_repeat,
                ..published
            };
            match &self.published.outbox {
                Some(next) => entry = next.clone(),
                None => return Ok(()),
            }
        }
    }
}

/// Moves entries from the outbox into the job log.
pub(super) struct Relay {
    pub(super) outbox: Arc<dyn OutboxStore>,
    pub(super) log: Arc<dyn JobLog>,
    pub(super) breaker: Arc<Breaker>,
}

impl Relay {
    fn new(outbox: Arc<dyn OutboxStore>, log: Arc<dyn JobLog>) -> Self {
        Self {
            outbox,
            log,
            breaker: Arc::new(Breaker::new()),
        }
    }

    /// Appends an entry to the job log and settles it; tries until it succeeds, the caller gives
    /// up, or the log says that it never will.
    async fn relay(&self, entry: &OutboxEntry) -> Result<Settled, BrokerError> {
        while let Err(error) = self.append(entry).await {
            if !error.is_temporary() {
                return Err(error);
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        loop {
            match self.outbox.settle(entry).await {
                Ok(settled) => return Ok(settled),
                Err(error) if error.is_temporary() => tokio::time::sleep(RETRY_PAUSE).await,
                Err(error) => return Err(error),
            }
        }
    }

    /// Appends an entry to the job log, once.
    pub(super) async fn append(&self, entry: &OutboxEntry) -> Result<(), BrokerError> {
        let job = publication_job(&publication_event(entry)?)
            .map_err(|error| BrokerError::Corrupt(error.to_string()))?;
        match self.log.append(job).await {
            Ok(_) => {
                self.breaker.succeeded();
                Ok(())
            }
            Err(JobLogError::Unavailable(error)) => {
                self.breaker.failed();
                Err(BrokerError::Unavailable(error))
            }
            Err(JobLogError::Refused(reason)) => {
                // The entry stays in the outbox: it was seen, so it may not vanish. The outbox'
                // age shows it, and its limit stops the partition before memory runs out.
                let id = entry.publication.id.map(|id| id.to_string());
                tracing::error!(channel = %entry.channel, id, reason, "job log refuses a publication");
                Err(BrokerError::Corrupt(reason))
            }
        }
    }
}

fn unavailable(what: &'static str) -> BrokerError {
    BrokerError::Unavailable(what.into())
}
