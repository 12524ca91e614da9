//! A replay finds nothing wrong in a right cluster, and finds what is wrong in a wrong one.

use std::time::Duration;

use loadtest::replay::conversation::{Conversation, Shape};
use loadtest::replay::report::Report;
use loadtest::replay::{Replay, ReplayOptions};

use crate::gateway::{Faults, ToyCluster};

fn conversation() -> Conversation {
    let shape = Shape {
        seed: 7,
        rooms: 3,
        people: 40,
        messages: 400,
    };
    Conversation::generate(&shape, None).unwrap()
}

fn replay_on(cluster: &ToyCluster) -> Replay {
    let options = ReplayOptions {
        speed: 400.0,
        publish_timeout: Duration::from_millis(300),
        // Faults that lose something are waited for until then.
        quiesce: Duration::from_secs(2),
        timeout: Duration::from_secs(30),
        ..ReplayOptions::new(
            cluster.endpoints(),
            "a secret of the toy cluster, 32 bytes",
            "chat",
        )
    };
    Replay::new(options, conversation())
}

async fn report_with(faults: Faults) -> Report {
    let cluster = ToyCluster::start(2, faults).await;
    replay_on(&cluster).run().await.unwrap()
}

/// The same, with one gateway killed in the middle and started again.
async fn report_with_a_crash(faults: Faults) -> Report {
    let mut cluster = ToyCluster::start(2, faults).await;
    let replay = replay_on(&cluster);
    let progress = replay.progress();
    let running = tokio::spawn(replay.run());
    while progress.acknowledged() < 150 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    cluster.kill(0).await;
    while progress.acknowledged() < 250 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    cluster.restart(0).await;
    running.await.unwrap().unwrap()
}

#[tokio::test]
async fn a_right_cluster_passes() {
    let report = report_with(Faults::default()).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.counts.acknowledged, 400);
    assert_eq!(report.counts.deliveries, report.deliveries_expected);
    assert_eq!((report.archives_read, report.reconnects), (2, 0));
}

#[tokio::test]
async fn clients_of_a_killed_gateway_recover_through_the_other() {
    let report = report_with_a_crash(Faults::default()).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.reconnects, 20, "{report}");
    assert_eq!(report.counts.deliveries, report.deliveries_expected);
    assert!(report.counts.recovered_deliveries > 0, "{report}");
}

#[tokio::test]
async fn an_unanswered_send_is_repeated_with_its_key() {
    let report = report_with(Faults {
        unanswered_send: Some(50),
        ..Faults::default()
    })
    .await;
    assert!(report.is_clean(), "{report}");
    assert!(report.retries >= 5, "{report}");
}

#[tokio::test]
async fn a_cluster_that_forgets_keys_is_found_out() {
    let report = report_with(Faults {
        unanswered_send: Some(50),
        forgets_keys: true,
        ..Faults::default()
    })
    .await;
    assert!(report.counts.duplicates > 0, "{report}");
    assert!(!report.is_clean());
}

#[tokio::test]
async fn a_lost_delivery_is_found() {
    let report = report_with(Faults {
        lost_delivery: Some(1_000),
        ..Faults::default()
    })
    .await;
    assert_eq!(report.counts.lost, 1, "{report}");
    assert!(!report.is_clean());
}

#[tokio::test]
async fn a_doubled_delivery_is_found() {
    let report = report_with(Faults {
        doubled_delivery: Some(1_000),
        ..Faults::default()
    })
    .await;
    assert_eq!(report.counts.duplicates, 1, "{report}");
}

#[tokio::test]
async fn another_order_is_found() {
    let report = report_with(Faults {
        swapped_offset: Some(50),
        ..Faults::default()
    })
    .await;
    assert!(report.counts.order_differences > 0, "{report}");
    assert_eq!(report.counts.lost, 0, "{report}");
}

#[tokio::test]
async fn wrong_archives_are_found() {
    let report = report_with(Faults {
        lost_row: Some(30),
        doubled_row: Some(40),
        ..Faults::default()
    })
    .await;
    // Three rooms, read through two gateways.
    assert_eq!(report.counts.lost_archived, 6, "{report}");
    assert_eq!(report.counts.duplicates_archived, 6, "{report}");
}

#[tokio::test]
async fn a_false_recovery_is_found() {
    let report = report_with_a_crash(Faults {
        false_recovery: true,
        ..Faults::default()
    })
    .await;
    assert!(report.counts.lost > 0 && report.counts.gaps > 0, "{report}");
}

#[tokio::test]
async fn an_honest_refusal_of_recovery_is_a_warning() {
    let report = report_with_a_crash(Faults {
        no_recovery: true,
        ..Faults::default()
    })
    .await;
    assert!(report.is_clean(), "{report}");
    assert!(report.counts.unrecovered > 0, "{report}");
    assert!(report.to_string().contains("recovered: false"));
}
