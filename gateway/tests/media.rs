//! `media.create`, `media.complete`, `media.get` of a node with its objects in a folder.
#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::string_slice,
    reason = "a test that cannot go on panics, and its helpers are part of it"
)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gateway::{Node, NodeParts};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use shared::config::Config;
use shared::events::{GROUP_UPLOAD, MediaEvent, TOPIC_UPLOADS};
use shared::ids::MediaId;
use store::job_log::{EmbeddedJobLog, JobLog, JobSource, media_event};
use store::media::{FileStore, Grant, MediaStore, keys};
use store::records::{MediaResult, PictureResult, Records, Thumbnail};
use support::chat::chat_config;
use support::{http, token};

struct MediaNode {
    node: Node,
    files: Arc<FileStore>,
    records: Records,
    jobs: Box<dyn JobSource>,
    _folder: tempfile::TempDir,
}

async fn start(change: impl FnOnce(&mut Config)) -> MediaNode {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display();
    let mut config = chat_config();
    config.database.url = Some(format!("sqlite://{path}/chat.db").into());
    change(&mut config);
    store::archive::migrate(&config).await.unwrap();
    let records = Records::open(&config.database).await.unwrap().unwrap();
    let files = Arc::new(FileStore::open(&format!("{path}/media")).await.unwrap());
    let job_log = EmbeddedJobLog::open(&format!("sqlite://{path}/jobs.db")).await;
    let job_log: Arc<dyn JobLog> = Arc::new(job_log.unwrap());
    let parts = NodeParts {
        job_log: Some(Arc::clone(&job_log)),
        archive: None,
        records: Some(records.clone()),
        media: Some(Arc::clone(&files) as Arc<dyn MediaStore>),
        config: Arc::new(config),
        extra_routes: axum::Router::new(),
    };
    MediaNode {
        node: Node::start(parts, &mut Registry::default()).await.unwrap(),
        files,
        records,
        jobs: job_log
            .consume(GROUP_UPLOAD, TOPIC_UPLOADS, None)
            .await
            .unwrap(),
        _folder: folder,
    }
}

impl MediaNode {
    async fn rest(&self, user: &str, line: &str, body: Value) -> (u16, Value) {
        let token = token(&json!({"sub": user}));
        let head = format!("{line} HTTP/1.1\r\nAuthorization: Bearer {token}");
        let body = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        let (status, answer) = http(self.node.public_addr(), &head, &body).await;
        (status, serde_json::from_str(&answer).unwrap())
    }

    async fn done(&self, user: &str, line: &str, body: Value) -> Value {
        let (status, answer) = self.rest(user, line, body).await;
        assert_eq!(status, 200, "{line}: {answer}");
        answer
    }

    async fn refused(&self, user: &str, line: &str, body: Value) -> u16 {
        let (status, answer) = self.rest(user, line, body).await;
        assert_eq!(answer["status"], json!(status), "{line}: {answer}");
        status
    }

    /// Ann is a member of `open:1`, and so is Bob.
    async fn members(&self) {
        for user in ["ann", "bob"] {
            self.done(user, "POST /v1/channels/open:1/join", Value::Null)
                .await;
        }
    }

    /// Makes a request of an upload, as the public port of `wyd dev` would.
    async fn upload(&self, request: &Value, file: &[u8]) {
        let (method, url) = (request["method"].as_str(), request["url"].as_str());
        let grant = self.files.grant(method.unwrap(), url.unwrap()).unwrap();
        let mut incoming = self.files.receive(&grant).await.unwrap().unwrap();
        let at = |name: &str| usize::try_from(request[name].as_u64().unwrap()).unwrap();
        let bytes = &file[at("offset")..at("offset") + at("size")];
        incoming.write(bytes).await.unwrap();
        incoming.finish().await.unwrap();
    }

    async fn job(&mut self) -> MediaEvent {
        let next = self.jobs.next(1, Duration::ZERO);
        let next = tokio::time::timeout(Duration::from_secs(10), next).await;
        media_event(&next.unwrap().unwrap()[0]).unwrap()
    }

    async fn has_job(&mut self) -> bool {
        let next = self.jobs.next(1, Duration::ZERO);
        tokio::time::timeout(Duration::from_millis(200), next)
            .await
            .is_ok()
    }

    /// What the worker does.
    async fn make_ready(&self, id: &str) {
        let result = MediaResult {
            content_type: "image/jpeg".to_owned(),
            size: 3,
            picture: Some(PictureResult {
                width: 20,
                height: 10,
                blurhash: "L00000fQfQfQfQfQfQfQfQfQfQfQ".to_owned(),
                thumbnails: vec![Thumbnail {
                    side: 160,
                    width: 20,
                    height: 10,
                    content_type: "image/jpeg".to_owned(),
                }],
            }),
        };
        let id = MediaId::parse(id).unwrap();
        self.records.media_ready(id, &result, 1).await.unwrap();
    }
}

fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn announcement(body: &[u8]) -> Value {
    json!({
        "channel": "open:1",
        "name": "été.png",
        "content_type": "image/png",
        "size": body.len(),
        "sha256": sha256(body),
    })
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_medium_is_announced_uploaded_completed_and_seen() {
    let mut node = start(|_| {}).await;
    node.members().await;
    let body = b"a picture's bytes";
    let mut request = announcement(body);
    request["idempotency_key"] = "k".into();
    let made = node.done("ann", "POST /v1/media", request.clone()).await;
    assert_eq!(text(&made, "state"), "pending");
    let id = text(&made, "id").to_owned();
    // A client that did not hear the answer announces it again.
    let again = node.done("ann", "POST /v1/media", request.clone()).await;
    assert_eq!(text(&again, "id"), id);
    request["sha256"] = sha256(b"other").into();
    assert_eq!(node.refused("ann", "POST /v1/media", request).await, 409);

    let complete = format!("POST /v1/media/{id}/complete");
    assert_eq!(node.refused("ann", &complete, Value::Null).await, 409);
    // Addresses that have expired are made anew.
    let view = node
        .done("ann", &format!("GET /v1/media/{id}"), Value::Null)
        .await;
    node.upload(&view["upload"]["requests"][0], body).await;
    let done = node.done("ann", &complete, Value::Null).await;
    assert_eq!(text(&done, "state"), "uploaded");
    assert!(done.get("upload").is_none());
    let job = node.job().await;
    assert_eq!((job.id.to_string(), job.size), (id.clone(), 17));
    assert_eq!((job.user.as_str(), job.bytes), ("ann", None));
    // Again, should the first have ended before its job was safe; not when the worker has it.
    node.done("ann", &complete, Value::Null).await;
    node.job().await;
    node.files.delete(&keys::staging(&id)).await.unwrap();
    node.done("ann", &complete, Value::Null).await;
    assert!(!node.has_job().await);

    let get = format!("GET /v1/media/{id}");
    assert_eq!(node.refused("bob", &get, Value::Null).await, 404);
    node.make_ready(&id).await;
    for user in ["ann", "bob"] {
        let view = node.done(user, &get, Value::Null).await;
        assert_eq!(text(&view, "state"), "ready");
        let picture = &view["download"]["picture"];
        for url in [
            text(&view["download"], "url"),
            text(&picture["thumbnails"][0], "url"),
        ] {
            let Ok(Grant::Get {
                content_type,
                disposition,
                ..
            }) = node.files.grant("GET", url)
            else {
                panic!("{url}");
            };
            assert_eq!(content_type, "image/jpeg");
            assert_eq!(disposition, "inline; filename*=UTF-8''%C3%A9t%C3%A9%2Epng");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_file_comes_with_its_announcement() {
    let mut node = start(|config| config.media.small_bytes_max = 1000).await;
    node.members().await;
    let body = [7; 1000];
    let request = json!({
        "channel": "open:1", "content_type": "image/png", "bytes": STANDARD.encode(body),
    });
    let made = node.done("ann", "POST /v1/media", request.clone()).await;
    assert_eq!(text(&made, "state"), "uploaded");
    let job = node.job().await;
    assert_eq!((job.size, job.sha256), (1000, sha256(&body)));
    assert_eq!(STANDARD.decode(job.bytes.unwrap()).unwrap(), body);
    // There is nothing to complete, and completing it does no harm.
    let complete = format!("POST /v1/media/{}/complete", text(&made, "id"));
    node.done("ann", &complete, Value::Null).await;
    assert!(!node.has_job().await);

    let mut large = request.clone();
    large["bytes"] = STANDARD.encode([7; 1001]).into();
    assert_eq!(node.refused("ann", "POST /v1/media", large).await, 413);
    for (field, value) in [
        ("bytes", json!("no base64!")),
        ("bytes", json!("")),
        ("size", json!(999)),
        ("content_type", json!("text/html")),
        ("name", json!("a\r\nb")),
        ("name", json!("x".repeat(256))),
    ] {
        let mut wrong = request.clone();
        wrong[field] = value;
        let status = node.refused("ann", "POST /v1/media", wrong).await;
        assert_eq!(status, 400, "{field}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_is_uploaded_in_parts() {
    const MIB: usize = 1 << 20;
    let mut node = start(|_| {}).await;
    node.members().await;
    let film: Vec<u8> = (0..20 * MIB)
        .map(|n| u8::try_from(n / 777 % 256).unwrap())
        .collect();
    let mut request = announcement(&film);
    request["content_type"] = "video/mp4".into();
    let made = node.done("ann", "POST /v1/media", request).await;
    let id = text(&made, "id").to_owned();
    let parts = made["upload"]["requests"].as_array().unwrap();
    let sizes: Vec<u64> = parts.iter().map(|p| p["size"].as_u64().unwrap()).collect();
    assert_eq!(sizes, [8 << 20, 8 << 20, 4 << 20]);
    node.upload(&parts[2], &film).await;
    node.upload(&parts[0], &film).await;
    let complete = format!("POST /v1/media/{id}/complete");
    assert_eq!(node.refused("ann", &complete, Value::Null).await, 409);
    let get = node
        .done("ann", &format!("GET /v1/media/{id}"), Value::Null)
        .await;
    node.upload(&get["upload"]["requests"][1], &film).await;
    node.done("ann", &complete, Value::Null).await;
    assert_eq!(node.job().await.size, 20 << 20);
    let staged = node.files.read(&keys::staging(&id), 0, u64::MAX).await;
    assert_eq!(sha256(&staged.unwrap()), sha256(&film));
    assert!(node.files.open_uploads("").await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_at_what_is_not_theirs() {
    let node = start(|config| config.media.pending_max = 3).await;
    node.members().await;
    let body = b"bytes";
    let made = node.done("ann", "POST /v1/media", announcement(body)).await;
    let id = text(&made, "id").to_owned();
    node.upload(&made["upload"]["requests"][0], body).await;
    let (get, complete) = (
        format!("GET /v1/media/{id}"),
        format!("POST /v1/media/{id}/complete"),
    );
    let create = "POST /v1/media";
    // Not a member; nobody; another member.
    assert_eq!(node.refused("eve", create, announcement(body)).await, 403);
    assert_eq!(node.refused("", create, announcement(body)).await, 401);
    assert_eq!(node.refused("bob", &complete, Value::Null).await, 404);
    node.done("ann", &complete, Value::Null).await;
    node.make_ready(&id).await;
    node.done("bob", &get, Value::Null).await;
    for user in ["eve", ""] {
        assert_eq!(node.refused(user, &get, Value::Null).await, 404);
    }
    for id in ["..%2f..", "x", "00000000-0000-0000-0000-000000000000"] {
        let get = format!("GET /v1/media/{id}");
        assert_eq!(node.refused("ann", &get, Value::Null).await, 404, "{id}");
    }
    // Nobody else's key names it, and there is an end to announcing.
    let mut request = announcement(body);
    request["idempotency_key"] = "k".into();
    let first = node.done("ann", create, request.clone()).await;
    let second = node.done("bob", create, request).await;
    assert_ne!(first["id"], second["id"]);
    for _ in 0..2 {
        node.done("ann", create, announcement(body)).await;
    }
    assert_eq!(node.refused("ann", create, announcement(body)).await, 422);
    let mut large = announcement(body);
    large["size"] = (u64::from(u32::MAX)).into();
    assert_eq!(node.refused("bob", create, large).await, 413);
}
