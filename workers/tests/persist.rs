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
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prometheus_client::registry::Registry;
use shared::config::{KafkaConfig, WorkerConfig};
use shared::events::{PublicationEvent, TOPIC_MESSAGES};
use store::archive::{MessageArchive, PageQuery};
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
    registry: Registry,
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
        Self {
            running,
            cancel,
            registry,
        }
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

    fn counted(&self, line: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let found = text.lines().find_map(|found| found.strip_prefix(line));
        found.map_or(0, |count| count.trim().parse().unwrap())
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

fn poison(n: usize) -> Job {
    let good = publication_job(&event("poison", "e", 1)).unwrap();
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
fn workload(
    names: &[String],
    per_channel: u64,
) -> (Vec<Job>, BTreeSet<shared::ids::MessageId>, usize) {
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
            jobs.push(poison(poisoned));
            poisoned += 1;
        }
    }
    (jobs, ids, poisoned)
}

async fn check_rows(
    archive: &dyn MessageArchive,
    names: &[String],
    expected: &BTreeSet<shared::ids::MessageId>,
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
    let config = kafka_config();
    ensure_topics(&config).await.unwrap();
    let job_log: Arc<dyn JobLog> = Arc::new(KafkaJobLog::connect(&config).unwrap());
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

/// The consumer group has one name: the tests that use Kafka take turns.
static KAFKA: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[tokio::test(flavor = "multi_thread")]
async fn killed_workers_leave_one_row_a_message_in_postgres() {
    let _turn = KAFKA.lock().await;
    survives_kills(support::postgres().await, 1000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_workers_leave_one_row_a_message_in_mongo() {
    let _turn = KAFKA.lock().await;
    survives_kills(support::mongo().await, 200).await;
}

/// K7: what cannot be understood goes to the dead letters once; its neighbours are unaffected.
#[tokio::test(flavor = "multi_thread")]
async fn poison_goes_to_the_dead_letters_and_stalls_nobody() {
    let _turn = KAFKA.lock().await;
    let fixture = support::postgres().await;
    let config = kafka_config();
    ensure_topics(&config).await.unwrap();
    let job_log: Arc<dyn JobLog> = Arc::new(KafkaJobLog::connect(&config).unwrap());
    let names = vec![support::unique("neighbour")];
    let (jobs, ids, poisoned) = workload(&names, 200);
    assert!(poisoned > 0);
    let worker = Worker::start(&job_log, &fixture.archive).await;
    append_all(&job_log, jobs).await;
    wait_for_rows(&*fixture.archive, &names, ids.len()).await;
    check_rows(&*fixture.archive, &names, &ids).await;
    let letters = || worker.counted(r#"wyd_dlq_total{topic="wyd.messages.dlq"}"#);
    let settled = async {
        while letters() < poisoned as u64 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, settled).await.unwrap();
    assert_eq!(letters(), poisoned as u64);
    worker.stop().await;
}

/// The archive's position wins: a worker starts where the rows end, not where Kafka says.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_archive_is_filled_again_from_its_own_position() {
    let _turn = KAFKA.lock().await;
    let config = kafka_config();
    ensure_topics(&config).await.unwrap();
    let job_log: Arc<dyn JobLog> = Arc::new(KafkaJobLog::connect(&config).unwrap());
    let name = support::unique("restored");
    let original = support::postgres().await;
    let event = event(&name, "e", 1);
    let place = job_log
        .append(publication_job(&event).unwrap())
        .await
        .unwrap();
    let worker = Worker::start(&job_log, &original.archive).await;
    wait_for_rows(&*original.archive, std::slice::from_ref(&name), 1).await;
    worker.stop().await;

    // A copy from before that message: Kafka's committed position is already past it.
    let restored = support::postgres().await;
    let position = store::archive::ConsumerPosition {
        group: shared::events::GROUP_PERSIST.to_owned(),
        topic: TOPIC_MESSAGES.to_owned(),
        partition: place.partition,
        next_offset: place.offset,
    };
    restored.archive.append(&[], &[position]).await.unwrap();
    let worker = Worker::start(&job_log, &restored.archive).await;
    wait_for_rows(&*restored.archive, std::slice::from_ref(&name), 1).await;
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
