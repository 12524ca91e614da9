//! `wyd dev`: gateway and worker in one process on embedded parts, with the chat demo.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use gateway::{Node, NodeParts};
use prometheus_client::registry::Registry;
use serde::Deserialize;
use serde_json::{Value, json};
use shared::config::check::Role;
use shared::config::{Authorize, BrokerKind, Config, DrainConfig, NamespaceOptions, Secret};
use store::archive::MessageArchive;
use store::job_log::{EmbeddedJobLog, JobLog};
use tokio_util::sync::CancellationToken;

use super::{archive, archive_failure, token};
use crate::cli::DevArgs;
use crate::internal::{self, Internal};
use crate::process::{Failure, Signals, Source};

/// Random bytes of a secret.
const SECRET_BYTES: usize = 32;
/// How long the demo's tokens are good.
const TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);
/// Longest name in the demo.
const NAME_BYTES_MAX: usize = 64;
const HISTORY_SIZE: usize = 1000;
const HISTORY_TTL: Duration = Duration::from_secs(24 * 3600);

pub(crate) async fn run(source: Source<'_>, args: DevArgs) -> Result<(), Failure> {
    let data = &args.data;
    let cannot = |error: std::io::Error| {
        Failure::Configuration(vec![format!("--data {}: {error}", data.display())])
    };
    std::fs::create_dir_all(data).map_err(cannot)?;
    let config = source.start(&defaults(data).map_err(cannot)?, Role::Dev)?;
    let signals = Signals::hear()?;
    store::archive::migrate(&config)
        .await
        .map_err(|error| archive_failure(&error))?;
    let archive = archive(&config).await?;
    let job_log = embedded_job_log(data).await?;
    let mut registry = Registry::default();
    let cancel = CancellationToken::new();
    let persist = start_persist(&config, &job_log, archive.clone(), &mut registry, &cancel).await?;
    let parts = NodeParts {
        config: Arc::clone(&config),
        job_log: Some(job_log),
        archive,
        extra_routes: demo(Arc::clone(&config)),
    };
    let node = Node::start(parts, &mut registry).await;
    let node = Arc::new(node.map_err(|error| super::gateway::failure(&error))?);
    let internal = Internal {
        node: Some(Arc::clone(&node)),
        registry,
    };
    let internal = internal.serve(config.internal_listen).await?;
    println!(
        "wyd {} is running; Ctrl-C stops it",
        env!("CARGO_PKG_VERSION")
    );
    println!(
        "  chat demo         http://localhost:{}/",
        node.public_addr().port()
    );
    println!(
        "  operator console  http://localhost:{}/",
        internal.address.port()
    );
    println!("  data              {}", data.display());
    signals.stop.cancelled().await;
    node.drain(signals.hurry).await;
    cancel.cancel();
    persist
        .await
        .map_err(|error| Failure::Other(format!("worker: {error}")))?;
    internal.stop();
    Ok(())
}

/// The embedded configuration; file and environment win over it.
fn defaults(data: &Path) -> std::io::Result<Config> {
    let mut config = Config::default();
    config.auth.hmac_secret = Some(secret(&data.join("jwt-secret"))?);
    config
        .api
        .keys
        .insert("default".to_owned(), secret(&data.join("api-key"))?);
    config.broker.kind = Some(BrokerKind::Memory);
    config.database.url = Some(sqlite_url(&data.join("archive.db")).into());
    config.listen.set_ip([127, 0, 0, 1].into());
    config.internal_listen.set_ip([127, 0, 0, 1].into());
    // One person's process: nobody else's load balancer must notice that it stops.
    config.drain = DrainConfig {
        delay: Duration::ZERO,
        duration: Duration::ZERO,
        ..DrainConfig::default()
    };
    config.client.allowed_origins = ["http://localhost:*", "http://127.0.0.1:*"]
        .map(str::to_owned)
        .to_vec();
    config.namespaces.insert("chat".to_owned(), chat());
    config.namespaces.insert("live".to_owned(), live());
    Ok(config)
}

/// Durable: what is said is kept.
fn chat() -> NamespaceOptions {
    NamespaceOptions {
        durable: true,
        history_size: HISTORY_SIZE,
        history_ttl: HISTORY_TTL,
        force_recovery: true,
        allow_history_for_subscriber: true,
        ..live()
    }
}

/// Ephemeral: who types, who is here.
fn live() -> NamespaceOptions {
    NamespaceOptions {
        authorize: Authorize::Public,
        presence: true,
        join_leave: true,
        force_push_join_leave: true,
        allow_publish_for_subscriber: true,
        allow_presence_for_subscriber: true,
        ..NamespaceOptions::default()
    }
}

async fn embedded_job_log(data: &Path) -> Result<Arc<dyn JobLog>, Failure> {
    let opened = EmbeddedJobLog::open(&sqlite_url(&data.join("jobs.db"))).await;
    let job_log = opened.map_err(|error| Failure::Dependency(vec![super::with_sources(&error)]))?;
    Ok(Arc::new(job_log))
}

async fn start_persist(
    config: &Config,
    job_log: &Arc<dyn JobLog>,
    archive: Option<Arc<dyn MessageArchive>>,
    registry: &mut Registry,
    cancel: &CancellationToken,
) -> Result<tokio::task::JoinHandle<()>, Failure> {
    let Some(archive) = archive else {
        return Err(Failure::Configuration(vec![
            "database.url is not set".to_owned(),
        ]));
    };
    let job_log = Arc::clone(job_log);
    let persist =
        workers::persist::start(&config.worker, job_log, archive, registry, cancel.clone());
    let persist = persist
        .await
        .map_err(|error| Failure::Dependency(vec![error.to_string()]))?;
    Ok(tokio::spawn(persist))
}

fn sqlite_url(path: &Path) -> String {
    format!("sqlite://{}", path.display())
}

/// Reads a secret, made at the first start and readable by its owner only.
fn secret(path: &Path) -> std::io::Result<Secret> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    match std::fs::read_to_string(path) {
        Ok(known) if !known.trim().is_empty() => return Ok(known.trim().into()),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        Ok(_) | Err(_) => {}
    }
    let bytes: [u8; SECRET_BYTES] = rand::random();
    let made: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    writeln!(file, "{made}")?;
    Ok(made.into())
}

/// The demo's pages, and the tokens it connects with. Nobody proves who they are here, so these
/// routes exist in `wyd dev` only.
fn demo(config: Arc<Config>) -> Router {
    Router::new()
        .route("/dev/token", get(demo_token))
        .fallback(internal::chat_page)
        .with_state(config)
}

#[derive(Debug, Deserialize)]
struct TokenQuery {
    #[serde(default)]
    user: String,
}

async fn demo_token(
    State(config): State<Arc<Config>>,
    Query(query): Query<TokenQuery>,
) -> Response {
    let name = query.user.trim();
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        let error = format!("user: a name has 1 to {NAME_BYTES_MAX} bytes\n");
        return (StatusCode::BAD_REQUEST, error).into_response();
    }
    let info: Value = json!({ "name": name });
    match token::mint(&config, name, TOKEN_TTL, &[], &info) {
        Ok(token) => axum::Json(json!({ "token": token })).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
