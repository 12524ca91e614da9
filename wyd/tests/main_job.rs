//! The whole main job on real services: two gateways, Redis, Kafka, one persist worker, and the
//! archive in PostgreSQL or MongoDB.
//!
//! A recorded conversation (`WYD_TEST_CONVERSATION`; one is made up where there is none) is
//! replayed, one client a person. At every member and in the archive all messages must be there,
//! once, in one order: also when a gateway and then the worker are killed in the middle.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on panics, and its helpers are part of it"
)]

mod support;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use loadtest::client::Endpoint;
use loadtest::replay::conversation::{Conversation, Shape};
use loadtest::replay::report::Report;
use loadtest::replay::{Progress, Replay, ReplayOptions, conversation_from};
use tokio::time::sleep;
use uuid::Uuid;

use support::processes::{Cluster, Process};
use support::services::{Services, TestDatabase};

const SECRET: &str = "only-for-tests-only-for-tests-only-for-tests";
/// Multiple of the conversation's own speed: its 2 hours 41 minutes in 48 seconds.
const SPEED: f64 = 200.0;

const CONFIGURATION: &str = r#"
[broker]
kind = "redis"

[kafka]
partitions = 4
replication = 1
min_insync_replicas = 1

[drain]
delay = "0s"
duration = "1s"

[namespaces.chat]
durable = true
authorize = "public"
history_size = 2000
history_ttl = "1h"
force_recovery = true
allow_publish_for_subscriber = true
allow_history_for_subscriber = true
"#;

/// Where messages are archived; PostgreSQL holds everything else in both cases.
#[derive(Debug, Clone, Copy)]
enum Archive {
    Postgres,
    Mongo,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_arrives_once_in_order_and_in_postgres() {
    arrives(Archive::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_arrives_once_in_order_and_in_mongo() {
    arrives(Archive::Mongo).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_gateway_and_worker_lose_nothing_with_postgres() {
    survives(Archive::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_gateway_and_worker_lose_nothing_with_mongo() {
    survives(Archive::Mongo).await;
}

async fn arrives(archive: Archive) {
    let job = MainJob::start(archive).await;
    let report = job.replay(conversation()).run().await.unwrap();
    job.judge(&report);
    assert_eq!(report.reconnects, 0, "nobody had a reason to reconnect");
    assert_eq!(report.counts.deliveries, report.deliveries_expected);
    job.stop().await;
}

async fn survives(archive: Archive) {
    let mut job = MainJob::start(archive).await;
    let conversation = conversation();
    let messages = conversation.lines.len();
    let replay = job.replay(conversation);
    let progress = replay.progress();
    let running = tokio::spawn(replay.run());

    acknowledged(&progress, messages * 25 / 100).await;
    job.gateways[0].kill().await;
    acknowledged(&progress, messages * 45 / 100).await;
    job.gateways[0].restart();
    job.gateways[0].ready().await;

    acknowledged(&progress, messages * 55 / 100).await;
    job.worker.kill().await;
    acknowledged(&progress, messages * 75 / 100).await;
    job.worker.restart();

    let report = running.await.unwrap().unwrap();
    job.judge(&report);
    assert!(report.reconnects > 0, "the killed gateway had clients");
    assert!(
        report.counts.recovered_deliveries > 0,
        "they missed something and recovered it"
    );
    job.stop().await;
}

/// Waits until so many messages are acknowledged.
async fn acknowledged(progress: &Progress, messages: usize) {
    let waiting = async {
        while progress.acknowledged() < messages {
            sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(300), waiting)
        .await
        .unwrap_or_else(|_| {
            panic!(
                "only {} of {messages} messages were acknowledged in time",
                progress.acknowledged()
            )
        });
}

/// Everything that the main job needs, started.
struct MainJob {
    gateways: [Process; 2],
    worker: Process,
    database: TestDatabase,
    /// Keeps this test's channels apart from all others'.
    suffix: String,
    /// Configurations and logs of the processes.
    _cluster: Cluster,
    /// Only one test at a time has workers on this Kafka.
    _group: File,
}

impl MainJob {
    async fn start(archive: Archive) -> Self {
        let services = Services::from_env();
        let group = services.lock_consumer_group().await;
        let database = TestDatabase::create(&services).await;
        let cluster = Cluster::new(environment(&services, &database, archive), CONFIGURATION);

        cluster.run("migrate", &["migrate"]).await;
        let worker = cluster.start("worker", &["worker", "--roles", "persist"]);
        let mut gateways = ["gateway-a", "gateway-b"].map(|name| cluster.start(name, &["gateway"]));
        for gateway in &mut gateways {
            gateway.ready().await;
        }
        Self {
            gateways,
            worker,
            database,
            suffix: format!("-{}", Uuid::new_v4().simple()),
            _cluster: cluster,
            _group: group,
        }
    }

    fn replay(&self, conversation: Conversation) -> Replay {
        let endpoints: Vec<Endpoint> = self
            .gateways
            .iter()
            .map(|gateway| {
                let url = format!("ws://127.0.0.1:{}", gateway.port);
                url.parse::<Endpoint>().unwrap().websocket()
            })
            .collect();
        let options = ReplayOptions {
            suffix: self.suffix.clone(),
            speed: SPEED,
            ..ReplayOptions::new(endpoints, SECRET, "chat")
        };
        Replay::new(options, conversation)
    }

    /// All messages, once, in one order, at every member and in the archive.
    fn judge(&self, report: &Report) {
        println!("{report}");
        assert!(report.is_clean(), "{report}");
        assert_eq!(report.counts.acknowledged, report.messages);
        assert_eq!(report.archives_read, self.gateways.len());
        assert_eq!(report.counts.unrecovered, 0, "the history reaches back");
    }

    /// Stops everything in good order; a process that was told to stop says so by its exit code.
    async fn stop(mut self) {
        for process in self.gateways.iter_mut().chain([&mut self.worker]) {
            let status = process.terminate().await;
            assert!(status.success(), "a stopped process ended with {status}");
        }
        self.database.remove().await;
    }
}

fn environment(
    services: &Services,
    database: &TestDatabase,
    archive: Archive,
) -> BTreeMap<&'static str, String> {
    let mut environment = BTreeMap::from([
        ("JWT_SECRET", SECRET.to_owned()),
        ("REDIS_URL", services.redis_url.clone()),
        ("KAFKA_BROKERS", services.kafka_brokers.clone()),
        ("DATABASE_URL", database.postgres_url()),
        ("RUST_LOG", "info".to_owned()),
    ]);
    if matches!(archive, Archive::Mongo) {
        environment.insert("MONGO_URL", database.mongo_url());
    }
    environment
}

fn conversation() -> Conversation {
    let file = std::env::var_os("WYD_TEST_CONVERSATION").map(PathBuf::from);
    conversation_from(file.as_deref(), &Shape::default(), None).unwrap()
}
