//! The measurements count what they claim to count. Their figures of the toy mean nothing.

use std::time::Duration;

use loadtest::measure::connections::{self, ConnectionsOptions};
use loadtest::measure::fanout::{self, FanoutOptions};
use loadtest::measure::server::Server;

use crate::gateway::{Faults, ToyCluster};

/// The toy runs in this process, so this process is the server.
async fn toy_server() -> (ToyCluster, Server) {
    let cluster = ToyCluster::start(1, Faults::default()).await;
    let server = Server::running(
        cluster.endpoints()[0].clone(),
        std::process::id(),
        "a secret of the toy cluster, 32 bytes".to_owned(),
        "toy-key".to_owned(),
        "bench".to_owned(),
    )
    .unwrap();
    (cluster, server)
}

#[tokio::test]
async fn idle_connections_are_opened_and_divided_by() {
    let (_cluster, server) = toy_server().await;
    let options = ConnectionsOptions {
        connections: 200,
        channels: 2,
        connects_max: 16,
        hold: Duration::ZERO,
    };
    let report = connections::run(&server, &options).await.unwrap();
    assert_eq!((report.connections, report.lost), (200, 0));
    assert!(report.resident_bytes_after > 0);
}

#[tokio::test]
async fn every_delivery_is_counted() {
    let (_cluster, server) = toy_server().await;
    for rate in [0.0, 50.0] {
        let options = FanoutOptions {
            connections: 100,
            subscribers: 30,
            rate,
            payload_bytes: 40,
            duration: Duration::from_secs(1),
            connects_max: 16,
        };
        let report = fanout::run(&server, &options).await.unwrap();
        assert_eq!((report.channels, report.missing, report.lost), (3, 0, 0));
        assert!(report.publications > 10, "{report}");
        assert!((report.messages_per_frame - 1.0).abs() < 1e-9, "{report}");
        assert!(report.deliveries_per_cpu_second > 0.0, "{report}");
    }
}
