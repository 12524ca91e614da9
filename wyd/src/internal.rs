//! The internal port: metrics, health and the operator console. Also serves the embedded pages.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use gateway::Node;
use prometheus_client::registry::Registry;
use rust_embed::RustEmbed;
use serde_json::{Value, json};
use shared::config::{BrokerKind, Config, NamespaceOptions};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use workers::push::console::ConsolePushes;

use crate::process::Failure;

/// Pages load nothing from elsewhere; the demo connects to its own host only.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

#[derive(RustEmbed)]
#[folder = "../web"]
struct Pages;

/// What the internal port tells of.
pub(crate) struct Internal {
    /// The gateway, when this process has one.
    pub(crate) gateway: Option<Gateway>,
    /// Pushes that were shown here instead of on a device.
    pub(crate) pushes: ConsolePushes,
    /// All metrics of the process.
    pub(crate) registry: Registry,
}

/// A gateway as the console shows it.
pub(crate) struct Gateway {
    node: Arc<Node>,
    broker: &'static str,
    namespaces: Value,
}

impl Gateway {
    /// Takes what the console shows of the configuration.
    pub(crate) fn new(node: Arc<Node>, config: &Config) -> Self {
        let broker = match config.broker.kind() {
            BrokerKind::Memory => "memory",
            BrokerKind::Redis => "redis",
        };
        let without = config.without_namespace.iter().map(|options| ("", options));
        let named = config.namespaces.iter();
        let named = named.map(|(name, options)| (name.as_str(), options));
        Self {
            node,
            broker,
            namespaces: without
                .chain(named)
                .map(|(name, options)| json!({ "name": name, "class": class(options) }))
                .collect(),
        }
    }
}

fn class(options: &NamespaceOptions) -> &'static str {
    if options.durable {
        "durable"
    } else if options.has_history() {
        "recoverable"
    } else {
        "ephemeral"
    }
}

/// The internal port, bound but not answered yet: a port that is taken is found before anything
/// else has begun.
pub(crate) struct InternalPort {
    listener: TcpListener,
    address: SocketAddr,
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

impl InternalPort {
    /// Binds the port.
    pub(crate) async fn bind(address: SocketAddr) -> Result<Self, Failure> {
        let cannot = |error: std::io::Error| {
            Failure::Configuration(vec![format!(
                "internal_listen: cannot listen on {address}: {error}; set WYD__INTERNAL_LISTEN \
                 to an address that is free"
            )])
        };
        let listener = TcpListener::bind(address).await.map_err(cannot)?;
        let address = listener.local_addr().map_err(cannot)?;
        Ok(Self { listener, address })
    }

    /// Begins to serve.
    pub(crate) fn serve(self, internal: Internal) -> Serving {
        let health = match &internal.gateway {
            Some(gateway) => gateway::node::health_routes(gateway.node.readiness()),
            // A worker has no traffic to refuse: it is ready as long as it lives.
            None => Router::new()
                .route("/healthz", get(|| async { "ok\n" }))
                .route("/readyz", get(|| async { Json(Vec::<String>::new()) })),
        };
        let routes = Router::new()
            .route("/metrics", get(metrics))
            .route("/stats.json", get(stats))
            .route("/pushes.json", get(pushes))
            .fallback(console_page)
            .with_state(Arc::new(internal))
            .merge(health);
        let cancel = CancellationToken::new();
        let stopped = cancel.clone();
        tokio::spawn(async move {
            let serving = axum::serve(self.listener, routes)
                .with_graceful_shutdown(async move { stopped.cancelled().await });
            if let Err(error) = serving.await {
                tracing::error!(%error, "internal port failed");
            }
        });
        Serving {
            address: self.address,
            cancel,
        }
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
    // A debug build reads the pages from the disk: no name may lead out of the folder.
    let is_inside = path.split('/').all(|part| !part.is_empty() && part != "..");
    let name = format!("{folder}/{path}");
    let Some(file) = Pages::get(&name).filter(|_| is_inside) else {
        return (StatusCode::NOT_FOUND, "there is nothing here\n").into_response();
    };
    let headers = [
        (CONTENT_TYPE, content_type(path)),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-cache"),
    ];
    (headers, file.data.into_owned()).into_response()
}

fn content_type(path: &str) -> &'static str {
    match path.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "application/octet-stream",
    }
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
    let Some(gateway) = &internal.gateway else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let node = &gateway.node;
    let stats = node.stats();
    let figures = json!({
        "node": node.id().as_str(),
        "version": env!("CARGO_PKG_VERSION"),
        "connections": stats.connections,
        "users": stats.users,
        "subscriptions": stats.subscriptions,
        "channels": stats.channels,
        "deliveries": stats.deliveries,
        "uptime_seconds": stats.uptime.as_secs(),
        "not_ready": node.readiness().reasons(),
        "resident_bytes": resident_bytes(),
        "broker": gateway.broker,
        "namespaces": gateway.namespaces,
    });
    ([(CACHE_CONTROL, "no-store")], Json(figures)).into_response()
}

async fn pushes(State(internal): State<Arc<Internal>>) -> Response {
    ([(CACHE_CONTROL, "no-store")], Json(internal.pushes.last())).into_response()
}

/// Returns the memory that is resident; `None` where the system does not tell.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_come_with_a_policy_and_know_no_other_host() {
        for folder in ["chat", "console"] {
            let page = page(folder, "/");
            assert_eq!(page.status(), StatusCode::OK);
            assert_eq!(page.headers()[CONTENT_SECURITY_POLICY], POLICY);
        }
        for name in Pages::iter() {
            let file = Pages::get(&name).unwrap();
            let text = String::from_utf8_lossy(&file.data);
            assert!(!text.contains("https://"), "{name} names another host");
            // Both are what the policy forbids: the browser would leave them out.
            let is_inline = text.contains(" style=") || text.contains(" onclick=");
            assert!(!(name.ends_with(".html") && is_inline), "{name}");
            assert_ne!(content_type(&name), "application/octet-stream", "{name}");
        }
    }

    #[test]
    fn only_the_pages_of_the_folder_are_served() {
        for path in [
            "/../console/index.html",
            "/etc/passwd",
            "/chat/index.html",
            "//",
        ] {
            let page = page("chat", path);
            let is_index = path == "//";
            assert_eq!(page.status() == StatusCode::OK, is_index, "{path}");
        }
    }
}
