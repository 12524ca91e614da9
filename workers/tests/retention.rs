//! Retention by namespace, over all channels of an archive.
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

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use shared::config::{Config, NamespaceOptions};
use store::archive::{MessageArchive, PageQuery};
use support::{channel, event};
use tokio_util::sync::CancellationToken;
use workers::persist::retention::{run, sweep};

fn kept_for(seconds: u64) -> NamespaceOptions {
    NamespaceOptions {
        durable: true,
        archive_retention: Duration::from_secs(seconds),
        ..NamespaceOptions::default()
    }
}

fn config() -> Config {
    let mut config = Config::default();
    let namespaces = [("day", 86_400), ("hour", 3_600), ("ever", 0)];
    for (name, seconds) in namespaces {
        let options = kept_for(seconds);
        config.namespaces.insert(name.to_owned(), options);
    }
    config
}

async fn rows(archive: &dyn MessageArchive, name: &str) -> usize {
    let query = PageQuery {
        limit: 1000,
        ..PageQuery::default()
    };
    archive.page(&channel(name), query).await.unwrap().len()
}

/// Messages of 48 hours, one an hour, in some channels.
async fn fill(archive: &dyn MessageArchive, names: &[String], now: SystemTime) {
    let now_ms = u64::try_from(now.duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
    for name in names {
        let batch: Vec<_> = (1..=48)
            .map(|n| {
                let mut event = event(name, "e", n);
                event.published_at_ms = now_ms - (48 - n) * 3_600_000 - 60_000;
                event
            })
            .collect();
        archive.append(&batch, &[]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_namespace_keeps_its_own_time() {
    let fixture = support::sqlite().await;
    let archive = &*fixture.archive;
    let now = SystemTime::now();
    let kept = BTreeMap::from([
        ("day:1", 24),
        ("$day:private", 24),
        ("hour:1", 1),
        ("hour:2", 1),
        ("ever:1", 48),
        ("unknown:1", 48),
        ("plain", 48),
    ]);
    let names: Vec<String> = kept.keys().map(|name| (*name).to_owned()).collect();
    fill(archive, &names, now).await;
    let swept = sweep(&config(), archive, now).await.unwrap();
    assert_eq!(swept, 2 * 24 + 2 * 47);
    for (name, kept) in kept {
        assert_eq!(rows(archive, name).await, kept, "{name}");
        let floor = archive.floor(&channel(name)).await.unwrap();
        assert_eq!(floor, (kept < 48).then_some(48 - kept as u64), "{name}");
    }
    assert_eq!(sweep(&config(), archive, now).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_sweeps_by_itself_until_it_is_stopped() {
    let fixture = support::sqlite().await;
    fill(&*fixture.archive, &["hour:1".to_owned()], SystemTime::now()).await;
    let mut config = config();
    config.worker.retention_interval = Duration::from_millis(10);
    let cancel = CancellationToken::new();
    let archive = Arc::clone(&fixture.archive);
    let running = tokio::spawn(run(Arc::new(config), archive, cancel.clone()));
    let swept = async {
        while rows(&*fixture.archive, "hour:1").await > 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), swept)
        .await
        .unwrap();
    cancel.cancel();
    running.await.unwrap();
}
