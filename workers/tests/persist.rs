//! The persist worker on real Kafka, and on the embedded job log: one archived row a message,
//! whatever happens to the worker. Needs Kafka, PostgreSQL and MongoDB.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::string_slice,
    reason = "a test that cannot go on panics, and its helpers are part of it"
)]

#[path = "../../store/tests/support/mod.rs"]
#[allow(
    dead_code,
    reason = "shared with the store's own tests, which use all of it"
)]
mod support;

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prometheus_client::registry::Registry;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use shared::config::{KafkaConfig, WorkerConfig};
use shared::events::{GROUP_PERSIST, PublicationEvent, TOPIC_MESSAGES, dead_letter_topic};
use shared::ids::MessageId;
use store::archive::{ConsumerPosition, MessageArchive, PageQuery};
use store::job_log::{EmbeddedJobLog, Job, JobLog, KafkaJobLog, ensure_topics, publication_job};
use support::{Fixture, channel, event};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(90);

fn kafka_config() -> KafkaConfig {
    KafkaConfig {
        brokers: support::service("WYD_TEST_KAFKA_BROKERS"),
        partitions: 4,
        replication: 1,
        min_insync_replicas: 1,
        append_timeout: Duration::from_secs(20),
        ..KafkaConfig::default()
    }
}

/// A worker that can be stopped or killed.
struct Worker {
    running: JoinHandle<()>,
    cancel: CancellationToken,
}

impl Worker {
    async fn start(job_log: &Arc<dyn JobLog>, archive: &Arc<dyn MessageArchive>) -> Self {
        let config = WorkerConfig {
            batch_jobs_max: 100,
            ..WorkerConfig::default()
        };
        let mut registry = Registry::default();
        let cancel = CancellationToken::new();
        let persist = workers::persist::start(
            &config,
            Arc::clone(job_log),
            Arc::clone(archive),
            workers::Metrics::new(&mut registry),
            cancel.clone(),
        );
        let running = tokio::spawn(persist.await.unwrap());
        Self { running, cancel }
    }

    /// Ends it between any two of its lines.
    async fn kill(self) {
        self.running.abort();
        drop(self.running.await);
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.running.await.unwrap();
    }
}

async fn append_all(job_log: &Arc<dyn JobLog>, jobs: Vec<Job>) {
    for chunk in jobs.chunks(200) {
        let appended = chunk.iter().cloned().map(|job| {
            let job_log = Arc::clone(job_log);
            tokio::spawn(async move { job_log.append(job).await.unwrap() })
        });
        for append in appended.collect::<Vec<_>>() {
            append.await.unwrap();
        }
    }
}

async fn archived(archive: &dyn MessageArchive, name: &str) -> Vec<PublicationEvent> {
    let mut all = Vec::new();
    loop {
        let after = all.last().map(|event: &PublicationEvent| event.offset);
        let query = PageQuery {
            after,
            limit: 1000,
            ..PageQuery::default()
        };
        let page = archive.page(&channel(name), query).await.unwrap();
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}

async fn wait_for_rows(archive: &dyn MessageArchive, names: &[String], rows: usize) {
    let waiting = async {
        loop {
            let mut found = 0;
            for name in names {
                found += archived(archive, name).await.len();
            }
            if found >= rows {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .unwrap_or_else(|_| panic!("not all {rows} rows arrived in time"));
}

/// A job of a channel that can never be understood.
fn poison(name: &str, n: usize) -> Job {
    let good = publication_job(&event(name, "e", 1)).unwrap();
    match n % 3 {
        0 => Job {
            value: Bytes::from_static(b"\xff\x00{"),
            ..good
        },
        1 => Job {
            headers: Vec::new(),
            ..good
        },
        _ => Job {
            value: Bytes::from_static(br#"{"id":"x"}"#),
            ..good
        },
    }
}

/// Events of several channels, a tenth of them twice, with poison between them.
fn workload(names: &[String], per_channel: u64) -> (Vec<Job>, BTreeSet<MessageId>, usize) {
    let mut jobs = Vec::new();
    let mut ids = BTreeSet::new();
    let mut poisoned = 0;
    for offset in 1..=per_channel {
        for name in names {
            let event = event(name, "e", offset);
            ids.insert(event.id);
            jobs.push(publication_job(&event).unwrap());
            if offset % 10 == 0 {
                jobs.push(publication_job(&event).unwrap());
            }
        }
        if offset % 50 == 0 {
            jobs.push(poison(&names[0], poisoned));
            poisoned += 1;
        }
    }
    (jobs, ids, poisoned)
}

async fn check_rows(
    archive: &dyn MessageArchive,
    names: &[String],
    expected: &BTreeSet<MessageId>,
) {
    let mut ids = Vec::new();
    for name in names {
        let rows = archived(archive, name).await;
        let offsets: Vec<u64> = rows.iter().map(|row| row.offset).collect();
        assert!(offsets.is_sorted(), "{name}: {offsets:?}");
        ids.extend(rows.iter().map(|row| row.id));
    }
    assert_eq!(ids.len(), expected.len(), "one row a message");
    assert_eq!(&ids.into_iter().collect::<BTreeSet<_>>(), expected);
}

/// K5, K8, G2: workers come, are killed in the middle of a batch, and come back.
async fn survives_kills(fixture: Fixture, per_channel: u64) {
    let kafka = Kafka::turn().await;
    let job_log = Arc::clone(&kafka.job_log);
    kafka.skip_to_the_end(&*fixture.archive).await;
    let names: Vec<String> = (0..5).map(|_| support::unique("persist")).collect();
    let (jobs, ids, _) = workload(&names, per_channel);

    let first = Worker::start(&job_log, &fixture.archive).await;
    let producing = tokio::spawn({
        let job_log = Arc::clone(&job_log);
        async move { append_all(&job_log, jobs).await }
    });
    wait_for_rows(&*fixture.archive, &names, ids.len() / 5).await;
    let second = Worker::start(&job_log, &fixture.archive).await;
    first.kill().await;
    wait_for_rows(&*fixture.archive, &names, ids.len() / 2).await;
    let third = Worker::start(&job_log, &fixture.archive).await;
    producing.await.unwrap();
    second.kill().await;

    wait_for_rows(&*fixture.archive, &names, ids.len()).await;
    check_rows(&*fixture.archive, &names, &ids).await;
    third.stop().await;
}

/// The worker's Kafka, for one test at a time: topics and the consumer group have one name. What
/// other tests left in the topics is told apart by channel.
struct Kafka {
    job_log: Arc<dyn JobLog>,
    /// Held until the file is closed; the tests of the main job take the same one.
    _turn: File,
}

impl Kafka {
    async fn turn() -> Self {
        let config = kafka_config();
        let name: String = config
            .brokers
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        let path = std::env::temp_dir().join(format!("wyd-test-group-{name}.lock"));
        let turn = tokio::task::spawn_blocking(move || {
            let file = File::options().create(true).append(true).open(path);
            let file = file.unwrap();
            file.lock().unwrap();
            file
        });
        let turn = turn.await.unwrap();
        ensure_topics(&config).await.unwrap();
        Self {
            job_log: Arc::new(KafkaJobLog::connect(&config).unwrap()),
            _turn: turn,
        }
    }

    /// Tells an archive that it has all that is in the topic now: a test is not about the others.
    async fn skip_to_the_end(&self, archive: &dyn MessageArchive) {
        archive.append(&[], &self.ends().await).await.unwrap();
    }

    /// Where each partition ends now.
    async fn ends(&self) -> Vec<ConsumerPosition> {
        let ends = tokio::task::spawn_blocking(|| {
            let mut config = ClientConfig::new();
            config.set("bootstrap.servers", kafka_config().brokers);
            let consumer: BaseConsumer = config.create().unwrap();
            let found = consumer.fetch_metadata(Some(TOPIC_MESSAGES), PATIENCE);
            let partitions: Vec<i32> = found.unwrap().topics()[0]
                .partitions()
                .iter()
                .map(rdkafka::metadata::MetadataPartition::id)
                .collect();
            let end = |partition| {
                let marks = consumer.fetch_watermarks(TOPIC_MESSAGES, partition, PATIENCE);
                position(partition, marks.unwrap().1)
            };
            partitions.into_iter().map(end).collect::<Vec<_>>()
        });
        ends.await.unwrap()
    }

    /// Waits for a channel's dead letters, and looks whether there are more.
    async fn dead_letters(&self, name: &str, wanted: usize) -> usize {
        // A group of this test's own, that has not read anything yet.
        let group: &'static str = support::unique("dead-letters").leak();
        let topic = dead_letter_topic(TOPIC_MESSAGES);
        let mut source = self.job_log.consume(group, &topic, None).await.unwrap();
        let mut found = 0;
        let reading = async {
            loop {
                // Comes back without a job now and then, to look whether there can be more.
                let next = source.next(1000, Duration::from_millis(100));
                if let Ok(jobs) = tokio::time::timeout(Duration::from_secs(1), next).await {
                    found += jobs.unwrap().iter().filter(|job| job.key == name).count();
                }
                let lag = source.lag();
                let is_all = !lag.is_empty() && lag.iter().all(|(_, behind)| *behind == 0);
                if found >= wanted && is_all {
                    return;
                }
            }
        };
        drop(tokio::time::timeout(PATIENCE, reading).await);
        found
    }
}

fn position(partition: i32, next_offset: i64) -> ConsumerPosition {
    ConsumerPosition {
        group: GROUP_PERSIST.to_owned(),
        topic: TOPIC_MESSAGES.to_owned(),
        partition,
        next_offset,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_workers_leave_one_row_a_message_in_postgres() {
    survives_kills(support::postgres().await, 1000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_workers_leave_one_row_a_message_in_mongo() {
    survives_kills(support::mongo().await, 200).await;
}

/// K7: what cannot be understood goes to the dead letters once; its neighbours are unaffected.
#[tokio::test(flavor = "multi_thread")]
async fn poison_goes_to_the_dead_letters_and_stalls_nobody() {
    let kafka = Kafka::turn().await;
    let archive = support::postgres().await.archive;
    kafka.skip_to_the_end(&*archive).await;
    let names = vec![support::unique("neighbour")];
    let (jobs, ids, poisoned) = workload(&names, 200);
    assert!(poisoned > 0);
    let worker = Worker::start(&kafka.job_log, &archive).await;
    append_all(&kafka.job_log, jobs).await;
    wait_for_rows(&*archive, &names, ids.len()).await;
    check_rows(&*archive, &names, &ids).await;
    assert_eq!(kafka.dead_letters(&names[0], poisoned).await, poisoned);
    worker.stop().await;
}

/// The archive's position wins: a worker starts where the rows end, not where Kafka says.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_archive_is_filled_again_from_its_own_position() {
    let kafka = Kafka::turn().await;
    let name = support::unique("restored");
    let original = support::postgres().await.archive;
    kafka.skip_to_the_end(&*original).await;
    let job = publication_job(&event(&name, "e", 1)).unwrap();
    let place = kafka.job_log.append(job).await.unwrap();
    let worker = Worker::start(&kafka.job_log, &original).await;
    wait_for_rows(&*original, std::slice::from_ref(&name), 1).await;
    worker.stop().await;

    // A copy from before that message: Kafka's committed position is already past it.
    let restored = support::postgres().await.archive;
    let mut positions = kafka.ends().await;
    positions.retain(|end| end.partition != place.partition);
    positions.push(position(place.partition, place.offset));
    restored.append(&[], &positions).await.unwrap();
    let worker = Worker::start(&kafka.job_log, &restored).await;
    wait_for_rows(&*restored, std::slice::from_ref(&name), 1).await;
    worker.stop().await;

    // One that starts empty has nothing of what was read before: it gets the topic's beginning.
    let empty = support::postgres().await.archive;
    let worker = Worker::start(&kafka.job_log, &empty).await;
    wait_for_rows(&*empty, std::slice::from_ref(&name), 1).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_job_log_goes_on_after_a_restart() {
    let fixture = support::sqlite().await;
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/jobs.db", folder.path().display());
    let names: Vec<String> = (0..3).map(|_| support::unique("embedded")).collect();
    let (jobs, ids, poisoned) = workload(&names, 100);
    let (before, after) = jobs.split_at(jobs.len() / 2);

    let job_log: Arc<dyn JobLog> = Arc::new(EmbeddedJobLog::open(&url).await.unwrap());
    let worker = Worker::start(&job_log, &fixture.archive).await;
    append_all(&job_log, before.to_vec()).await;
    wait_for_rows(&*fixture.archive, &names, 50).await;
    worker.kill().await;
    drop(job_log);

    let job_log: Arc<dyn JobLog> = Arc::new(EmbeddedJobLog::open(&url).await.unwrap());
    append_all(&job_log, after.to_vec()).await;
    let worker = Worker::start(&job_log, &fixture.archive).await;
    wait_for_rows(&*fixture.archive, &names, ids.len()).await;
    check_rows(&*fixture.archive, &names, &ids).await;
    assert!(poisoned > 0);
    worker.stop().await;
}
