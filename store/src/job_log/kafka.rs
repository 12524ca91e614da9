//! The job log in Kafka.
//!
//! Producing: `acks=all`, idempotent, murmur2 on the key like the Java client. Consuming:
//! cooperative rebalancing, commits by hand after the effect, and the archive's position wins
//! over the committed one, because it moved in the transaction that stored the rows.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{
    BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance, StreamConsumer,
};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use rdkafka::statistics::Statistics;
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use shared::config::{GroupProtocol, KafkaConfig};
use shared::events::{TOPIC_MESSAGES, TOPIC_PUSHES, TOPIC_UPLOADS, dead_letter_topic, retry_topic};
use tokio::time::Instant;

use super::{Job, JobLog, JobLogError, JobPosition, JobScan, JobSource, ReceivedJob};
use crate::archive::{ArchiveError, MessageArchive};

/// How long an administrative request may take.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(15);
/// Bytes of jobs that wait inside the producer at most; past it appends fail at once.
const PRODUCER_KBYTES_MAX: &str = "65536";
/// Bytes of jobs that a consumer fetches ahead at most.
const CONSUMER_KBYTES_MAX: &str = "16384";
/// How long finding and reaching a position may take, and the pause before the next try.
const SEEK_TIMEOUT: Duration = Duration::from_secs(5);
const SEEK_PAUSE: Duration = Duration::from_millis(100);
/// How long a scan waits for a job that must come.
const SCAN_TIMEOUT: Duration = Duration::from_secs(10);
/// How often an idle consumer looks at its assignment.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// The job log in Kafka.
#[derive(Clone)]
pub struct KafkaJobLog {
    /// Replaced after a fatal error: an idempotent producer that lost its sequence never sends
    /// again.
    producer: Arc<RwLock<FutureProducer>>,
    config: Arc<KafkaConfig>,
}

impl std::fmt::Debug for KafkaJobLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaJobLog")
            .field("brokers", &self.config.brokers)
            .finish_non_exhaustive()
    }
}

impl KafkaJobLog {
    /// Makes the producer; it connects by itself, now and whenever a broker comes back.
    ///
    /// # Errors
    /// [`JobLogError::Refused`] when the configuration cannot be used.
    pub fn connect(config: &KafkaConfig) -> Result<Self, JobLogError> {
        let producer = producer(config).map_err(|error| JobLogError::Refused(error.to_string()))?;
        Ok(Self {
            producer: Arc::new(RwLock::new(producer)),
            config: Arc::new(config.clone()),
        })
    }

    /// Makes a new producer when this one can never send again.
    fn heal(&self) {
        let mut current = self.producer.write();
        let Some((code, reason)) = current.client().fatal_error() else {
            return;
        };
        tracing::error!(
            ?code,
            reason,
            "the Kafka producer failed for good, making a new one"
        );
        match producer(&self.config) {
            Ok(new) => *current = new,
            Err(error) => tracing::error!(%error, "no Kafka producer can be made"),
        }
    }
}

fn producer(config: &KafkaConfig) -> Result<FutureProducer, KafkaError> {
    let timeout_ms = config.append_timeout.as_millis().to_string();
    ClientConfig::new()
        .set("bootstrap.servers", &config.brokers)
        .set("client.id", "wyd")
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("partitioner", "murmur2_random")
        .set("message.timeout.ms", &timeout_ms)
        .set("request.timeout.ms", &timeout_ms)
        .set("queue.buffering.max.kbytes", PRODUCER_KBYTES_MAX)
        // The acknowledgement waits for it: a small delay, still many jobs a request.
        .set("linger.ms", "1")
        .create()
}

#[async_trait]
impl JobLog for KafkaJobLog {
    async fn append(&self, job: Job) -> Result<JobPosition, JobLogError> {
        let mut headers = OwnedHeaders::new_with_capacity(job.headers.len());
        for (key, value) in &job.headers {
            headers = headers.insert(Header {
                key,
                value: Some(value),
            });
        }
        let record = FutureRecord::to(&job.topic)
            .key(&job.key)
            .payload(&job.value[..])
            .headers(headers);
        // No waiting for room: a full producer means that Kafka is away.
        let producer = self.producer.read().clone();
        match producer.send(record, Duration::ZERO).await {
            Ok(delivery) => Ok(JobPosition {
                partition: delivery.partition,
                offset: delivery.offset,
            }),
            Err((error, _)) => {
                if producer.client().fatal_error().is_some() {
                    self.heal();
                }
                Err(job_log_error(error))
            }
        }
    }

    async fn ping(&self, timeout: Duration) -> Result<(), JobLogError> {
        let producer = self.producer.read().clone();
        // The call blocks its thread.
        let asked = tokio::task::spawn_blocking(move || {
            producer
                .client()
                .fetch_metadata(Some(TOPIC_MESSAGES), timeout)
                .map(|metadata| {
                    let topic = metadata.topics().first();
                    topic.is_some_and(|topic| {
                        topic.error().is_none() && !topic.partitions().is_empty()
                    })
                })
        });
        match asked.await {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => Err(JobLogError::Unavailable(
                format!("topic {TOPIC_MESSAGES} is missing; run `wyd migrate`").into(),
            )),
            Ok(Err(error)) => Err(job_log_error(error)),
            Err(error) => Err(JobLogError::Unavailable(Box::new(error))),
        }
    }

    async fn scan(&self, topic: &str) -> Result<Box<dyn JobScan>, JobLogError> {
        let (brokers, topic) = (self.config.brokers.clone(), topic.to_owned());
        let begun = tokio::task::spawn_blocking(move || KafkaScan::begin(&brokers, &topic));
        let scan = begun
            .await
            .map_err(|error| JobLogError::Unavailable(Box::new(error)))?;
        Ok(Box::new(scan?))
    }

    async fn consume(
        &self,
        group: &'static str,
        topic: &str,
        positions: Option<Arc<dyn MessageArchive>>,
    ) -> Result<Box<dyn JobSource>, JobLogError> {
        let context = GroupContext::default();
        let assigned = Arc::clone(&context.assigned);
        let high = Arc::clone(&context.high);
        let mut client = ClientConfig::new();
        match self.config.group_protocol {
            GroupProtocol::Classic => client
                .set("partition.assignment.strategy", "cooperative-sticky")
                .set("session.timeout.ms", "10000")
                .set("heartbeat.interval.ms", "2000"),
            // The broker says how long a member may be silent.
            GroupProtocol::Consumer => client.set("group.protocol", "consumer"),
        };
        let consumer = client
            .set("bootstrap.servers", &self.config.brokers)
            .set("client.id", "wyd")
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("queued.max.messages.kbytes", CONSUMER_KBYTES_MAX)
            // Tells how far each partition reaches, for the lag, without a request of ours.
            .set("statistics.interval.ms", "2000")
            .create_with_context(context);
        let consumer: StreamConsumer<GroupContext> = consumer.map_err(job_log_error)?;
        consumer.subscribe(&[topic]).map_err(job_log_error)?;
        Ok(Box::new(KafkaSource {
            consumer,
            group,
            topic: topic.to_owned(),
            positions,
            assigned,
            high,
            next: HashMap::new(),
            taken: Vec::new(),
        }))
    }
}

/// Hears what the group coordinator assigns.
#[derive(Default)]
struct GroupContext {
    assigned: Arc<Mutex<Assigned>>,
    high: Arc<Mutex<HashMap<i32, i64>>>,
}

/// What changed in the assignment and is not yet looked at.
#[derive(Debug, Default)]
struct Assigned {
    added: Vec<i32>,
    removed: Vec<i32>,
    /// What this member holds now, looked at or not.
    held: HashSet<i32>,
}

impl ClientContext for GroupContext {
    fn stats(&self, statistics: Statistics) {
        let mut high = self.high.lock();
        for topic in statistics.topics.values() {
            // -1: not consumed here.
            let known = topic
                .partitions
                .iter()
                .filter(|(_, partition)| partition.hi_offset >= 0);
            high.extend(known.map(|(number, partition)| (*number, partition.hi_offset)));
        }
    }
}

impl ConsumerContext for GroupContext {
    fn post_rebalance(&self, _consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let partitions = |list: &TopicPartitionList| -> Vec<i32> {
            list.elements()
                .iter()
                .map(rdkafka::topic_partition_list::TopicPartitionListElem::partition)
                .collect()
        };
        let mut assigned = self.assigned.lock();
        match rebalance {
            Rebalance::Assign(list) => {
                let added = partitions(list);
                assigned.held.extend(&added);
                assigned.added.extend(added);
            }
            Rebalance::Revoke(list) => {
                let removed = partitions(list);
                assigned
                    .held
                    .retain(|partition| !removed.contains(partition));
                assigned
                    .added
                    .retain(|partition| !removed.contains(partition));
                assigned.removed.extend(removed);
            }
            Rebalance::Error(error) => tracing::warn!(%error, "rebalance failed"),
        }
    }
}

/// Where a partition's jobs begin for a store.
#[derive(Debug, Clone, Copy)]
enum Start {
    /// At the first job that the topic still has.
    Beginning,
    /// At this offset.
    At(i64),
}

/// One member of a consumer group.
struct KafkaSource {
    consumer: StreamConsumer<GroupContext>,
    group: &'static str,
    topic: String,
    positions: Option<Arc<dyn MessageArchive>>,
    assigned: Arc<Mutex<Assigned>>,
    /// The end of each partition, as last heard.
    high: Arc<Mutex<HashMap<i32, i64>>>,
    /// The next offset of each partition that was looked at: earlier ones are done.
    next: HashMap<i32, i64>,
    /// Taken from Kafka, not handed out: what makes `next` cancel safe.
    taken: Vec<ReceivedJob>,
}

#[async_trait]
impl JobSource for KafkaSource {
    async fn next(
        &mut self,
        max: usize,
        linger: Duration,
    ) -> Result<Vec<ReceivedJob>, JobLogError> {
        loop {
            self.look_at_assignment().await?;
            let wait = if self.taken.is_empty() {
                LOOK_AGAIN
            } else {
                linger
            };
            let is_full = self.taken.len() >= max;
            let received = if is_full {
                None
            } else {
                self.receive(wait).await?
            };
            match received {
                Some(job) => self.take(job),
                None if self.taken.is_empty() => {}
                None => break,
            }
        }
        self.look_at_assignment().await?;
        Ok(std::mem::take(&mut self.taken))
    }

    async fn commit(&mut self, partition: i32, next_offset: i64) -> Result<(), JobLogError> {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.topic, partition, Offset::Offset(next_offset))
            .map_err(job_log_error)?;
        // The archive's position is the one that counts; this one is for operators and lag.
        self.consumer
            .commit(&list, CommitMode::Async)
            .map_err(job_log_error)
    }

    async fn rest(&mut self, pause: Duration) -> Result<(), JobLogError> {
        let rested = self.rest_paused(pause).await;
        // Whatever happened meanwhile: a partition that stays paused is never read again.
        let held = self.consumer.assignment().map_err(job_log_error)?;
        self.consumer.resume(&held).map_err(job_log_error)?;
        rested
    }

    fn holds(&self, partition: i32) -> bool {
        self.assigned.lock().held.contains(&partition)
    }

    fn lag(&self) -> Vec<(i32, i64)> {
        let high = self.high.lock();
        let behind = |(partition, next): (&i32, &i64)| {
            high.get(partition)
                .map(|high| (*partition, (high - next).max(0)))
        };
        self.next.iter().filter_map(behind).collect()
    }
}

impl KafkaSource {
    async fn rest_paused(&mut self, pause: Duration) -> Result<(), JobLogError> {
        let until = Instant::now() + pause;
        while Instant::now() < until {
            // Paused again in every round: a rebalance may have brought partitions.
            let held = self.consumer.assignment().map_err(job_log_error)?;
            self.consumer.pause(&held).map_err(job_log_error)?;
            let wait = LOOK_AGAIN.min(until - Instant::now());
            // Asking is what keeps the membership; what was on its way already is kept.
            if let Some(job) = self.receive(wait).await? {
                self.take(job);
            }
        }
        Ok(())
    }

    /// Goes to the archive's position in partitions that are new, forgets those that are gone.
    async fn look_at_assignment(&mut self) -> Result<(), JobLogError> {
        let (added, removed) = {
            let mut assigned = self.assigned.lock();
            (
                std::mem::take(&mut assigned.added),
                std::mem::take(&mut assigned.removed),
            )
        };
        for partition in removed {
            self.next.remove(&partition);
            self.taken.retain(|job| job.partition != partition);
        }
        for (n, &partition) in added.iter().enumerate() {
            let position = match self.position(partition).await {
                Ok(position) => position,
                Err(error) => {
                    // This one and those behind it are looked at again by the next call.
                    self.assigned.lock().added.extend(&added[n..]);
                    return Err(JobLogError::Unavailable(Box::new(error)));
                }
            };
            let Some(position) = position else {
                continue;
            };
            // What was fetched from the committed position is dropped with it.
            self.taken.retain(|job| job.partition != partition);
            match self.go_to(partition, position) {
                Ok(position) => {
                    self.next.insert(partition, position);
                    tracing::info!(
                        topic = self.topic,
                        partition,
                        position,
                        "partition assigned"
                    );
                }
                Err(error) => {
                    // Fetching has not begun: looked at again by the next call.
                    self.next.remove(&partition);
                    self.assigned.lock().added.push(partition);
                    tracing::debug!(topic = self.topic, partition, %error, "seek failed, trying again");
                    tokio::time::sleep(SEEK_PAUSE).await;
                }
            }
        }
        Ok(())
    }

    /// Asks where to begin in a partition, if a store keeps that.
    async fn position(&self, partition: i32) -> Result<Option<Start>, ArchiveError> {
        let Some(positions) = &self.positions else {
            return Ok(None);
        };
        let position = positions
            .consumer_position(self.group, &self.topic, partition)
            .await?;
        // A store that knows nothing yet has none of the jobs, whatever the group has committed.
        Ok(Some(position.map_or(Start::Beginning, Start::At)))
    }

    /// Goes to the store's position, or to the nearest one that the topic still has.
    fn go_to(&self, partition: i32, start: Start) -> Result<i64, KafkaError> {
        // Both calls block their thread until the broker has answered.
        tokio::task::block_in_place(|| {
            let (low, high) =
                self.consumer
                    .fetch_watermarks(&self.topic, partition, SEEK_TIMEOUT)?;
            let nearest = match start {
                Start::At(position) if position <= high => position.max(low),
                Start::At(_) | Start::Beginning => low,
            };
            if let Start::At(position) = start
                && nearest != position
            {
                // A topic that was made anew, or jobs that were deleted unread: somebody must know.
                tracing::error!(
                    topic = self.topic,
                    partition,
                    position,
                    low,
                    high,
                    "the archive's position is not in the topic, going on at its beginning"
                );
            }
            self.consumer.seek(
                &self.topic,
                partition,
                Offset::Offset(nearest),
                SEEK_TIMEOUT,
            )?;
            Ok(nearest)
        })
    }

    async fn receive(&self, wait: Duration) -> Result<Option<ReceivedJob>, JobLogError> {
        match tokio::time::timeout(wait, self.consumer.recv()).await {
            Ok(Ok(message)) => Ok(Some(received_job(&message))),
            Ok(Err(error)) => Err(job_log_error(error)),
            Err(_) => Ok(None),
        }
    }

    fn take(&mut self, job: ReceivedJob) {
        // What is taken of a partition before its position was looked at stays only where no
        // store keeps positions: else the seek drops it and brings it again.
        let is_done = self
            .next
            .get(&job.partition)
            .is_some_and(|next| job.offset < *next);
        if is_done {
            return;
        }
        self.next.insert(job.partition, job.offset + 1);
        self.taken.push(job);
    }
}

/// A walk through a topic, up to the ends it had at the beginning.
struct KafkaScan {
    consumer: StreamConsumer,
    /// Where each partition's walk ends; a partition that is done is taken out.
    ends: HashMap<i32, i64>,
}

impl KafkaScan {
    /// Blocks its thread.
    fn begin(brokers: &str, topic: &str) -> Result<Self, JobLogError> {
        let consumer: StreamConsumer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("client.id", "wyd")
            // The library wants a name; nothing joins the group and nothing is committed.
            .set("group.id", "wyd-scan")
            .set("enable.auto.commit", "false")
            .create()
            .map_err(job_log_error)?;
        let metadata = consumer
            .fetch_metadata(Some(topic), SEEK_TIMEOUT)
            .map_err(job_log_error)?;
        let mut list = TopicPartitionList::new();
        let mut ends = HashMap::new();
        for partition in metadata
            .topics()
            .iter()
            .flat_map(rdkafka::metadata::MetadataTopic::partitions)
        {
            let number = partition.id();
            let (low, high) = consumer
                .fetch_watermarks(topic, number, SEEK_TIMEOUT)
                .map_err(job_log_error)?;
            if low < high {
                list.add_partition_offset(topic, number, Offset::Offset(low))
                    .map_err(job_log_error)?;
                ends.insert(number, high);
            }
        }
        consumer.assign(&list).map_err(job_log_error)?;
        Ok(Self { consumer, ends })
    }
}

#[async_trait]
impl JobScan for KafkaScan {
    async fn next(&mut self) -> Result<Vec<ReceivedJob>, JobLogError> {
        while !self.ends.is_empty() {
            let received = tokio::time::timeout(SCAN_TIMEOUT, self.consumer.recv()).await;
            let received = received
                .map_err(|_| JobLogError::Unavailable("Kafka sent nothing in time".into()))?;
            let job = received_job(&received.map_err(job_log_error)?);
            let Some(end) = self.ends.get(&job.partition).copied() else {
                continue;
            };
            if job.offset + 1 >= end {
                self.ends.remove(&job.partition);
            }
            if job.offset < end {
                return Ok(vec![job]);
            }
        }
        Ok(Vec::new())
    }
}

fn received_job(message: &BorrowedMessage<'_>) -> ReceivedJob {
    let text = |bytes: Option<&[u8]>| {
        bytes
            .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
            .unwrap_or_default()
    };
    let headers = message.headers().map(|headers| {
        headers
            .iter()
            .map(|header| (header.key.to_owned(), text(header.value)))
            .collect()
    });
    ReceivedJob {
        topic: message.topic().to_owned(),
        partition: message.partition(),
        offset: message.offset(),
        key: text(message.key()),
        headers: headers.unwrap_or_default(),
        value: Bytes::copy_from_slice(message.payload().unwrap_or_default()),
    }
}

fn job_log_error(error: KafkaError) -> JobLogError {
    let code = error.rdkafka_error_code();
    match code {
        Some(
            RDKafkaErrorCode::MessageSizeTooLarge
            | RDKafkaErrorCode::InvalidMessage
            | RDKafkaErrorCode::InvalidMessageSize,
        ) => JobLogError::Refused(error.to_string()),
        _ => JobLogError::Unavailable(Box::new(error)),
    }
}

/// Creates the topics that are missing; existing ones are left as they are.
///
/// Returns a line for each topic, for people.
///
/// # Errors
/// [`JobLogError::Unavailable`] when Kafka does not answer, [`JobLogError::Refused`] when it will
/// not have a topic so.
pub async fn ensure_topics(config: &KafkaConfig) -> Result<Vec<String>, JobLogError> {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", &config.brokers)
        .set("client.id", "wyd-migrate")
        .create()
        .map_err(job_log_error)?;
    let min_insync = config.min_insync_replicas.to_string();
    let names = topics(config.partitions);
    let topics: Vec<NewTopic<'_>> = names
        .iter()
        .map(|(name, partitions)| {
            NewTopic::new(
                name,
                *partitions,
                TopicReplication::Fixed(config.replication),
            )
            .set("min.insync.replicas", &min_insync)
        })
        .collect();
    let options = AdminOptions::new()
        .request_timeout(Some(ADMIN_TIMEOUT))
        .operation_timeout(Some(ADMIN_TIMEOUT));
    let results = admin
        .create_topics(&topics, &options)
        .await
        .map_err(job_log_error)?;
    results
        .into_iter()
        .map(|result| match result {
            Ok(topic) => Ok(format!("created topic {topic}")),
            Err((topic, RDKafkaErrorCode::TopicAlreadyExists)) => {
                Ok(format!("topic {topic} is there"))
            }
            Err((topic, error)) => Err(JobLogError::Refused(format!(
                "topic {topic} cannot be created: {error} (kafka.partitions, kafka.replication)"
            ))),
        })
        .collect()
}

/// Lists every topic with its number of partitions: jobs that are kept in order have as many as
/// configured, and one each is enough for what is tried again later or never.
fn topics(partitions: i32) -> Vec<(String, i32)> {
    [TOPIC_MESSAGES, TOPIC_UPLOADS, TOPIC_PUSHES]
        .into_iter()
        .flat_map(|topic| {
            [
                (topic.to_owned(), partitions),
                (retry_topic(topic), 1),
                (dead_letter_topic(topic), 1),
            ]
        })
        .collect()
}
