//! A node that stops tells everybody, also who has not said anything yet.
#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    reason = "a test that cannot go on panics, and its helpers are part of it"
)]

mod support;

use std::time::Duration;

use serde_json::json;
use support::{RawClient, config, start};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// Everybody answers at once here: a drain that has to wait for a time limit is at fault.
const SOON: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread")]
async fn every_socket_hears_of_the_end() {
    let mut config = config();
    // Long enough to see that the silent are not waited for until they become stale.
    config.client.stale_close_delay = Duration::from_secs(600);
    config.drain.finish_timeout = Duration::from_secs(600);
    let node = start(config).await;
    let address = node.public_addr();

    let mut known = RawClient::connect(address, "ann").await;
    let mut silent = RawClient::open(address).await;
    let mut idle = TcpStream::connect(address).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let mut answer = [0; 12];
    idle.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");

    let drained = tokio::spawn(async move { node.drain(CancellationToken::new()).await });
    assert_eq!(silent.closed().await.0, 3001);
    assert_eq!(known.closed().await.0, 3001);
    drop((known, silent));
    let mut rest = Vec::new();
    tokio::time::timeout(SOON, idle.read_to_end(&mut rest))
        .await
        .expect("an idle HTTP connection is closed")
        .unwrap();
    tokio::time::timeout(SOON, drained).await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_under_way_is_answered_before_the_end() {
    let node = start(config()).await;
    let address = node.public_addr();
    let mut ann = RawClient::connect(address, "ann").await;
    let subscribed = ann
        .call(json!({"subscribe": {"channel": "open:talk"}}))
        .await;
    assert!(subscribed["error"].is_null(), "{subscribed}");
    ann.text(r#"{"id":9,"publish":{"channel":"open:talk","data":1}}"#)
        .await;
    // The publication comes back: the command is accepted.
    let push = ann.push().await;
    assert_eq!(push["push"]["pub"]["data"], json!(1), "{push}");
    tokio::spawn(async move { node.drain(CancellationToken::new()).await });
    assert_eq!(ann.closed().await.0, 3001);
}
