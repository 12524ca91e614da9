//! Steps 1 and 9 of a message's life: frames are read from a WebSocket, frames are written to it.
//!
//! fastwebsockets does the handshake and the unmasking; frames are read by `frame`'s incremental
//! reader from a buffer that all sessions of a thread share, because the library's own reader is
//! not cancel safe, keeps 8 KiB a connection and does not bound fragmented messages. One task a
//! connection: it waits for the socket, for its calls and to be woken. The next step is
//! `shared::protocol`.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fastwebsockets::upgrade::{UpgradeFut, is_upgrade_request, upgrade};
use http_body_util::Full;
use hyper::header::{HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use shared::ids::ClientId;
use shared::protocol::Disconnect;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::frame::{self, Event, FrameError, FrameReader, Limits};
use super::origin;
use crate::hub::Client;
use crate::metrics::TransportLabel;
use crate::session::send_queue::SendQueue;
use crate::session::task::SessionTask;
use crate::session::{Now, Services};

/// The subprotocol of JSON clients that offer one.
const SUBPROTOCOL_JSON: &str = "centrifuge-json";
/// How long the peer may take to answer a close frame (client protocol §1.1).
const CLOSE_WAIT: Duration = Duration::from_secs(5);
/// Bytes read by one system call. Shared by all sessions of a thread.
const READ_BYTES: usize = 64 * 1024;
/// Close codes of RFC 6455 §7.4.1.
const CLOSE_NORMAL: u16 = 1000;
const CLOSE_POLICY: u16 = 1008;

thread_local! {
    static READ_BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// Settings of the endpoint.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) limits: Limits,
    pub(crate) message_timeout: Duration,
    pub(crate) write_timeout: Duration,
    pub(crate) allowed_origins: Vec<String>,
}

/// Why a session's connection ends.
#[derive(Debug)]
enum End {
    /// The server ends it.
    Disconnect(Disconnect),
    /// The peer closes; its code is echoed.
    Closed(Option<u16>),
    /// The peer is gone.
    Gone,
    /// The peer broke the WebSocket protocol, or took too long for one message.
    Frame(u16, &'static str),
}

impl From<FrameError> for End {
    fn from(error: FrameError) -> Self {
        let reason = match error {
            FrameError::Protocol => "protocol error",
            FrameError::Utf8 => "invalid utf-8",
            FrameError::TooBig => "message size limit",
        };
        Self::Frame(error.code(), reason)
    }
}

impl From<Disconnect> for End {
    fn from(disconnect: Disconnect) -> Self {
        Self::Disconnect(disconnect)
    }
}

/// Answers a handshake. The session starts when the answer is written: the caller spawns `run`
/// with what comes with it; there is nothing when the handshake is refused.
pub(crate) fn handshake<B>(
    mut request: Request<B>,
    settings: &Settings,
) -> (Response<Full<Bytes>>, Option<UpgradeFut>) {
    match try_handshake(&mut request, settings) {
        Ok((answer, upgraded)) => (answer, Some(upgraded)),
        Err((status, reason)) => (refusal(status, &reason), None),
    }
}

type Accepted = (Response<Full<Bytes>>, UpgradeFut);

fn try_handshake<B>(
    request: &mut Request<B>,
    settings: &Settings,
) -> Result<Accepted, (StatusCode, String)> {
    let refusal = |status, reason: &str| (status, reason.to_owned());
    if request.method() != Method::GET || !is_upgrade_request(request) {
        return Err(refusal(
            StatusCode::BAD_REQUEST,
            "this is a WebSocket endpoint: send a GET with Connection: Upgrade",
        ));
    }
    if !origin::is_allowed(request.headers(), &settings.allowed_origins) {
        return Err(refusal(
            StatusCode::FORBIDDEN,
            "this Origin is not allowed: add it to client.allowed_origins",
        ));
    }
    if !has_good_key(request) {
        return Err(refusal(
            StatusCode::BAD_REQUEST,
            "Sec-WebSocket-Key must be 16 bytes in base64, once",
        ));
    }
    let offered = request.headers().get(SEC_WEBSOCKET_PROTOCOL).cloned();
    let (answer, upgraded) =
        upgrade(request).map_err(|error| refusal(StatusCode::BAD_REQUEST, &error.to_string()))?;
    let mut answer = answer.map(|_| Full::default());
    if offered.is_some_and(|offered| offers_json(&offered)) {
        answer.headers_mut().insert(
            SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_static(SUBPROTOCOL_JSON),
        );
    }
    Ok((answer, upgraded))
}

fn has_good_key<B>(request: &Request<B>) -> bool {
    use base64::Engine;
    let mut keys = request.headers().get_all("sec-websocket-key").iter();
    let (Some(key), None) = (keys.next(), keys.next()) else {
        return false;
    };
    let decoded = base64::engine::general_purpose::STANDARD.decode(key.as_bytes());
    decoded.is_ok_and(|key| key.len() == 16)
}

fn offers_json(offered: &HeaderValue) -> bool {
    let offered = offered.to_str().unwrap_or_default();
    offered
        .split(',')
        .any(|name| name.trim() == SUBPROTOCOL_JSON)
}

/// Builds an answer that refuses a request in plain words.
pub(crate) fn refusal(status: StatusCode, reason: &str) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::from(format!("{reason}\n")));
    *answer.status_mut() = status;
    answer
}

/// Runs one connection from its upgrade to its end.
pub(crate) async fn run(upgraded: UpgradeFut, services: Arc<Services>, settings: Arc<Settings>) {
    let Some((socket, early)) = socket(upgraded).await else {
        return;
    };
    let label = TransportLabel {
        transport: "websocket",
        protocol: "json",
    };
    let connections = services.metrics.connections.get_or_create(&label).clone();
    connections.inc();
    let queue_bytes_max = services.rules.client.send_queue_bytes_max;
    let client = Arc::new(Client {
        id: ClientId::random(),
        queue: SendQueue::new(socket, queue_bytes_max, Arc::clone(&services.metrics)),
        next_tick: crate::session::ticks::NextTick::default(),
    });
    services.hub.clients.welcome(Arc::clone(&client));
    let session = SessionTask::new(services, Arc::clone(&client), Now::read());
    let mut connection = Connection {
        session,
        reader: FrameReader::default(),
        partial_since: None,
        blocked_since: None,
        settings,
    };
    let end = connection.run(early).await;
    // Boxed: an open connection keeps no room for its end.
    Box::pin(finish(connection, &client, end)).await;
    connections.dec();
}

/// Tells the node and the peer that the connection has ended.
async fn finish(connection: Connection, client: &Client, end: End) {
    let disconnect = match &end {
        End::Disconnect(disconnect) => disconnect.clone(),
        End::Closed(_) | End::Gone => Disconnect::CONNECTION_CLOSED,
        End::Frame(code, reason) => Disconnect {
            code: *code,
            reason: (*reason).into(),
        },
    };
    tracing::debug!(client = %client.id, code = disconnect.code, "connection ended");
    let Connection {
        session, settings, ..
    } = connection;
    // The others learn of the end while this one still says goodbye to its peer.
    tokio::join!(
        session.end(&disconnect),
        goodbye(client, end, settings.write_timeout)
    );
}

/// Waits for the upgrade; returns the bare socket and what arrived behind the handshake.
async fn socket(upgraded: UpgradeFut) -> Option<(TcpStream, Bytes)> {
    let stream = match upgraded.await {
        Ok(stream) => stream.into_inner().into_inner(),
        Err(error) => {
            tracing::debug!(%error, "upgrade failed");
            return None;
        }
    };
    match stream.downcast::<TokioIo<TcpStream>>() {
        Ok(parts) => Some((parts.io.into_inner(), parts.read_buf)),
        Err(_) => {
            tracing::error!("the upgraded stream is no TCP socket");
            None
        }
    }
}

/// A session on its socket.
struct Connection {
    session: SessionTask,
    reader: FrameReader,
    /// Since when the rest of a message is awaited.
    partial_since: Option<Instant>,
    /// Since when the peer has taken nothing of what waits for it.
    blocked_since: Option<Instant>,
    settings: Arc<Settings>,
}

impl Connection {
    /// Runs until somebody ends it.
    async fn run(&mut self, early: Bytes) -> End {
        let mut early = early.to_vec();
        let mut result = self.feed(&mut early);
        drop(early);
        loop {
            if let Err(end) = result {
                return end;
            }
            result = self.step().await;
        }
    }

    async fn step(&mut self) -> Result<(), End> {
        let client = Arc::clone(self.session.client());
        let is_blocked = client.queue.is_blocked();
        let now = Instant::now();
        self.blocked_since = is_blocked.then(|| self.blocked_since.unwrap_or(now));
        if !self.session.may_read() && self.partial_since.is_some() {
            // The peer cannot send the rest while it is not read.
            self.partial_since = Some(now);
        }
        let interest = match (self.session.may_read(), is_blocked) {
            (true, true) => Some(Interest::READABLE | Interest::WRITABLE),
            (true, false) => Some(Interest::READABLE),
            (false, true) => Some(Interest::WRITABLE),
            (false, false) => None,
        };
        let deadline = self.deadline();
        // Readiness is cancel safe by its documentation, and nothing is read inside the select.
        tokio::select! {
            ready = async {
                match interest {
                    Some(interest) => client.queue.socket().ready(interest).await,
                    None => std::future::pending().await,
                }
            } => {
                let ready = ready.map_err(|_| End::Gone)?;
                if ready.is_writable() && is_blocked {
                    client.queue.resume();
                    self.blocked_since = None;
                }
                if ready.is_readable() && self.session.may_read() {
                    return self.read(client.queue.socket());
                }
                Ok(())
            }
            event = self.session.next() => Ok(self.session.take(event)?),
            () = async {
                match deadline {
                    Some((at, _)) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            } => Err(deadline.map_or(End::Gone, |(_, end)| end())),
        }
    }

    /// Only a connection with something unfinished has a timer: a message whose rest is missing,
    /// or a peer that does not read.
    fn deadline(&self) -> Option<(Instant, fn() -> End)> {
        let late: fn() -> End = || End::Frame(CLOSE_POLICY, "message took too long");
        let stuck: fn() -> End = || End::Disconnect(Disconnect::WRITE_ERROR);
        if let Some(since) = self.blocked_since {
            return Some((since + self.settings.write_timeout.max(STUCK_MIN), stuck));
        }
        self.partial_since
            .filter(|_| self.session.may_read())
            .map(|since| (since + self.settings.message_timeout, late))
    }

    /// Reads what is there, once: other sessions of the thread come next.
    fn read(&mut self, socket: &TcpStream) -> Result<(), End> {
        READ_BUFFER.with_borrow_mut(|buffer| match socket.try_read(buffer) {
            Ok(0) => Err(End::Gone),
            Ok(count) => self.feed(buffer.get_mut(..count).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(_) => Err(End::Gone),
        })
    }

    fn feed(&mut self, input: &mut [u8]) -> Result<(), End> {
        let session = &mut self.session;
        let fed = self.reader.feed(input, self.settings.limits, |event| {
            match event {
                Event::Message(message) => session.frame(message)?,
                Event::Ping(payload) => session.client().queue.send(frame::pong(payload)),
                Event::Pong => {}
                Event::Close(code) => return Err(End::Closed(code)),
            }
            Ok(())
        });
        self.partial_since = match (self.reader.is_partial(), self.partial_since) {
            (true, None) => Some(Instant::now()),
            (true, since) => since,
            (false, _) => None,
        };
        fed
    }
}

/// A peer that reads nothing for so long is let go even when the configuration says less: a
/// phone that changes cells stalls for a moment.
const STUCK_MIN: Duration = Duration::from_secs(1);

/// Writes the close frame, then waits for the peer's or for its end.
async fn goodbye(client: &Client, end: End, write_timeout: Duration) {
    let queue = &client.queue;
    let (code, reason) = match &end {
        End::Gone => {
            queue.close(false);
            return;
        }
        End::Disconnect(disconnect) => (disconnect.code, disconnect.reason.as_ref()),
        End::Closed(code) => (code.unwrap_or(CLOSE_NORMAL), ""),
        End::Frame(code, reason) => (*code, *reason),
    };
    queue.close_with(frame::close(code, reason));
    let written = async {
        while !queue.is_empty() {
            if queue.socket().writable().await.is_err() || queue.resume() {
                break;
            }
        }
    };
    if tokio::time::timeout(write_timeout, written).await.is_err() {
        return;
    }
    if matches!(end, End::Closed(_)) {
        return;
    }
    // The peer's close frame, or its end, tells that it has read ours.
    drop(tokio::time::timeout(CLOSE_WAIT, discard(queue.socket())).await);
}

/// Reads and drops what the peer still sends, up to its close frame or its end.
async fn discard(socket: &TcpStream) {
    let mut reader = FrameReader::default();
    let limits = Limits {
        message_bytes_max: READ_BYTES,
        fragments_max: 128,
    };
    while socket.readable().await.is_ok() {
        let is_over = READ_BUFFER.with_borrow_mut(|buffer| match socket.try_read(buffer) {
            Ok(0) => true,
            Ok(count) => reader
                .feed(
                    buffer.get_mut(..count).unwrap_or_default(),
                    limits,
                    |event| match event {
                        Event::Close(_) => Err(FrameError::Protocol),
                        _ => Ok(()),
                    },
                )
                .is_err(),
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        });
        if is_over {
            return;
        }
    }
}
