//! The public port: accepts, bounds what is not connected yet, and hands HTTP on.

use std::convert::Infallible;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use shared::config::LimitsConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::websocket::{self, Settings};
use crate::session::Services;

/// Where clients open a WebSocket.
const WEBSOCKET_PATH: &str = "/connection/websocket";
/// Header lines and bytes of one request; hyper's own bounds are an order wider.
const HEADERS_MAX: usize = 64;
const HEADER_BYTES_MAX: usize = 16 * 1024;
/// How long one request may take, its body included: a body that drips holds nobody up for long.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long accepting pauses when the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The public port.
pub(crate) struct Server {
    pub(crate) services: Arc<Services>,
    pub(crate) limits: LimitsConfig,
    /// `None` when the WebSocket endpoint is off.
    pub(crate) websocket: Option<Arc<Settings>>,
    /// Every other path.
    pub(crate) routes: Router,
    /// Every connection's task: a drain waits for them.
    pub(crate) connections: TaskTracker,
    pub(crate) counts: Counts,
    /// Cancelled when nothing new may come.
    pub(crate) accepting: CancellationToken,
}

/// How many connections are where.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Accepted and not ended.
    open: AtomicUsize,
    /// Accepted, with no complete request yet.
    handshakes: AtomicUsize,
}

/// A connection without a complete request counts as long as this lives.
struct Handshake(Arc<Server>);

impl Handshake {
    fn new(server: Arc<Server>) -> Self {
        server.counts.handshakes.fetch_add(1, Ordering::Relaxed);
        Self(server)
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.0.counts.handshakes.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts as long as it lives.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Server {
    /// Accepts connections until the node drains.
    pub(crate) async fn run(self: Arc<Self>, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                () = self.accepting.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((socket, _)) => {
                    let server = Arc::clone(&self);
                    self.connections.spawn(server.serve(socket));
                }
                Err(error) if is_peer_fault(&error) => {}
                Err(error) => {
                    // Out of descriptors: the ones in use go on, new ones wait in the backlog.
                    tracing::warn!(%error, "connections cannot be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn serve(self: Arc<Self>, socket: TcpStream) {
        // Small frames must not wait for a full segment.
        if socket.set_nodelay(true).is_err() {
            return;
        }
        let handshakes = self.counts.handshakes.load(Ordering::Relaxed);
        if handshakes >= self.limits.handshakes_max {
            // Dropped, not answered: a flood of half-open requests gets no work done for it.
            return;
        }
        let server = Arc::clone(&self);
        // Released by the first complete request header.
        let handshake = Arc::new(Mutex::new(Some(Handshake::new(Arc::clone(&self)))));
        let pending = Arc::clone(&handshake);
        let service = service_fn(move |request| {
            let server = Arc::clone(&server);
            drop(pending.lock().take());
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.header_timeout)
            .max_headers(HEADERS_MAX)
            .max_buf_size(HEADER_BYTES_MAX)
            .serve_connection(TokioIo::new(socket), service)
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.accepting.cancelled() => {
                // The request under way is answered, then the connection ends.
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "HTTP connection failed");
        }
        drop(handshake);
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        if request.uri().path() == WEBSOCKET_PATH
            && let Some(settings) = self.websocket.clone()
        {
            return self.open_websocket(request, settings).map(Body::new);
        }
        let answered = self.routes.clone().oneshot(request.map(Body::new));
        match tokio::time::timeout(REQUEST_TIMEOUT, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(never)) => match never {},
            Err(_) => websocket::refusal(
                StatusCode::REQUEST_TIMEOUT,
                "the request took too long to arrive or to answer",
            )
            .map(Body::new),
        }
    }

    fn open_websocket(
        self: Arc<Self>,
        request: Request<Incoming>,
        settings: Arc<Settings>,
    ) -> Response<Full<Bytes>> {
        let open = self.counts.open.load(Ordering::Relaxed);
        if self.accepting.is_cancelled() {
            return busy("this node is going away: try again");
        }
        if self.limits.connections_max > 0 && open >= self.limits.connections_max {
            return busy("this node has as many connections as it may: try again");
        }
        let (answer, upgraded) = websocket::handshake(request, &settings);
        if let Some(upgraded) = upgraded {
            let server = Arc::clone(&self);
            self.connections.spawn(async move {
                let _open = Counted::new(&server.counts.open);
                websocket::run(upgraded, Arc::clone(&server.services), settings).await;
            });
        }
        answer
    }
}

/// Refuses before the upgrade: SDKs back off and try again.
fn busy(reason: &str) -> Response<Full<Bytes>> {
    let mut answer = websocket::refusal(StatusCode::SERVICE_UNAVAILABLE, reason);
    let headers = answer.headers_mut();
    headers.insert(RETRY_AFTER, hyper::header::HeaderValue::from_static("1"));
    headers.insert(CONNECTION, hyper::header::HeaderValue::from_static("close"));
    answer
}

/// True for errors of one connection that was gone before it was accepted.
fn is_peer_fault(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused
    )
}
