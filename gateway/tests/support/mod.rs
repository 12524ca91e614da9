//! What the gateway's integration tests share: a node in this process, and a raw client that can
//! say things no SDK would say.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use gateway::{Node, NodeParts};
use jsonwebtoken::{EncodingKey, Header, encode};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use shared::config::{Authorize, Config, NamespaceOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

pub const SECRET: &str = "only-for-tests-only-for-tests-only-for-tests";
const PATIENCE: Duration = Duration::from_secs(20);

/// A configuration for one node on the memory broker.
pub fn config() -> Config {
    let mut config = Config {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        ..Config::default()
    };
    config.auth.hmac_secret = Some(SECRET.into());
    config.api.keys.insert("test".to_owned(), "key".into());
    config.drain.delay = Duration::ZERO;
    config.drain.duration = Duration::ZERO;
    let open = NamespaceOptions {
        authorize: Authorize::Public,
        history_size: 100,
        history_ttl: Duration::from_secs(60),
        force_recovery: true,
        presence: true,
        allow_publish_for_subscriber: true,
        allow_presence_for_subscriber: true,
        allow_history_for_subscriber: true,
        ..NamespaceOptions::default()
    };
    config.namespaces.insert("open".to_owned(), open);
    config
        .namespaces
        .insert("closed".to_owned(), NamespaceOptions::default());
    config
}

pub async fn start(config: Config) -> Node {
    let parts = NodeParts {
        config: Arc::new(config),
        job_log: None,
        archive: None,
        records: None,
        media: None,
        extra_routes: axum::Router::new(),
    };
    Node::start(parts, &mut Registry::default()).await.unwrap()
}

pub async fn stop(node: Node) {
    node.drain(CancellationToken::new()).await;
}

pub fn token(claims: &Value) -> String {
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    encode(&Header::default(), claims, &key).unwrap()
}

/// What a server sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    Text(String),
    Close(u16, String),
    Pong(Vec<u8>),
    End,
}

/// A WebSocket client that is told byte for byte what to say.
pub struct RawClient {
    pub socket: TcpStream,
    waiting: std::collections::VecDeque<Value>,
}

impl RawClient {
    /// Does the handshake only.
    pub async fn open(address: SocketAddr) -> Self {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let request = format!(
            "GET /connection/websocket HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(socket.read_u8().await.unwrap());
        }
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        assert!(answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{answer}");
        Self {
            socket,
            waiting: std::collections::VecDeque::new(),
        }
    }

    /// Opens a session as a user.
    pub async fn connect(address: SocketAddr, user: &str) -> Self {
        let mut client = Self::open(address).await;
        let reply = client
            .call(json!({"connect": {"token": token(&json!({"sub": user}))}}))
            .await;
        assert!(reply["connect"]["client"].is_string(), "{reply}");
        client
    }

    /// Sends a text frame.
    pub async fn text(&mut self, text: &str) {
        self.frame(0x81, text.as_bytes()).await;
    }

    /// Sends one masked frame with this first byte.
    pub async fn frame(&mut self, first: u8, payload: &[u8]) {
        let frame = masked(first, payload);
        // The server may have closed already: what it said is still there to read.
        drop(self.socket.write_all(&frame).await);
    }

    /// Sends a command and waits for its reply; pushes that come first are kept.
    pub async fn call(&mut self, mut command: Value) -> Value {
        command["id"] = json!(7);
        self.text(&command.to_string()).await;
        loop {
            let message = self.receive_json().await;
            if message["id"] == json!(7) {
                return message;
            }
            self.waiting.push_back(message);
        }
    }

    /// Waits for the next push.
    pub async fn push(&mut self) -> Value {
        match self.waiting.pop_front() {
            Some(kept) => kept,
            None => self.receive_json().await,
        }
    }

    async fn receive_json(&mut self) -> Value {
        match self.receive().await {
            Received::Text(text) => serde_json::from_str(&text).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// Waits for the close frame; texts before it are skipped.
    pub async fn closed(&mut self) -> (u16, String) {
        loop {
            match self.receive().await {
                Received::Close(code, reason) => return (code, reason),
                Received::Text(_) | Received::Pong(_) => {}
                Received::End => panic!("the connection ended without a close frame"),
            }
        }
    }

    /// Reads one frame.
    pub async fn receive(&mut self) -> Received {
        tokio::time::timeout(PATIENCE, self.read_frame())
            .await
            .expect("the server says something")
    }

    async fn read_frame(&mut self) -> Received {
        let Ok(first) = self.socket.read_u8().await else {
            return Received::End;
        };
        let length = match self.socket.read_u8().await.unwrap() {
            126 => u64::from(self.socket.read_u16().await.unwrap()),
            127 => self.socket.read_u64().await.unwrap(),
            short => u64::from(short),
        };
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.socket.read_exact(&mut payload).await.unwrap();
        match first {
            0x81 => Received::Text(String::from_utf8(payload).unwrap()),
            0x88 => {
                let code = u16::from_be_bytes([payload[0], payload[1]]);
                Received::Close(code, String::from_utf8(payload[2..].to_vec()).unwrap())
            }
            0x8a => Received::Pong(payload),
            other => panic!("unexpected frame {other:#x}"),
        }
    }
}

/// Builds one masked frame.
pub fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x11, 0x22, 0x33, 0x44];
    let mut out = vec![first];
    match payload.len() {
        length @ 0..126 => out.push(0x80 | u8::try_from(length).unwrap()),
        length @ 126..65536 => {
            out.push(0x80 | 126);
            out.extend_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
        }
        length => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&mask);
    out.extend(
        payload
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    out
}

/// Sends a request and reads the whole answer.
pub async fn http(address: SocketAddr, head: &str, body: &str) -> (u16, String) {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "{head}\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    drop(
        tokio::time::timeout(PATIENCE, socket.read_to_end(&mut answer))
            .await
            .unwrap(),
    );
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    (status.unwrap_or(0), body.to_owned())
}
