//! What the S3 store makes of answers that a real server gives on a bad day: 503, a connection that
//! breaks, an error with status 200. The server here is a script.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::string_slice,
    reason = "a test that cannot go on panics, and its helpers are part of it"
)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use shared::config::MediaConfig;
use store::media::{MediaError, MediaStore, Put, S3Store};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const SLOW_DOWN: &str = "503 Slow Down\r\n\r\n<Error><Code>SlowDown</Code></Error>";
const OK: &str = "200 OK\r\nETag: \"e\"\r\n\r\n";
/// The connection ends without an answer.
const RESET: &str = "";
const PARTS: &str = "200 OK\r\n\r\n<ListPartsResult><IsTruncated>false</IsTruncated><Part>\
    <PartNumber>1</PartNumber><ETag>\"e\"</ETag><Size>3</Size></Part></ListPartsResult>";
/// S3 begins its answer before it knows how it ends.
const ERROR_200: &str = "200 OK\r\n\r\n<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
    <Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>";
const COMPLETED: &str = "200 OK\r\n\r\n<CompleteMultipartUploadResult><ETag>\"e\"</ETag>\
    </CompleteMultipartUploadResult>";

/// Answers one request after the other, the last answer for ever.
async fn server(answers: &[&'static str]) -> (S3Store, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let mut answers: VecDeque<&'static str> = answers.iter().copied().collect();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::Relaxed);
            let answer = answers[0];
            if answers.len() > 1 {
                answers.pop_front();
            }
            answer_one(socket, answer).await;
        }
    });
    let config = MediaConfig {
        bucket: "bucket".to_owned(),
        region: "us-east-1".to_owned(),
        endpoint,
        ..MediaConfig::default()
    };
    (S3Store::connect(&config).await, asked)
}

async fn answer_one(mut socket: TcpStream, answer: &str) {
    let mut request = Vec::new();
    let is_whole = |request: &[u8]| {
        let text = String::from_utf8_lossy(request).to_ascii_lowercase();
        let (head, body) = text.split_once("\r\n\r\n")?;
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length:"));
        let length: usize = length.map_or(0, |length| length.trim().parse().unwrap());
        (body.len() >= length).then_some(())
    };
    while is_whole(&request).is_none() {
        let mut buffer = [0; 4096];
        match socket.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(n) => request.extend_from_slice(&buffer[..n]),
        }
    }
    if answer.is_empty() {
        return;
    }
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let length = body.len();
    let text =
        format!("HTTP/1.1 {head}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}");
    drop(socket.write_all(text.as_bytes()).await);
    drop(socket.shutdown().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_moment_is_waited_out() {
    let (store, asked) = server(&[SLOW_DOWN, RESET, OK]).await;
    let put = store.put("key", Bytes::from_static(b"abc"), "text/plain");
    assert_eq!(put.await.unwrap(), Put::Created);
    assert_eq!(asked.load(Ordering::Relaxed), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_day_is_an_error_that_may_pass() {
    for answer in [SLOW_DOWN, RESET] {
        let (store, asked) = server(&[answer]).await;
        let put = store.put("key", Bytes::from_static(b"abc"), "text/plain");
        let error = put.await.unwrap_err();
        assert!(matches!(error, MediaError::Unavailable(_)), "{error:?}");
        assert_eq!(asked.load(Ordering::Relaxed), 3);
    }
}

/// S2: an error may come with status 200.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_in_a_good_answer_is_an_error() {
    let (store, _) = server(&[PARTS, ERROR_200, COMPLETED]).await;
    let put = store.complete_parts("key", "upload", 3).await;
    assert_eq!(put.unwrap(), Put::Created, "tried again");
    let (store, _) = server(&[PARTS, ERROR_200]).await;
    let error = store.complete_parts("key", "upload", 3).await.unwrap_err();
    assert!(matches!(error, MediaError::Unavailable(_)), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_rights_are_said_to_be() {
    let denied = "403 Forbidden\r\n\r\n<Error><Code>AccessDenied</Code></Error>";
    let (store, asked) = server(&[denied]).await;
    let put = store.put("key", Bytes::from_static(b"abc"), "text/plain");
    let error = put.await.unwrap_err();
    assert!(error.to_string().contains("AccessDenied"), "{error}");
    assert!(matches!(error, MediaError::Refused(_)));
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}
