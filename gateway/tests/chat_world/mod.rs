//! A node with chat records, and clients that speak both faces of the chat part.

use std::net::SocketAddr;
use std::sync::Arc;

use gateway::{Node, NodeParts};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use shared::config::{Authorize, Config, Join, NamespaceOptions};
use store::archive::{self, MessageArchive};
use store::records::Records;

use crate::support::{RawClient, config, http, token};

/// A node whose records are in a database of its own.
pub struct ChatNode {
    pub node: Node,
    pub archive: Arc<dyn MessageArchive>,
    folder: Arc<tempfile::TempDir>,
}

/// Namespaces `open`, `invite` and `server` hold groups that are joined so; `kept` is open, and
/// durable.
pub fn chat_config() -> Config {
    let mut config = config();
    let members = NamespaceOptions {
        authorize: Authorize::Membership,
        join: Join::Open,
        ..config.namespaces["open"].clone()
    };
    for (name, join) in [
        ("open", Join::Open),
        ("invite", Join::Invite),
        ("server", Join::Server),
        ("kept", Join::Open),
    ] {
        let options = NamespaceOptions {
            join,
            durable: name == "kept",
            ..members.clone()
        };
        config.namespaces.insert(name.to_owned(), options);
    }
    config
}

pub async fn start(mut config: Config) -> ChatNode {
    let folder = tempfile::tempdir().unwrap();
    config.database.url = Some(database(&folder).into());
    archive::migrate(&config).await.unwrap();
    open(config, Arc::new(folder)).await
}

fn database(folder: &tempfile::TempDir) -> String {
    format!("sqlite://{}/chat.db", folder.path().display())
}

async fn open(config: Config, folder: Arc<tempfile::TempDir>) -> ChatNode {
    let archive = archive::open(&config).await.unwrap().unwrap();
    let parts = NodeParts {
        job_log: None,
        archive: Some(Arc::clone(&archive)),
        records: Records::open(&config.database).await.unwrap(),
        media: None,
        config: Arc::new(config),
        extra_routes: axum::Router::new(),
    };
    let node = Node::start(parts, &mut Registry::default()).await.unwrap();
    ChatNode {
        node,
        archive,
        folder,
    }
}

impl ChatNode {
    /// Another node on the same database.
    pub async fn another(&self, mut config: Config) -> Self {
        config.database.url = Some(database(&self.folder).into());
        open(config, Arc::clone(&self.folder)).await
    }

    pub fn address(&self) -> SocketAddr {
        self.node.public_addr()
    }

    pub async fn connect(&self, user: &str) -> RawClient {
        RawClient::connect(self.address(), user).await
    }

    /// Asks over REST as a user.
    pub async fn rest(&self, user: &str, line: &str, body: Value) -> (u16, Value) {
        let token = token(&json!({"sub": user}));
        let head = format!("{line} HTTP/1.1\r\nAuthorization: Bearer {token}");
        let body = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        let (status, answer) = http(self.address(), &head, &body).await;
        (status, serde_json::from_str(&answer).unwrap())
    }

    /// The same, for what must succeed.
    pub async fn done(&self, user: &str, line: &str, body: Value) -> Value {
        let (status, answer) = self.rest(user, line, body).await;
        assert_eq!(status, 200, "{line}: {answer}");
        answer
    }

    /// The same, for what must be refused: the status.
    pub async fn refused(&self, user: &str, line: &str, body: Value) -> u16 {
        let (status, answer) = self.rest(user, line, body).await;
        assert_eq!(answer["status"], json!(status), "{line}: {answer}");
        assert!(answer["detail"].is_string() && answer["title"].is_string());
        assert!(answer["code"].is_number(), "{line}: {answer}");
        status
    }

    /// Asks the server API.
    pub async fn api(&self, method: &str, body: Value) -> Value {
        let head = format!("POST /api/{method} HTTP/1.1\r\nX-API-Key: key");
        let (status, answer) = http(self.address(), &head, &body.to_string()).await;
        assert_eq!(status, 200, "{answer}");
        serde_json::from_str(&answer).unwrap()
    }
}

impl RawClient {
    /// Calls a method; its data, or the error's code.
    pub async fn rpc(&mut self, method: &str, data: Value) -> Result<Value, u64> {
        let command = json!({"rpc": {"method": method, "data": data}});
        let reply = self.call(command).await;
        match reply["error"]["code"].as_u64() {
            Some(code) => Err(code),
            None => Ok(reply["rpc"]["data"].clone()),
        }
    }

    /// Subscribes; the error's code when it is refused.
    pub async fn subscribe(&mut self, channel: &str) -> Result<(), u64> {
        let reply = self.call(json!({"subscribe": {"channel": channel}})).await;
        reply["error"]["code"].as_u64().map_or(Ok(()), Err)
    }

    /// Publishes; the error's code when it is refused.
    pub async fn publish(&mut self, channel: &str, text: &str) -> Result<(), u64> {
        let command = json!({"publish": {"channel": channel, "data": {"text": text}}});
        let reply = self.call(command).await;
        reply["error"]["code"].as_u64().map_or(Ok(()), Err)
    }

    /// Waits for the push that ends a subscription.
    pub async fn unsubscribed(&mut self, channel: &str) -> u64 {
        loop {
            let push = self.push().await;
            let push = &push["push"];
            if push["channel"] == json!(channel) && push["unsubscribe"].is_object() {
                return push["unsubscribe"]["code"].as_u64().unwrap();
            }
        }
    }
}
