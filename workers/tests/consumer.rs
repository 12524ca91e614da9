//! The consumer loop with a handler that notes what it did, on real Kafka and on the embedded job
//! log: every job has its effect, whatever fails in between. Needs Kafka.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "a test that cannot go on panics, and its helpers are part of it"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use shared::config::{GroupProtocol, KafkaConfig};
use shared::events::{dead_letter_topic, retry_topic};
use store::job_log::{EmbeddedJobLog, Job, JobLog, KafkaJobLog, ReceivedJob};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use workers::Metrics;
use workers::consumer::{BatchOutcome, Consumer, Handler, Later, Retry, RetryConsumer};
use workers::dlq::letters::{Filter, list, redrive};

const PATIENCE: Duration = Duration::from_secs(90);
const PARTITIONS: i32 = 4;

/// What a job says shall happen to it.
fn job(topic: &str, key: &str, what: &str) -> Job {
    Job {
        topic: topic.to_owned(),
        key: key.to_owned(),
        headers: vec![("ce_type".to_owned(), "test".to_owned())],
        value: Bytes::copy_from_slice(what.as_bytes()),
    }
}

/// Does what each job says, once, and notes when it was asked.
#[derive(Default)]
struct Noted {
    /// By job: when it was tried.
    tries: Mutex<BTreeMap<String, Vec<Instant>>>,
    /// The effects: idempotent, as every handler's.
    effects: Mutex<BTreeSet<String>>,
    /// Whole batches that fail before one succeeds.
    failures: Mutex<usize>,
}

impl Noted {
    fn has(&self, what: &str) -> bool {
        self.effects.lock().contains(what)
    }

    fn tries(&self, what: &str) -> Vec<Instant> {
        self.tries.lock().get(what).cloned().unwrap_or_default()
    }
}

#[async_trait]
impl Handler for Noted {
    fn role(&self) -> &'static str {
        "test"
    }

    async fn handle(
        &self,
        batch: &[ReceivedJob],
        _next: &BTreeMap<i32, i64>,
    ) -> Result<BatchOutcome, Retry> {
        {
            let mut failures = self.failures.lock();
            if *failures > 0 {
                *failures -= 1;
                return Err(Retry("the store is away".to_owned()));
            }
        }
        let mut outcome = BatchOutcome::default();
        for (place, job) in batch.iter().enumerate() {
            let what = String::from_utf8(job.value.to_vec()).unwrap();
            let tries = {
                let mut tries = self.tries.lock();
                let tries = tries.entry(what.clone()).or_default();
                tries.push(Instant::now());
                tries.len()
            };
            let (verb, _) = what.split_once(' ').unwrap();
            match verb {
                "panic" => panic!("asked to"),
                "poison" => outcome.poison.push((place, "asked to".to_owned())),
                // Three times later, then done.
                "later" if tries < 4 => outcome.later.push((
                    place,
                    Later {
                        error: "not yet".to_owned(),
                        after: Some(Duration::from_millis(300)),
                    },
                )),
                "slowly" if tries < 2 => outcome.later.push((
                    place,
                    Later {
                        error: "not for long".to_owned(),
                        after: Some(Duration::from_secs(5)),
                    },
                )),
                _ => {
                    if self.effects.lock().insert(what) {
                        outcome.done += 1;
                    } else {
                        outcome.already_done += 1;
                    }
                }
            }
        }
        Ok(outcome)
    }
}

/// A topic of its own with everything beside it, and a group.
struct Bench {
    job_log: Arc<dyn JobLog>,
    topic: &'static str,
    group: &'static str,
    handler: Arc<Noted>,
    registry: Mutex<Registry>,
    metrics: Metrics,
    _folder: Option<tempfile::TempDir>,
}

/// A worker that can be stopped or killed.
struct Worker {
    tasks: Vec<JoinHandle<()>>,
    cancel: CancellationToken,
}

impl Worker {
    async fn kill(self) {
        for task in self.tasks {
            task.abort();
            drop(task.await);
        }
    }

    async fn stop(self) {
        self.cancel.cancel();
        for task in self.tasks {
            task.await.unwrap();
        }
    }
}

impl Bench {
    fn new(job_log: Arc<dyn JobLog>, folder: Option<tempfile::TempDir>) -> Self {
        let topic: &'static str = Box::leak(format!("test.{}", Uuid::new_v4()).into_boxed_str());
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        Self {
            job_log,
            topic,
            group: topic,
            handler: Arc::default(),
            registry: Mutex::new(registry),
            metrics,
            _folder: folder,
        }
    }

    async fn embedded() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/jobs.db", folder.path().display());
        let job_log = Arc::new(EmbeddedJobLog::open(&url).await.unwrap());
        Self::new(job_log, Some(folder))
    }

    async fn kafka() -> Self {
        Self::kafka_with(GroupProtocol::Classic).await
    }

    async fn kafka_with(group_protocol: GroupProtocol) -> Self {
        let brokers = std::env::var("WYD_TEST_KAFKA_BROKERS")
            .expect("WYD_TEST_KAFKA_BROKERS: start the services with scripts/services.sh");
        let config = KafkaConfig {
            brokers: brokers.clone(),
            append_timeout: Duration::from_secs(20),
            group_protocol,
            ..KafkaConfig::default()
        };
        let bench = Self::new(Arc::new(KafkaJobLog::connect(&config).unwrap()), None);
        let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .create()
            .unwrap();
        let (retry, dead) = (retry_topic(bench.topic), dead_letter_topic(bench.topic));
        let topics = [(bench.topic, PARTITIONS), (&retry, 1), (&dead, 1)]
            .map(|(name, count)| NewTopic::new(name, count, TopicReplication::Fixed(1)));
        let made = admin.create_topics(&topics, &AdminOptions::new()).await;
        assert!(made.unwrap().iter().all(Result::is_ok));
        bench
    }

    async fn start(&self) -> Worker {
        let cancel = CancellationToken::new();
        let consume = |topic: String| async move {
            let consumed = self.job_log.consume(self.group, &topic, None).await;
            consumed.unwrap()
        };
        let consumer = Consumer {
            source: consume(self.topic.to_owned()).await,
            topic: self.topic,
            handler: Arc::clone(&self.handler) as Arc<dyn Handler>,
            job_log: Arc::clone(&self.job_log),
            metrics: self.metrics.clone(),
            batch_jobs_max: 50,
            batch_linger: Duration::from_millis(5),
        };
        let retries = RetryConsumer {
            source: consume(retry_topic(self.topic)).await,
            topic: self.topic,
            handler: Arc::clone(&self.handler) as Arc<dyn Handler>,
            job_log: Arc::clone(&self.job_log),
            metrics: self.metrics.clone(),
        };
        let tasks = vec![
            tokio::spawn(consumer.run(cancel.clone())),
            tokio::spawn(retries.run(cancel.clone())),
        ];
        Worker { tasks, cancel }
    }

    async fn append(&self, jobs: impl IntoIterator<Item = (String, String)>) {
        for (key, what) in jobs {
            let job = job(self.topic, &key, &what);
            self.job_log.append(job).await.unwrap();
        }
    }

    async fn until(&self, what: &str, is_so: impl AsyncFn() -> bool) {
        let waiting = async {
            while !is_so().await {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting)
            .await
            .unwrap_or_else(|_| panic!("not in time: {what}"));
    }

    async fn letters(&self) -> Vec<(String, String)> {
        let letters = list(&*self.job_log, self.topic, &Filter::default()).await;
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        let letters = letters.unwrap();
        letters
            .iter()
            .map(|letter| (text(&letter.job.value), letter.class().to_owned()))
            .collect()
    }

    fn counted(&self, line: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry.lock()).unwrap();
        let found = text.lines().find_map(|found| found.strip_prefix(line));
        found.map_or(0, |count| count.trim().parse().unwrap())
    }
}

fn mixed(count: usize) -> Vec<(String, String)> {
    (0..count)
        .map(|n| {
            let verb = match n % 20 {
                3 => "poison",
                7 => "panic",
                11 => "later",
                _ => "do",
            };
            (format!("k{}", n % 7), format!("{verb} {n}"))
        })
        .collect()
}

fn of<'a>(jobs: &'a [(String, String)], verbs: &'a [&str]) -> BTreeSet<String> {
    let is_meant = |what: &&String| verbs.iter().any(|verb| what.starts_with(verb));
    jobs.iter()
        .map(|(_, what)| what)
        .filter(is_meant)
        .cloned()
        .collect()
}

/// K7: poison and panics go to the dead letters, once each; the others have their effect.
async fn poison_and_panics_hurt_no_neighbour(bench: Bench) {
    let jobs = mixed(200);
    let worker = bench.start().await;
    bench.append(jobs.clone()).await;
    let expected = of(&jobs, &["do ", "later "]);
    bench
        .until("all effects", async || {
            bench.handler.effects.lock().len() == expected.len()
        })
        .await;
    assert_eq!(*bench.handler.effects.lock(), expected);
    let dead = of(&jobs, &["poison ", "panic "]);
    bench
        .until("all dead letters", async || {
            bench.letters().await.len() >= dead.len()
        })
        .await;
    let letters = bench.letters().await;
    assert_eq!(letters.len(), dead.len(), "each once");
    let named: BTreeSet<String> = letters.iter().map(|(what, _)| what.clone()).collect();
    assert_eq!(named, dead);
    let line = format!(r#"wyd_dlq_total{{topic="{}.dlq"}}"#, bench.topic);
    assert_eq!(bench.counted(&line), dead.len() as u64);
    worker.stop().await;
}

/// A job that must wait holds up nobody, is not tried too early, and is tried again after a crash.
async fn retries_wait_apart(bench: Bench) {
    let worker = bench.start().await;
    let pair = |what: &str| ("k".to_owned(), what.to_owned());
    bench
        .append(["slowly 1", "later 2", "do 3"].map(pair))
        .await;
    bench
        .until("the job behind them", async || bench.handler.has("do 3"))
        .await;
    bench
        .until("the short pauses", async || bench.handler.has("later 2"))
        .await;
    let tries = bench.handler.tries("later 2");
    assert_eq!(tries.len(), 4);
    for pair in tries.windows(2) {
        assert!(pair[1] - pair[0] >= Duration::from_millis(290), "{tries:?}");
    }
    worker.kill().await;

    let worker = bench.start().await;
    bench
        .until("the long pause", async || bench.handler.has("slowly 1"))
        .await;
    let tries = bench.handler.tries("slowly 1");
    assert_eq!(tries.len(), 2, "tried twice, not before its time");
    assert!(tries[1] - tries[0] >= Duration::from_secs(4), "{tries:?}");
    assert_eq!(bench.letters().await, []);
    worker.stop().await;
}

/// A store that is away holds the batch in place: nothing is lost, nothing goes to the letters.
async fn a_batch_that_fails_is_tried_in_place(bench: Bench) {
    *bench.handler.failures.lock() = 4;
    let worker = bench.start().await;
    let jobs: Vec<_> = (0..100)
        .map(|n| (format!("k{n}"), format!("do {n}")))
        .collect();
    bench.append(jobs.clone()).await;
    bench
        .until("all effects", async || {
            bench.handler.effects.lock().len() == jobs.len()
        })
        .await;
    assert_eq!(bench.letters().await, []);
    worker.stop().await;
}

/// Sent back twice, done once: the mark beside the letter remembers it.
async fn a_letter_is_sent_back_once(bench: Bench) {
    let worker = bench.start().await;
    bench
        .append([("k".to_owned(), "poison 1".to_owned())])
        .await;
    bench
        .until("the letter", async || bench.letters().await.len() == 1)
        .await;
    let letters = async |with_redriven| {
        let filter = Filter {
            with_redriven,
            ..Filter::default()
        };
        list(&*bench.job_log, bench.topic, &filter).await.unwrap()
    };
    let [letter] = &letters(false).await[..] else {
        panic!("one letter")
    };
    assert_eq!(letter.error(), "asked to");
    assert_eq!(letter.source_topic(), bench.topic);
    redrive(&*bench.job_log, letter).await.unwrap();
    assert!(
        letters(true)
            .await
            .iter()
            .any(|l| l.redriven_at_ms.is_some())
    );
    // It comes back as it was, fails again, and is a letter again: the only one not sent back.
    bench
        .until("the second letter", async || letters(true).await.len() == 2)
        .await;
    let left = letters(false).await;
    assert_eq!(left.len(), 1);
    assert_ne!(left[0].job.position(), letter.job.position());
    assert_eq!(bench.handler.tries("poison 1").len(), 2);
    worker.stop().await;
}

/// K5, G2: members come, are killed and leave; every job has its effect, nothing waits at the end.
async fn every_job_has_its_effect_through_a_storm_of_rebalances(bench: Bench) {
    let jobs: Vec<_> = (0..4000)
        .map(|n| (format!("k{}", n % 100), format!("do {n}")))
        .collect();
    let appending = async {
        for chunk in jobs.chunks(100) {
            bench.append(chunk.iter().cloned()).await;
        }
    };
    let storm = async {
        let mut workers = vec![bench.start().await];
        for round in 0..8 {
            workers.push(bench.start().await);
            let expected = jobs.len() * (round + 1) / 16;
            bench
                .until("progress", async || {
                    bench.handler.effects.lock().len() >= expected
                })
                .await;
            let leaver = workers.remove(0);
            if round % 2 == 0 {
                leaver.kill().await;
            } else {
                leaver.stop().await;
            }
        }
        workers
    };
    let ((), workers) = tokio::join!(appending, storm);
    bench
        .until("all effects", async || {
            bench.handler.effects.lock().len() == jobs.len()
        })
        .await;
    assert_eq!(bench.letters().await, []);
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_rebalances_where_members_agree() {
    let bench = Bench::kafka_with(GroupProtocol::Classic).await;
    every_job_has_its_effect_through_a_storm_of_rebalances(bench).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_rebalances_where_the_broker_decides() {
    let bench = Bench::kafka_with(GroupProtocol::Consumer).await;
    every_job_has_its_effect_through_a_storm_of_rebalances(bench).await;
}

macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(super::Bench::embedded().await).await;
            })*
        }
        mod kafka {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(super::Bench::kafka().await).await;
            })*
        }
    };
}

on_both![
    poison_and_panics_hurt_no_neighbour,
    retries_wait_apart,
    a_batch_that_fails_is_tried_in_place,
    a_letter_is_sent_back_once,
];
