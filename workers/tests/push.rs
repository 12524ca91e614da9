//! The push worker on real Kafka and PostgreSQL: exactly the right pushes, whatever FCM answers
//! and wherever the worker dies. Needs Kafka and PostgreSQL.
#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    reason = "a test that cannot go on panics, and its helpers are part of it"
)]

#[path = "support/fcm.rs"]
mod fcm;
#[path = "support/garden.rs"]
mod garden;
#[path = "../../store/tests/support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use fcm::{error, error_with};
use garden::Garden;
use serde_json::json;
use tokio::sync::Notify;
use workers::push::provider::{Push, PushProvider, SendError};

/// A group with one member online, one away with two devices, and everybody who must get nothing.
#[tokio::test(flavor = "multi_thread")]
async fn exactly_who_is_away_gets_a_push_on_each_device() {
    let garden = Garden::plant().await;
    let channel = garden.channel("1");
    garden.name_channel(&channel, "Garden").await;
    for user in ["ann", "bob", "cat", "dan", "eve", "fay", "gus"] {
        garden.add_member(&channel, user, 0).await;
    }
    // Came after the message.
    garden.add_member(&channel, "hal", 10).await;
    for user in ["ann", "bob", "cat", "dan", "eve", "fay", "hal", "out"] {
        garden.add_device(user, &format!("{user}-1")).await;
    }
    garden.add_device("cat", "cat-2").await;
    garden.set_online(&channel, "bob");
    garden.mute(&channel, "dan").await;
    garden.block("eve", "ann").await;
    garden.read(&channel, "fay", 10).await;
    let worker = garden.worker().await;
    let message = garden.message(&channel, "ann", 10, "see you at six 😀");
    garden.say(&message).await;
    garden.until("sent", 2).await;

    assert_eq!(garden.pushed(), ["cat-1", "cat-2"]);
    let planned: Vec<_> = garden.planned().await;
    let users: Vec<_> = planned
        .iter()
        .map(|push| garden.plain(&push.user))
        .collect();
    assert_eq!(users, ["cat"]);
    let call = &garden.fcm.taken()[0].message;
    assert_eq!(call["notification"]["title"], "Garden");
    let said = format!("{}: see you at six 😀", garden.own("ann"));
    assert_eq!(call["notification"]["body"], said);
    assert_eq!(call["android"]["collapse_key"], channel.as_str());
    assert_eq!(
        call["apns"]["payload"]["aps"]["thread-id"],
        channel.as_str()
    );
    assert_eq!(call["data"]["offset"], "10");
    assert_eq!(garden.fcm.faults(), Vec::<String>::new());
    let waited = garden::now_ms() - message.published_at_ms;
    assert!(waited >= 500, "{waited} ms");

    // The job once more: the ledger knows that both have it.
    garden.say(&message).await;
    until(|| worker.counted("wyd_push_total{result=\"sent_before\"}") == 2).await;
    assert_eq!(garden.pushed().len(), 2);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_becomes_one_push_and_what_is_read_meanwhile_none() {
    let garden = Garden::plant().await;
    let (busy, calm) = (garden.channel("busy"), garden.channel("calm"));
    for channel in [&busy, &calm] {
        garden.add_member(channel, "bob", 0).await;
        garden.add_member(channel, "ann", 0).await;
    }
    garden.add_device("bob", "bob-1").await;
    garden.add_device("ann", "ann-1").await;
    let worker = garden.worker().await;
    // Warm: the group has its partitions when the burst comes.
    garden.say(&garden.message(&calm, "ann", 1, "hello")).await;
    garden.until("sent", 1).await;
    for offset in 1..=5 {
        let author = if offset == 3 { "bob" } else { "ann" };
        garden
            .say(&garden.message(&busy, author, offset, "again"))
            .await;
    }
    garden.until("sent", 3).await;
    let shown: BTreeMap<String, String> = garden
        .fcm
        .taken()
        .iter()
        .skip(1)
        .map(|call| {
            let body = call.message["notification"]["body"].as_str().unwrap();
            (garden.plain(&call.token), body.to_owned())
        })
        .collect();
    assert_eq!(shown["bob-1"], "4 new messages");
    assert_eq!(shown["ann-1"], "again");
    assert_eq!(garden.fcm.taken().len(), 3);

    // Read on another device before the delay is over.
    garden.say(&garden.message(&calm, "ann", 2, "read")).await;
    garden.read(&calm, "bob", 2).await;
    garden.say(&garden.message(&busy, "ann", 6, "last")).await;
    garden.until("sent", 4).await;
    assert_eq!(garden.fcm.taken().len(), 4);
    assert_eq!(garden.fcm.taken()[3].message["data"]["offset"], "6");
    worker.stop().await;
}

/// F1: each row, with numbers: tokens wrongly deleted 0, calls before `Retry-After` 0, lost 0.
#[tokio::test(flavor = "multi_thread")]
async fn f1_errors_cost_no_good_token_and_no_push() {
    let garden = Garden::plant().await;
    let bad_request = json!([{
        "@type": "type.googleapis.com/google.rpc.BadRequest",
        "fieldViolations": [{ "field": "message.data", "description": "Invalid data" }],
    }]);
    let words = "The registration token is not a valid FCM registration token";
    let rows = [
        (
            "unregistered",
            error(404, "UNREGISTERED", "not found", None),
        ),
        ("wrong", error(400, "INVALID_ARGUMENT", words, None)),
        (
            "payload",
            error_with(400, "Invalid data", &bad_request, None),
        ),
        (
            "foreign",
            error(403, "SENDER_ID_MISMATCH", "mismatch", None),
        ),
    ];
    for (name, answer) in rows {
        garden.add_device(name, name).await;
        garden.fcm.script(&garden.own(name), [answer]);
        garden.push(name).await;
    }
    garden.add_device("good", "good").await;
    garden.push("good").await;
    let worker = garden.worker().await;
    garden.until("dropped", 4).await;
    garden.until("sent", 1).await;
    assert_eq!(garden.devices().await, ["foreign", "good", "payload"]);

    // Everything waits while FCM says so, and nothing is lost.
    for (n, status) in [429, 503].into_iter().enumerate() {
        let name = format!("busy-{status}");
        garden.add_device(&name, &name).await;
        let code = if status == 429 {
            "QUOTA_EXCEEDED"
        } else {
            "UNAVAILABLE"
        };
        garden
            .fcm
            .script(&garden.own(&name), [error(status, code, "", Some(3))]);
        let calls = garden.fcm.calls().len();
        garden.push(&name).await;
        until(|| garden.fcm.calls().len() > calls).await;
        garden.push("good").await;
        garden
            .until("sent", 3 + 2 * i64::try_from(n).unwrap())
            .await;
        let calls = garden.fcm.calls();
        let refused = calls.iter().position(|call| call.status == status).unwrap();
        let next = &calls[refused + 1];
        let waited = next.at - calls[refused].at;
        assert!(waited >= Duration::from_secs(3), "{status}: {waited:?}");
        println!("{status}: next call after {waited:?}, Retry-After 3 s");
    }
    assert_eq!(garden.fcm.faults(), Vec::<String>::new());
    worker.stop().await;
}

/// Stops for ever after every `every`th push that was taken: there the test kills the worker.
struct StopsAfterSend {
    inner: Arc<dyn PushProvider>,
    every: usize,
    sent: AtomicUsize,
    stopped: Notify,
}

#[async_trait]
impl PushProvider for StopsAfterSend {
    async fn send(&self, push: &Push) -> Result<(), SendError> {
        self.inner.send(push).await?;
        let sent = self.sent.fetch_add(1, Ordering::Relaxed) + 1;
        if sent.is_multiple_of(self.every) {
            self.stopped.notify_one();
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

/// F2, G2: the worker dies between a push and its note in the ledger.
#[tokio::test(flavor = "multi_thread")]
async fn f2_a_worker_killed_after_a_push_repeats_only_that_one() {
    const PUSHES: usize = 40;
    const KILLS: usize = 4;
    let mut garden = Garden::plant().await;
    garden.in_flight_max = 1;
    for n in 0..PUSHES {
        let name = format!("user-{n:02}");
        garden.add_device(&name, &name).await;
        garden.push(&name).await;
    }
    let mut killed = 0;
    while killed < KILLS {
        let provider = Arc::new(StopsAfterSend {
            inner: garden.provider(),
            every: 7,
            sent: AtomicUsize::new(0),
            stopped: Notify::new(),
        });
        let worker = garden.worker_with(Arc::clone(&provider) as _).await;
        let stopped = tokio::time::timeout(garden::PATIENCE, provider.stopped.notified());
        stopped.await.unwrap();
        worker.kill().await;
        killed += 1;
    }
    let worker = garden.worker().await;
    garden.until("sent", i64::try_from(PUSHES).unwrap()).await;
    let mut by_device: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for call in garden.fcm.taken() {
        let headers = &call.message["apns"]["headers"];
        let collapse_id = headers["apns-collapse-id"].as_str().unwrap().to_owned();
        by_device.entry(call.token).or_default().push(collapse_id);
    }
    assert_eq!(by_device.len(), PUSHES, "lost");
    let extra: usize = by_device.values().map(|calls| calls.len() - 1).sum();
    println!("{PUSHES} pushes, {KILLS} kills, {extra} sent twice");
    assert!(extra <= KILLS);
    for ids in by_device.values() {
        assert!(ids.windows(2).all(|pair| pair[0] == pair[1]), "{ids:?}");
    }
    worker.stop().await;
}

/// A device in many channels gets pushes of all, but at most four of them may be collapsed.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_never_has_more_than_four_collapse_keys() {
    let garden = Garden::plant().await;
    garden.add_device("bob", "bob-1").await;
    let worker = garden.worker().await;
    for n in 0..7 {
        let channel = garden.channel(&n.to_string());
        garden.add_member(&channel, "bob", 0).await;
        garden
            .say(&garden.message(&channel, "ann", 1, "hello"))
            .await;
    }
    garden.until("sent", 7).await;
    assert_eq!(garden.fcm.faults(), Vec::<String>::new());
    let taken = garden.fcm.taken();
    let collapsible = taken
        .iter()
        .filter(|call| call.message["android"]["collapse_key"].is_string());
    assert_eq!(collapsible.count(), 4);
    worker.stop().await;
}

/// A recorded conversation (`WYD_TEST_CONVERSATION`; one is made up where there is none), three
/// people of ten away: each is told of every message of the others once, and nobody else is told
/// anything. The model counts lines of the file; it knows nothing of batches.
#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_is_told_to_exactly_those_who_are_away() {
    let garden = Garden::plant().await;
    let lines = conversation();
    let is_away = |user: &str| user.bytes().map(usize::from).sum::<usize>() % 10 < 3;
    let mut rooms: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (room, user, _) in &lines {
        rooms.entry(room).or_default().insert(user);
    }
    let people: BTreeSet<&str> = rooms.values().flatten().copied().collect();
    for user in &people {
        garden.add_device(user, user).await;
    }
    let mut expected: BTreeMap<(String, String), u64> = BTreeMap::new();
    for (room, members) in &rooms {
        let channel = garden.channel(room);
        for member in members {
            garden.add_member(&channel, member, 0).await;
            if !is_away(member) {
                garden.set_online(&channel, member);
                continue;
            }
            let others = lines
                .iter()
                .filter(|(of, by, _)| of == room && by != member);
            let told = u64::try_from(others.count()).unwrap();
            if told > 0 {
                expected.insert(((*member).to_owned(), channel.to_string()), told);
            }
        }
    }
    let worker = garden.worker().await;
    let mut offsets: BTreeMap<&str, u64> = BTreeMap::new();
    for lines in lines.chunks(500) {
        let messages = lines.iter().map(|(room, user, text)| {
            let offset = offsets.entry(room).or_default();
            *offset += 1;
            garden.message(&garden.channel(room), user, *offset, text)
        });
        let messages: Vec<_> = messages.collect();
        futures::future::join_all(messages.iter().map(|message| garden.say(message))).await;
    }
    let told = || {
        let mut told: BTreeMap<(String, String), u64> = BTreeMap::new();
        for call in garden.fcm.taken() {
            let data = &call.message["data"];
            let count: u64 = data["count"].as_str().unwrap().parse().unwrap();
            let channel = data["channel"].as_str().unwrap().to_owned();
            *told
                .entry((garden.plain(&call.token), channel))
                .or_default() += count;
        }
        told
    };
    until(|| told().values().sum::<u64>() >= expected.values().sum()).await;
    assert_eq!(told(), expected);
    let pushes = garden.fcm.taken().len();
    garden.until("sent", i64::try_from(pushes).unwrap()).await;
    assert_eq!(garden.fcm.taken().len(), pushes);
    assert_eq!(garden.fcm.faults(), Vec::<String>::new());
    println!(
        "{} messages, {} people, {} memberships away: {pushes} pushes",
        lines.len(),
        people.len(),
        expected.len()
    );
    worker.stop().await;
}

/// Room, user, text.
fn conversation() -> Vec<(String, String, String)> {
    let Some(path) = std::env::var_os("WYD_TEST_CONVERSATION") else {
        let line = |n: usize| {
            let (room, user) = (n * n % 3, n * 7 % 40);
            (
                format!("room-{room}"),
                format!("person-{user}"),
                format!("line {n}"),
            )
        };
        return (0..1_000).map(line).collect();
    };
    let file = std::fs::read_to_string(path).unwrap();
    let line = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let text = |key: &str| line[key].as_str().unwrap().to_owned();
        (text("room"), text("user"), text("text"))
    };
    file.lines().map(line).collect()
}

/// Pushes a second from a filled topic, and the CPU of this whole process, the stand-in included.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: run it alone, in a release build"]
async fn throughput_of_pushes() {
    const PUSHES: usize = 20_000;
    let mut garden = Garden::plant().await;
    garden.in_flight_max = 400;
    garden.fcm.set_latency(Duration::from_millis(80));
    let users: Vec<String> = (0..1_000).map(|n| format!("user-{n}")).collect();
    for user in &users {
        garden.add_device(user, user).await;
    }
    for _ in 0..PUSHES / users.len() {
        futures::future::join_all(users.iter().map(|user| garden.push(user))).await;
    }
    let (began, cpu) = (std::time::SystemTime::now(), cpu_seconds());
    let worker = garden.worker().await;
    until(|| worker.counted("wyd_push_total{result=\"sent\"}") == PUSHES as u64).await;
    let took = began.elapsed().unwrap().as_secs_f64();
    println!(
        "{PUSHES} pushes in {took:.2} s: {:.0} a second, {:.2} s of CPU, {} connections, 80 ms each",
        PUSHES as f64 / took,
        cpu_seconds() - cpu,
        garden.fcm.connections.load(Ordering::Relaxed),
    );
    worker.stop().await;
}

/// User and system time of this process.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks: f64 = fields
        .split(' ')
        .skip(11)
        .take(2)
        .map(|ticks| ticks.parse::<f64>().unwrap())
        .sum();
    ticks / 100.0
}

async fn until(mut is_so: impl FnMut() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(garden::PATIENCE, waiting).await;
    waited.expect("what was waited for did not come");
}
