//! A durable publish, from its place in the stream to the job log, through what may go wrong in
//! between. The job log is a double that can be slow, away or unwilling; the brokers are real.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod between;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use between::*;
use gateway::broker::{BrokerError, NewPublication};
use gateway::outbox::Publisher;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use shared::config::Config;
use shared::events::PublicationEvent;
use shared::ids::{ChannelName, MessageId};
use store::archive::MessageArchive;
use store::job_log::{Job, JobLog, JobLogError, JobPosition, JobScan, JobSource};
use tokio::time::Instant;

// A database each: a sweeper relays whatever it finds in its own.
on_both_brokers! {
    1: acknowledged_means_in_the_log_and_out_of_the_outbox;
    2: a_slow_log_holds_the_answers_back_not_the_messages;
    3: nothing_is_shown_while_the_log_is_away;
    4: leftovers_of_a_dead_node_are_relayed;
    5: a_retry_after_a_crash_finds_its_own_message;
    6: dropping_the_answer_does_not_stop_the_relay;
    7: flush_waits_for_what_was_accepted;
    8: an_answer_does_not_come_too_late;
    9: what_the_log_refuses_is_kept;
}

/// What the log does with the next job.
#[derive(Debug, Clone, Copy)]
enum Mood {
    Works,
    Takes(Duration),
    IsAway,
    Refuses,
}

struct TestLog {
    mood: Mutex<Mood>,
    jobs: Mutex<Vec<Job>>,
}

impl TestLog {
    fn new(mood: Mood) -> Arc<Self> {
        Arc::new(Self {
            mood: Mutex::new(mood),
            jobs: Mutex::default(),
        })
    }

    fn becomes(&self, mood: Mood) {
        *self.mood.lock() = mood;
    }

    fn events(&self, channel: &ChannelName) -> Vec<PublicationEvent> {
        let jobs = self.jobs.lock();
        let of_channel = jobs.iter().filter(|job| job.key == channel.as_str());
        of_channel
            .map(|job| serde_json::from_slice(&job.value).unwrap())
            .collect()
    }

    fn ids(&self, channel: &ChannelName) -> Vec<MessageId> {
        self.events(channel).iter().map(|event| event.id).collect()
    }
}

#[async_trait]
impl JobLog for TestLog {
    async fn append(&self, job: Job) -> Result<JobPosition, JobLogError> {
        let mood = *self.mood.lock();
        match mood {
            Mood::Works => {}
            Mood::Takes(time) => tokio::time::sleep(time).await,
            Mood::IsAway => return Err(JobLogError::Unavailable("away".into())),
            Mood::Refuses => return Err(JobLogError::Refused("too large".to_owned())),
        }
        let mut jobs = self.jobs.lock();
        jobs.push(job);
        let offset = i64::try_from(jobs.len()).unwrap();
        Ok(JobPosition {
            partition: 0,
            offset,
        })
    }

    async fn ping(&self, _timeout: Duration) -> Result<(), JobLogError> {
        let mood = *self.mood.lock();
        match mood {
            Mood::IsAway => Err(JobLogError::Unavailable("away".into())),
            Mood::Works | Mood::Takes(_) | Mood::Refuses => Ok(()),
        }
    }

    async fn scan(&self, _topic: &str) -> Result<Box<dyn JobScan>, JobLogError> {
        Err(JobLogError::Refused("the outbox reads nothing".to_owned()))
    }

    async fn consume(
        &self,
        _group: &'static str,
        _topic: &str,
        _archive: Option<Arc<dyn MessageArchive>>,
    ) -> Result<Box<dyn JobSource>, JobLogError> {
        Err(JobLogError::Refused("the outbox reads nothing".to_owned()))
    }
}

fn publisher(node: &TestNode, log: &Arc<TestLog>) -> Arc<Publisher> {
    publisher_with(node, log, &Config::default(), &mut Registry::default())
}

fn publisher_with(
    node: &TestNode,
    log: &Arc<TestLog>,
    config: &Config,
    registry: &mut Registry,
) -> Arc<Publisher> {
    Publisher::start(
        node.broker(),
        Arc::clone(&node.parts.outbox),
        Some(Arc::clone(log) as Arc<dyn JobLog>),
        config,
        registry,
        &node.tasks,
        &node.cancel,
    )
}

fn durable(channel: &ChannelName, data: &str) -> NewPublication {
    kept(channel, data, &durable_policy(1_000))
}

async fn is_in_outbox(kind: Kind, node: &TestNode, channel: &ChannelName) -> bool {
    if kind == Kind::Memory {
        let left = node
            .parts
            .outbox
            .leftovers(Duration::ZERO, usize::MAX)
            .await;
        return left.unwrap().iter().any(|entry| entry.channel == *channel);
    }
    // Not through the node: an earlier run may still hold the partition's lease.
    let entries: Entries = redis::cmd("XRANGE")
        .arg(outbox_key(channel))
        .arg("-")
        .arg("+")
        .query_async(&mut raw_redis(kind).await)
        .await
        .unwrap();
    let is_of_channel = |(name, value): &(String, Vec<u8>)| {
        name == "c" && value.as_slice() == channel.as_str().as_bytes()
    };
    entries
        .iter()
        .any(|(_, fields)| fields.iter().any(is_of_channel))
}

async fn acknowledged_means_in_the_log_and_out_of_the_outbox(kind: Kind) {
    let node = node(kind).await;
    let (channel, log) = (channel("ack"), TestLog::new(Mood::Works));
    let publisher = publisher(&node, &log);
    node.parts
        .broker
        .subscribe(&channel, Some(&durable_policy(10)))
        .await
        .unwrap();
    let mut publication = durable(&channel, "{\"a\": 1}");
    publication.info = Some(client("ann"));
    let published = publisher.publish(publication.clone()).await.unwrap();
    let position = published.position.unwrap();

    let events = log.events(&channel);
    assert_eq!(events.len(), 1);
    let event = &events[0];
    assert_eq!(
        (event.id, event.offset, &event.epoch),
        (publication.id, position.offset, &position.epoch)
    );
    assert_eq!(
        (event.user.as_str(), event.data.get()),
        ("ann", "{\"a\": 1}")
    );
    assert_eq!(event.published_at_ms, published.published_at_ms);
    assert_eq!(event.tags.get("id"), Some(&publication.id.to_string()));
    assert!(!is_in_outbox(kind, &node, &channel).await);
    node.seen.expect(&channel, 1).await;
    let seen = &node.seen.publications(&channel)[0];
    assert_eq!(
        seen.tags.get("id"),
        Some(&publication.id.to_string()),
        "subscribers see the id"
    );
}

async fn a_slow_log_holds_the_answers_back_not_the_messages(kind: Kind) {
    let node = node(kind).await;
    let (channel, log) = (
        channel("slow"),
        TestLog::new(Mood::Takes(Duration::from_millis(600))),
    );
    let publisher = publisher(&node, &log);
    node.parts
        .broker
        .subscribe(&channel, Some(&durable_policy(100)))
        .await
        .unwrap();
    let started = Instant::now();
    let mut pending = Vec::new();
    for number in 0..20 {
        pending.push(
            publisher
                .begin(durable(&channel, &number.to_string()))
                .await
                .unwrap(),
        );
    }
    let expected: Vec<String> = (0..20).map(|number| number.to_string()).collect();
    assert_eq!(node.seen.expect(&channel, 20).await, expected);
    assert!(
        log.events(&channel).is_empty(),
        "seen before it is acknowledged"
    );
    let mut offsets = Vec::new();
    for pending in pending {
        offsets.push(pending.finish().await.unwrap().position.unwrap().offset);
    }
    assert!(started.elapsed() >= Duration::from_millis(600));
    assert!(offsets.is_sorted());
    assert!(!is_in_outbox(kind, &node, &channel).await);
    let mut archived: Vec<u64> = log
        .events(&channel)
        .iter()
        .map(|event| event.offset)
        .collect();
    archived.sort_unstable();
    assert_eq!(archived, offsets);
}

async fn nothing_is_shown_while_the_log_is_away(kind: Kind) {
    let node = node(kind).await;
    let (channel, log) = (channel("away"), TestLog::new(Mood::IsAway));
    let mut config = Config::default();
    config.client.publish_timeout = Duration::from_millis(400);
    let publisher = publisher_with(&node, &log, &config, &mut Registry::default());
    // The first may be shown before it is known that the log is away: it is not acknowledged.
    let first = durable(&channel, "0");
    let first_id = first.id;
    assert!(publisher.publish(first).await.is_err());
    let deadline = Instant::now() + PATIENCE;
    while !matches!(
        publisher.begin(durable(&channel, "1")).await,
        Err(BrokerError::Refused(_))
    ) {
        assert!(Instant::now() < deadline, "the circuit never opened");
    }
    let policy = durable_policy(1_000);
    let before = read(&*node.broker(), &channel, &policy, all()).await.top;
    for _ in 0..50 {
        let refused = publisher.begin(durable(&channel, "2")).await;
        assert!(
            matches!(refused, Err(BrokerError::Refused(_))),
            "{refused:?}"
        );
    }
    assert_eq!(
        read(&*node.broker(), &channel, &policy, all()).await.top,
        before
    );
    publisher.publish(ephemeral(&channel, "3")).await.unwrap();

    log.becomes(Mood::Works);
    let deadline = Instant::now() + PATIENCE;
    while publisher.publish(durable(&channel, "4")).await.is_err() {
        assert!(Instant::now() < deadline, "the circuit never closed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // What was shown while nobody knew is relayed too.
    eventually("the first is in the log", || {
        log.ids(&channel).contains(&first_id)
    })
    .await;
}

async fn leftovers_of_a_dead_node_are_relayed(kind: Kind) {
    let (dead, alive) = two_nodes(kind).await;
    let (channel, log) = (channel("leftovers"), TestLog::new(Mood::Works));
    let mut ids = Vec::new();
    for number in 0..30 {
        let publication = durable(&channel, &number.to_string());
        ids.push(publication.id);
        dead.parts.broker.publish(publication).await.unwrap();
    }
    if !Arc::ptr_eq(&dead, &alive) {
        dead.die();
    }
    let mut registry = Registry::default();
    let _publisher = publisher_with(&alive, &log, &Config::default(), &mut registry);
    eventually("everything is in the log", || {
        log.ids(&channel).len() >= ids.len()
    })
    .await;
    let deadline = Instant::now() + PATIENCE;
    while is_in_outbox(kind, &alive, &channel).await {
        assert!(Instant::now() < deadline, "the outbox was never emptied");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut relayed = log.ids(&channel);
    relayed.sort();
    relayed.dedup();
    ids.sort();
    assert_eq!(relayed, ids);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(
        text.contains("wyd_outbox_pending ") && text.contains("wyd_outbox_age_seconds "),
        "{text}"
    );
}

async fn a_retry_after_a_crash_finds_its_own_message(kind: Kind) {
    let (dead, alive) = two_nodes(kind).await;
    let (channel, log) = (channel("retry"), TestLog::new(Mood::Works));
    alive
        .parts
        .broker
        .subscribe(&channel, Some(&durable_policy(10)))
        .await
        .unwrap();
    let mut publication = with_key(durable(&channel, "1"), "user:ann", "k");
    publication
        .tags
        .insert("id".to_owned(), publication.id.to_string());
    // Phase 1 only: the node dies before its relay.
    let first = dead
        .parts
        .broker
        .publish(publication.clone())
        .await
        .unwrap();
    if !Arc::ptr_eq(&dead, &alive) {
        dead.die();
    }
    let publisher = publisher(&alive, &log);
    publication.tags.clear();
    let retried = publisher.publish(publication.clone()).await.unwrap();
    assert!(retried.is_repeat);
    assert_eq!((retried.id, &retried.position), (first.id, &first.position));
    assert!(!is_in_outbox(kind, &alive, &channel).await);
    let third = publisher.publish(publication).await.unwrap();
    assert_eq!((third.id, &third.position), (first.id, &first.position));
    let mut ids = log.ids(&channel);
    ids.dedup();
    assert_eq!(ids, [first.id]);
    assert_eq!(alive.seen.expect(&channel, 1).await, ["1"]);
}

async fn dropping_the_answer_does_not_stop_the_relay(kind: Kind) {
    let node = node(kind).await;
    let (channel, log) = (
        channel("drop"),
        TestLog::new(Mood::Takes(Duration::from_millis(100))),
    );
    let publisher = publisher(&node, &log);
    drop(publisher.begin(durable(&channel, "1")).await.unwrap());
    within(Duration::from_secs(1), "it is in the log", || {
        log.ids(&channel).len() == 1
    })
    .await;
}

async fn flush_waits_for_what_was_accepted(kind: Kind) {
    let node = node(kind).await;
    let (channel, log) = (
        channel("flush"),
        TestLog::new(Mood::Takes(Duration::from_millis(500))),
    );
    let publisher = publisher(&node, &log);
    assert!(publisher.flush(Duration::from_millis(50)).await);
    let pending = publisher.begin(durable(&channel, "1")).await.unwrap();
    assert!(!publisher.flush(Duration::from_millis(50)).await);
    assert!(publisher.flush(Duration::from_secs(5)).await);
    assert_eq!(log.ids(&channel).len(), 1);
    pending.finish().await.unwrap();
}

async fn an_answer_does_not_come_too_late(kind: Kind) {
    let node = node(kind).await;
    let (channel, log) = (
        channel("late"),
        TestLog::new(Mood::Takes(Duration::from_secs(60))),
    );
    let mut config = Config::default();
    config.client.publish_timeout = Duration::from_millis(300);
    let publisher = publisher_with(&node, &log, &config, &mut Registry::default());
    let started = Instant::now();
    let late = publisher.publish(durable(&channel, "1")).await;
    assert!(matches!(late, Err(BrokerError::Unavailable(_))), "{late:?}");
    assert!(started.elapsed() < Duration::from_secs(3));
    log.becomes(Mood::Works);
    eventually("the sweeper relays it", || log.ids(&channel).len() == 1).await;
}

async fn what_the_log_refuses_is_kept(kind: Kind) {
    let node = node(kind).await;
    let (channel, log) = (channel("refused"), TestLog::new(Mood::Refuses));
    let publisher = publisher(&node, &log);
    let refused = publisher.publish(durable(&channel, "1")).await;
    assert!(
        matches!(refused, Err(BrokerError::Corrupt(_))),
        "{refused:?}"
    );
    assert!(
        is_in_outbox(kind, &node, &channel).await,
        "it was seen: it may not vanish"
    );
    log.becomes(Mood::Works);
    eventually("the sweeper relays it", || log.ids(&channel).len() == 1).await;
}

/// The primary changes after the script and before the log's answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_superseded_between_the_phases_is_published_again() {
    use redis::AsyncCommands;
    let kind = Kind::Redis(10);
    for is_keyed in [false, true] {
        let node = node(kind).await;
        let (channel, log) = (
            channel("superseded"),
            TestLog::new(Mood::Takes(Duration::from_millis(400))),
        );
        let publisher = publisher(&node, &log);
        node.parts
            .broker
            .subscribe(&channel, Some(&durable_policy(10)))
            .await
            .unwrap();
        let publication = durable(&channel, "1");
        let publication = match is_keyed {
            true => with_key(publication, "user:ann", "k"),
            false => publication,
        };
        let pending = publisher.begin(publication.clone()).await.unwrap();
        let before = read(&*node.broker(), &channel, &durable_policy(10), all())
            .await
            .top;
        let mut raw = raw_redis(kind).await;
        let _: () = raw
            .hset(key("m", &channel), "replid", "0".repeat(40))
            .await
            .unwrap();

        let published = pending.finish().await.unwrap();
        let after = published.position.unwrap();
        assert_eq!(published.id, publication.id);
        assert!(after.epoch != before.epoch && after.offset > before.offset);
        let events = log.events(&channel);
        let archived: Vec<_> = events
            .iter()
            .map(|event| (event.id, &event.epoch))
            .collect();
        assert_eq!(
            archived,
            [
                (publication.id, &before.epoch),
                (publication.id, &after.epoch)
            ]
        );
        assert!(!is_in_outbox(kind, &node, &channel).await);
        node.seen.expect(&channel, 2).await;
        let ids: Vec<_> = node
            .seen
            .publications(&channel)
            .iter()
            .map(|seen| seen.id)
            .collect();
        assert_eq!(ids, [Some(publication.id); 2]);

        if is_keyed {
            let repeat = publisher.publish(publication).await.unwrap();
            assert!(repeat.is_repeat);
            assert_eq!(
                repeat.position,
                Some(after),
                "the key names the later result"
            );
        }
    }
}
