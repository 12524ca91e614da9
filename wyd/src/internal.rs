//! The internal port: metrics, health and the operator console. Also serves the embedded pages.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use gateway::Node;
use prometheus_client::registry::Registry;
use rust_embed::RustEmbed;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::process::Failure;

/// Pages load nothing from elsewhere; the demo connects to its own host only.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
                      connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

#[derive(RustEmbed)]
#[folder = "../web"]
struct Pages;

/// What the internal port tells of.
pub(crate) struct Internal {
    /// The gateway, when this process has one.
    pub(crate) node: Option<Arc<Node>>,
    /// All metrics of the process.
    pub(crate) registry: Registry,
}

/// The internal port while it is served.
pub(crate) struct Serving {
    /// Where.
    pub(crate) address: SocketAddr,
    cancel: CancellationToken,
}

impl Serving {
    /// Stops serving.
    pub(crate) fn stop(&self) {
        self.cancel.cancel();
    }
}

impl Internal {
    /// Begins to serve.
    pub(crate) async fn serve(self, address: SocketAddr) -> Result<Serving, Failure> {
        let cannot = |error: std::io::Error| {
            Failure::Configuration(vec![format!(
                "cannot listen on {address}: {error} (set `internal_listen` or WYD__INTERNAL_LISTEN)"
            )])
        };
        let listener = TcpListener::bind(address).await.map_err(cannot)?;
        let address = listener.local_addr().map_err(cannot)?;
        let health = match &self.node {
            Some(node) => gateway::node::health_routes(node.readiness()),
            // A worker has no traffic to refuse: it is ready as long as it lives.
            None => Router::new()
                .route("/healthz", get(|| async { "ok\n" }))
                .route("/readyz", get(|| async { Json(Vec::<String>::new()) })),
        };
        let routes = Router::new()
            .route("/metrics", get(metrics))
            .route("/stats.json", get(stats))
            .fallback(console_page)
            .with_state(Arc::new(self))
            .merge(health);
        let cancel = CancellationToken::new();
        let stopped = cancel.clone();
        tokio::spawn(async move {
            let serving = axum::serve(listener, routes)
                .with_graceful_shutdown(async move { stopped.cancelled().await });
            if let Err(error) = serving.await {
                tracing::error!(%error, "internal port failed");
            }
        });
        Ok(Serving { address, cancel })
    }
}

/// Serves a page of the chat demo.
pub(crate) async fn chat_page(uri: Uri) -> Response {
    page("chat", uri.path())
}

async fn console_page(uri: Uri) -> Response {
    page("console", uri.path())
}

fn page(folder: &str, path: &str) -> Response {
    let path = match path.trim_start_matches('/') {
        "" => "index.html",
        path => path,
    };
    let Some(file) = Pages::get(&format!("{folder}/{path}")) else {
        return (StatusCode::NOT_FOUND, "there is nothing here\n").into_response();
    };
    let content_type = match path.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "application/octet-stream",
    };
    let headers = [
        (CONTENT_TYPE, content_type),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (CACHE_CONTROL, "no-cache"),
    ];
    (headers, file.data.into_owned()).into_response()
}

async fn metrics(State(internal): State<Arc<Internal>>) -> Response {
    let mut text = String::new();
    if let Err(error) = prometheus_client::encoding::text::encode(&mut text, &internal.registry) {
        tracing::error!(%error, "metrics cannot be written");
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, content_type)], text).into_response()
}

async fn stats(State(internal): State<Arc<Internal>>) -> Response {
    let Some(node) = &internal.node else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let stats = node.stats();
    Json(json!({
        "node": node.id().as_str(),
        "version": env!("CARGO_PKG_VERSION"),
        "connections": stats.connections,
        "users": stats.users,
        "subscriptions": stats.subscriptions,
        "channels": stats.channels,
        "deliveries": stats.deliveries,
        "uptime_seconds": stats.uptime.as_secs(),
        "not_ready": node.readiness().reasons(),
    }))
    .into_response()
}
