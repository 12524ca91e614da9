//! Editing and deleting messages, and reading them back, over a node with an archive.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::string_slice,
    reason = "a test that cannot go on panics, and its helpers are part of it"
)]

#[allow(
    dead_code,
    reason = "every test file uses its own part of what they share"
)]
mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use gateway::{Node, NodeParts};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use shared::config::{Authorize, Join, NamespaceOptions};
use shared::events::PublicationEvent;
use store::archive::{self, MessageArchive};
use store::job_log::{Job, JobLog, JobLogError, JobPosition, JobScan, JobSource};
use store::records::Records;
use support::{RawClient, config, http, stop, token};

const CHANNEL: &str = "chat:1";

/// A job log whose jobs are in the archive at once, or wait until the test says so.
struct ArchivingLog {
    archive: Arc<dyn MessageArchive>,
    waiting: Mutex<Option<Vec<PublicationEvent>>>,
}

impl ArchivingLog {
    fn hold(&self) {
        *self.waiting.lock() = Some(Vec::new());
    }

    async fn catch_up(&self) {
        let waiting = self.waiting.lock().take().unwrap();
        self.archive.append(&waiting, &[]).await.unwrap();
    }
}

#[async_trait]
impl JobLog for ArchivingLog {
    async fn append(&self, job: Job) -> Result<JobPosition, JobLogError> {
        let event: PublicationEvent = serde_json::from_slice(&job.value).unwrap();
        let position = JobPosition {
            partition: 0,
            offset: 0,
        };
        if let Some(waiting) = &mut *self.waiting.lock() {
            waiting.push(event);
            return Ok(position);
        }
        self.archive.append(&[event], &[]).await.unwrap();
        Ok(position)
    }

    async fn ping(&self, _timeout: Duration) -> Result<(), JobLogError> {
        Ok(())
    }

    async fn scan(&self, _topic: &str) -> Result<Box<dyn JobScan>, JobLogError> {
        Err(JobLogError::Refused("nothing is read here".to_owned()))
    }

    async fn consume(
        &self,
        _group: &'static str,
        _topic: &str,
        _archive: Option<Arc<dyn MessageArchive>>,
    ) -> Result<Box<dyn JobSource>, JobLogError> {
        Err(JobLogError::Refused("nothing is read here".to_owned()))
    }
}

struct World {
    node: Node,
    log: Arc<ArchivingLog>,
    _folder: tempfile::TempDir,
}

impl World {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config();
        let url = format!("sqlite://{}/archive.db", folder.path().display());
        config.database.url = Some(url.into());
        let open = config.namespaces["open"].clone();
        let chat = NamespaceOptions {
            durable: true,
            ..open
        };
        let team = NamespaceOptions {
            authorize: Authorize::Membership,
            join: Join::Open,
            ..chat.clone()
        };
        config.namespaces.insert("chat".to_owned(), chat);
        config.namespaces.insert("team".to_owned(), team);
        archive::migrate(&config).await.unwrap();
        let archive = archive::open(&config).await.unwrap().unwrap();
        let records = Records::open(&config.database).await.unwrap().unwrap();
        let log = Arc::new(ArchivingLog {
            archive: Arc::clone(&archive),
            waiting: Mutex::new(None),
        });
        let parts = NodeParts {
            config: Arc::new(config),
            job_log: Some(Arc::clone(&log) as Arc<dyn JobLog>),
            archive: Some(archive),
            records: Some(records),
            extra_routes: axum::Router::new(),
        };
        let node = Node::start(parts, &mut Registry::default()).await.unwrap();
        Self {
            node,
            log,
            _folder: folder,
        }
    }

    fn address(&self) -> SocketAddr {
        self.node.public_addr()
    }

    async fn join(&self, user: &str) -> RawClient {
        let mut client = RawClient::connect(self.address(), user).await;
        let reply = client
            .call(json!({"subscribe": {"channel": CHANNEL}}))
            .await;
        assert!(reply["error"].is_null(), "{reply}");
        client
    }
}

async fn rpc(client: &mut RawClient, method: &str, mut params: Value) -> Result<Value, u64> {
    if params["channel"].is_null() {
        params["channel"] = json!(CHANNEL);
    }
    let command = json!({"rpc": {"method": method, "data": params}});
    let reply = client.call(command).await;
    match reply["error"]["code"].as_u64() {
        Some(code) => Err(code),
        None => Ok(reply["rpc"]["data"].clone()),
    }
}

async fn say(client: &mut RawClient, text: &str) -> String {
    let sent = rpc(client, "message.send", json!({"data": {"text": text}})).await;
    sent.unwrap()["id"].as_str().unwrap().to_owned()
}

async fn listed(client: &mut RawClient) -> Vec<Value> {
    let list = rpc(client, "message.list", json!({})).await.unwrap();
    list["messages"].as_array().unwrap().clone()
}

async fn heard(client: &mut RawClient) -> Value {
    client.push().await["push"]["pub"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn authors_edit_and_delete_and_everybody_sees_it() {
    let world = World::start().await;
    let mut ann = world.join("ann").await;
    let mut bob = world.join("bob").await;
    let id = say(&mut ann, "helo").await;
    let original = heard(&mut bob).await;
    assert_eq!(original["tags"]["id"], json!(id));

    let edit = json!({"id": id, "data": {"text": "hello"}, "idempotency_key": "k"});
    let edited = rpc(&mut ann, "message.edit", edit.clone()).await.unwrap();
    let push = heard(&mut bob).await;
    let data = json!({"type": "message.edited", "id": id, "data": {"text": "hello"}});
    assert_eq!(push["data"], data);
    assert_eq!(push["offset"], edited["offset"], "in the channel's order");
    assert_eq!(push["tags"]["id"], edited["id"]);

    let seen = listed(&mut bob).await;
    assert_eq!(seen.len(), 1, "an edit is no message: {seen:?}");
    assert_eq!(seen[0]["id"], json!(id));
    assert_eq!(seen[0]["data"], json!({"text": "hello"}));
    assert_eq!(seen[0]["offset"], original["offset"]);
    assert_eq!(seen[0]["edited_at"], edited["time"]);

    let deleted = rpc(&mut ann, "message.delete", json!({"id": id}))
        .await
        .unwrap();
    let push = heard(&mut bob).await;
    assert_eq!(push["data"], json!({"type": "message.deleted", "id": id}));
    let seen = listed(&mut bob).await;
    assert_eq!(seen[0]["data"], json!(null));
    assert_eq!(seen[0]["deleted_at"], deleted["time"]);

    // The first attempt's answer was lost: the same edit, sent again, is the same edit.
    assert_eq!(rpc(&mut ann, "message.edit", edit).await.unwrap(), edited);
    let late = json!({"id": id, "data": {"text": "too late"}});
    assert_eq!(rpc(&mut ann, "message.edit", late).await, Err(404));
    stop(world.node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_changes_what_is_not_theirs() {
    let world = World::start().await;
    let mut ann = world.join("ann").await;
    let mut eve = world.join("eve").await;
    let id = say(&mut ann, "mine").await;
    let address = world.address();
    let from_api = r#"{"channel":"chat:1","data":{"text":"notice"}}"#;
    let head = "POST /api/publish HTTP/1.1\r\nX-API-Key: key";
    assert_eq!(http(address, head, from_api).await.0, 200);
    let notice = listed(&mut eve).await[1]["id"].clone();
    let unknown = json!("0198c0de-0000-7000-8000-000000000000");
    for (id, code) in [(json!(id), 103), (notice, 103), (unknown, 404)] {
        let edit = json!({"id": id, "data": {"text": "forged"}});
        assert_eq!(rpc(&mut eve, "message.edit", edit).await, Err(code));
        let delete = json!({"id": id});
        assert_eq!(rpc(&mut eve, "message.delete", delete).await, Err(code));
    }
    let edit = |channel: &str, id: Value| json!({"channel": channel, "id": id, "data": 1});
    let other = edit("chat:2", json!(id));
    assert_eq!(
        rpc(&mut ann, "message.edit", other).await,
        Err(103),
        "not subscribed"
    );
    let no_archive = edit("open:1", json!(id));
    let reply = ann.call(json!({"subscribe": {"channel": "open:1"}})).await;
    assert!(reply["error"].is_null(), "{reply}");
    assert_eq!(rpc(&mut ann, "message.edit", no_archive).await, Err(108));
    for broken in [
        json!({"id": "x", "data": 1}),
        json!({"data": 1}),
        json!({"id": id}),
    ] {
        assert_eq!(rpc(&mut ann, "message.edit", broken).await, Err(107));
    }
    // Tags say what a publication is: nobody else may set them.
    let forged = format!(
        r#"{{"channel":"chat:1","data":{{}},"tags":{{"wyd.kind":"deleted","wyd.target":"{id}"}}}}"#
    );
    let (_, answer) = http(address, head, &forged).await;
    assert!(answer.contains("\"code\":107"), "{answer}");
    assert_eq!(listed(&mut ann).await[0]["data"], json!({"text": "mine"}));
    stop(world.node).await;
}

/// The worker may be behind: an author is known from the history then.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_not_archived_yet_can_be_changed() {
    let world = World::start().await;
    let mut ann = world.join("ann").await;
    let mut eve = world.join("eve").await;
    world.log.hold();
    let id = say(&mut ann, "a").await;
    let edit = json!({"id": id, "data": "b\n"});
    assert_eq!(rpc(&mut eve, "message.edit", edit.clone()).await, Err(103));
    let edited = rpc(&mut ann, "message.edit", edit).await.unwrap();
    let edit_of_edit = json!({"id": edited["id"], "data": "c"});
    assert_eq!(rpc(&mut ann, "message.edit", edit_of_edit).await, Err(404));
    assert!(listed(&mut ann).await.is_empty(), "the archive lags");
    world.log.catch_up().await;
    assert_eq!(listed(&mut ann).await[0]["data"], json!("b\n"));
    stop(world.node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_listed_by_place_and_by_time() {
    let world = World::start().await;
    let mut ann = world.join("ann").await;
    for n in 0..5 {
        say(&mut ann, &n.to_string()).await;
        // Times in milliseconds: the next message is a later one.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let all = listed(&mut ann).await;
    assert_eq!(all.len(), 5);
    let cases = [
        (json!({"limit": 2}), vec![3, 4]),
        (json!({"after": all[1]["offset"], "limit": 2}), vec![2, 3]),
        (json!({"before": all[3]["offset"], "limit": 2}), vec![1, 2]),
        (
            json!({"after_time": all[1]["time"], "limit": 2}),
            vec![2, 3],
        ),
        (
            json!({"before_time": all[3]["time"], "limit": 2}),
            vec![1, 2],
        ),
        (json!({"limit": 2, "reverse": true}), vec![4, 3]),
    ];
    for (query, expected) in cases {
        let list = rpc(&mut ann, "message.list", query.clone()).await.unwrap();
        let texts: Vec<Value> = list["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|message| message["data"]["text"].clone())
            .collect();
        let expected: Vec<Value> = expected
            .iter()
            .map(|n: &i32| json!(n.to_string()))
            .collect();
        assert_eq!(texts, expected, "{query}");
        assert!(list["floor"].is_null());
    }
    stop(world.node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_exports_and_erases_a_user() {
    let world = World::start().await;
    let mut ann = world.join("ann").await;
    let mut bob = world.join("bob").await;
    for n in 0..3 {
        say(&mut ann, &format!("secret {n}")).await;
    }
    say(&mut bob, "hello").await;
    let api = async |method: &str, body: Value| {
        let head = format!("POST /api/{method} HTTP/1.1\r\nX-API-Key: key");
        let (status, answer) = http(world.address(), &head, &body.to_string()).await;
        assert_eq!(status, 200, "{answer}");
        serde_json::from_str::<Value>(&answer).unwrap()
    };
    let first = api("user_export", json!({"user": "ann", "limit": 2})).await;
    let cursor = first["result"]["cursor"].clone();
    let next = json!({"user": "ann", "limit": 2, "cursor": cursor});
    let second = api("user_export", next).await;
    assert!(second["result"]["cursor"].is_null(), "{second}");
    let rows: Vec<Value> = [first, second]
        .iter()
        .flat_map(|page| page["result"]["rows"].as_array().unwrap().clone())
        .collect();
    assert_eq!(rows.len(), 3);
    assert_eq!(rows[0]["record"], json!("message"));
    assert_eq!(rows[0]["row"]["data"], json!({"text": "secret 0"}));

    let erased = api("user_erase", json!({"user": "ann"})).await;
    assert_eq!(erased["result"]["messages"], json!(3), "{erased}");
    assert_eq!(erased["result"]["done"], json!(true));
    let seen = listed(&mut bob).await;
    let data: Vec<_> = seen.iter().map(|message| message["data"].clone()).collect();
    let gone = json!(null);
    assert_eq!(
        data,
        [gone.clone(), gone.clone(), gone, json!({"text": "hello"})]
    );
    let nobody = api("user_erase", json!({"user": ""})).await;
    assert_eq!(nobody["error"]["code"], json!(107));
    stop(world.node).await;
}

/// The same over REST, and in a channel whose owner may change others' messages.
#[tokio::test(flavor = "multi_thread")]
async fn moderators_change_the_messages_of_others() {
    let world = World::start().await;
    let team = "team:1";
    let mut ann = RawClient::connect(world.address(), "ann").await;
    let mut eve = RawClient::connect(world.address(), "eve").await;
    let created = json!({"channel": team, "name": "Team"});
    rpc(&mut ann, "channel.create", created).await.unwrap();
    rpc(&mut eve, "channel.join", json!({"channel": team}))
        .await
        .unwrap();
    for client in [&mut ann, &mut eve] {
        let reply = client.call(json!({"subscribe": {"channel": team}})).await;
        assert!(reply["error"].is_null(), "{reply}");
    }
    let send = json!({"channel": team, "data": "rude"});
    let hers = rpc(&mut eve, "message.send", send.clone()).await.unwrap();
    let owners = rpc(&mut ann, "message.send", send).await.unwrap();
    let rest = async |user: &str, verb: &str, id: &Value, body: &str| {
        let token = token(&json!({"sub": user}));
        let id = id.as_str().unwrap();
        let head = format!(
            "{verb} /v1/channels/{team}/messages/{id} HTTP/1.1\r\nAuthorization: Bearer {token}"
        );
        http(world.address(), &head, body).await.0
    };
    let patch = r#"{"data":"forged"}"#;
    assert_eq!(rest("eve", "PATCH", &owners["id"], patch).await, 403);
    assert_eq!(rest("eve", "DELETE", &owners["id"], "").await, 403);
    assert_eq!(rest("bob", "DELETE", &hers["id"], "").await, 403);
    assert_eq!(
        rest("eve", "PATCH", &hers["id"], r#"{"data":"kind"}"#).await,
        200
    );
    assert_eq!(rest("ann", "DELETE", &hers["id"], "").await, 200);
    let list = rpc(&mut eve, "message.list", json!({"channel": team})).await;
    let list = list.unwrap();
    assert_eq!(list["messages"][0]["data"], json!(null));
    assert_eq!(list["messages"][0]["user"], json!("eve"));
    assert_eq!(list["messages"][1]["data"], json!("rude"));
    stop(world.node).await;
}
