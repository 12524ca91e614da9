//! How many jobs a worker does in a second, and in a second of its CPU. Run by `./test bench`, alone:
//! the figures are for people (`docs/performance.md`), and say little on a busy machine.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    reason = "a test that cannot go on panics, and its helpers are part of it"
)]

#[path = "../../store/tests/support/mod.rs"]
#[allow(
    dead_code,
    reason = "shared with the store's own tests, which use all of it"
)]
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use prometheus_client::registry::Registry;
use shared::config::{KafkaConfig, WorkerConfig};
use shared::events::{GROUP_PERSIST, TOPIC_MESSAGES};
use store::archive::ConsumerPosition;
use store::job_log::{JobLog, KafkaJobLog, ensure_topics, publication_job};
use tokio_util::sync::CancellationToken;
use workers::Metrics;

const MESSAGES: u64 = 60_000;
const CHANNELS: u64 = 500;
const PATIENCE: Duration = Duration::from_secs(300);
/// Kernel ticks in a second of `/proc/self/stat`; fixed on every Linux that matters.
const TICKS: f64 = 100.0;

/// CPU seconds of this process so far, user and system.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks = |n: usize| fields.split(' ').nth(n).unwrap().parse::<f64>().unwrap();
    (ticks(11) + ticks(12)) / TICKS
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures; `./test bench` runs it alone"]
async fn messages_persisted_from_a_filled_topic() {
    let config = KafkaConfig {
        brokers: support::service("WYD_TEST_KAFKA_BROKERS"),
        replication: 1,
        min_insync_replicas: 1,
        append_timeout: Duration::from_secs(60),
        ..KafkaConfig::default()
    };
    ensure_topics(&config).await.unwrap();
    let job_log: Arc<dyn JobLog> = Arc::new(KafkaJobLog::connect(&config).unwrap());
    let fixture = support::postgres().await;
    let names: Vec<String> = (0..CHANNELS).map(|_| support::unique("fill")).collect();

    let jobs = (0..MESSAGES).map(|n| {
        let name = &names[usize::try_from(n % CHANNELS).unwrap()];
        publication_job(&support::event(name, "e", n / CHANNELS + 1)).unwrap()
    });
    let mut first: BTreeMap<i32, i64> = BTreeMap::new();
    let mut appends = stream::iter(jobs)
        .map(|job| job_log.append(job))
        .buffer_unordered(2_000);
    while let Some(place) = appends.next().await {
        let place = place.unwrap();
        let lowest = first.entry(place.partition).or_insert(place.offset);
        *lowest = place.offset.min(*lowest);
    }
    drop(appends);
    // Others use the topic too: the worker starts where this filling began.
    let positions: Vec<_> = first
        .iter()
        .map(|(partition, offset)| ConsumerPosition {
            group: GROUP_PERSIST.to_owned(),
            topic: TOPIC_MESSAGES.to_owned(),
            partition: *partition,
            next_offset: *offset,
        })
        .collect();
    fixture.archive.append(&[], &positions).await.unwrap();

    let mut registry = Registry::default();
    let cancel = CancellationToken::new();
    let worker_config = WorkerConfig::default();
    let worker = workers::persist::start(
        &worker_config,
        Arc::clone(&job_log),
        Arc::clone(&fixture.archive),
        Metrics::new(&mut registry),
        cancel.clone(),
    );
    let worker = worker.await.unwrap();
    let done = || {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let line = r#"wyd_jobs_total{role="persist",result="done"} "#;
        let found = text.lines().find_map(|found| found.strip_prefix(line));
        found.map_or(0, |count| count.parse::<u64>().unwrap())
    };
    let running = tokio::spawn(worker);
    // Joining the group takes its time and is not the worker's work.
    let waiting = async {
        while done() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (begun, at, cpu) = (done(), Instant::now(), cpu_seconds());
        while done() < MESSAGES {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        (
            (MESSAGES - begun) as f64,
            at.elapsed().as_secs_f64(),
            cpu_seconds() - cpu,
        )
    };
    let (count, seconds, cpu) = tokio::time::timeout(PATIENCE, waiting).await.unwrap();
    cancel.cancel();
    running.await.unwrap();
    println!(
        "persist, PostgreSQL: {:.0} messages/s, {:.0} per CPU second of the worker",
        count / seconds,
        count / cpu
    );
}
