//! `wyd dev`: gateway and worker in one process on embedded parts, with the chat demo.
//!
//! `defaults` is its configuration, `secrets` what its data folder keeps for itself, `demo` the
//! chat page. Needs no service and uses none it finds in the environment.

mod defaults;
mod demo;
mod files;
mod secrets;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use gateway::{Node, NodeParts};
use prometheus_client::registry::Registry;
use shared::config::check::Role;
use shared::config::{Config, WorkerRoles};
use store::job_log::{EmbeddedJobLog, JobLog};
use store::media::{FileStore, MediaStore};
use workers::push::console::ConsolePushes;
use workers::push::metrics::PushMetrics;

use super::{archive, archive_failure, records};
use crate::cli::DevArgs;
use crate::internal::{Gateway, Internal, InternalPort};
use crate::media::Announcer;
use crate::process::{Failure, Signals, Source};
use crate::push::{ByPresence, provider};
use crate::roles::{PushNeeds, WorkerParts, Workers};

pub(crate) async fn run(source: Source<'_>, args: DevArgs) -> Result<(), Failure> {
    let data = &args.data;
    let cannot = |error: std::io::Error| {
        Failure::Configuration(vec![format!("--data {}: {error}", data.display())])
    };
    std::fs::create_dir_all(data).map_err(cannot)?;
    let secrets = secrets::Secrets::of(data).map_err(cannot)?;
    let (environment, ignored) = defaults::without_services(source.environment.clone());
    let source = Source {
        environment: &environment,
        ..source
    };
    let config = source.start(&defaults::config(data, secrets), Role::Dev)?;
    for name in ignored {
        tracing::info!(name, "is set, but wyd dev uses its embedded parts");
    }
    let config = Arc::new(defaults::with_own_origin(&config));
    let signals = Signals::hear()?;
    let internal = InternalPort::bind(config.internal_listen).await?;
    store::archive::migrate(&config)
        .await
        .map_err(|error| archive_failure(&error))?;
    let archive = archive(&config).await?;
    let records = records(&config).await?;
    let job_log = embedded_job_log(data).await?;
    let mut registry = Registry::default();
    let metrics = workers::Metrics::new(&mut registry);
    let files = Arc::new(open_files(&config).await?);
    let media: Arc<dyn MediaStore> = Arc::clone(&files) as Arc<dyn MediaStore>;
    let parts = NodeParts {
        config: Arc::clone(&config),
        job_log: Some(Arc::clone(&job_log)),
        archive: archive.clone(),
        records: records.clone(),
        media: Some(Arc::clone(&media)),
        extra_routes: demo::routes(Arc::clone(&config)).merge(files::routes(files)),
    };
    let node = Node::start(parts, &mut registry).await;
    let node = Arc::new(node.map_err(|error| super::gateway::failure(&error))?);
    let console = ConsolePushes::new(config.push.console_pushes_max);
    let push = Some(push_needs(&config, &node, &console, &mut registry)?);
    let parts = WorkerParts {
        config: Arc::clone(&config),
        job_log,
        archive,
        records,
        media: Some(media),
        announcer: Some(Arc::new(Announcer(node.server_publisher()))),
        metrics,
        push,
    };
    let mut workers = Workers::start(WorkerRoles::ALL, &parts).await?;
    let internal = internal.serve(Internal {
        gateway: Some(Gateway::new(Arc::clone(&node), &config)),
        pushes: console,
        registry,
    });
    greet(node.public_addr(), internal.address, data);
    let stopped = workers.until_stopped(&signals).await;
    node.drain(signals.hurry).await;
    if stopped.is_ok() {
        // What was accepted until now goes to the archive before the process ends.
        workers.finish().await?;
    }
    internal.stop();
    stopped
}

async fn open_files(config: &Config) -> Result<FileStore, Failure> {
    let opened = FileStore::open(&config.media.folder).await;
    opened.map_err(|error| Failure::Configuration(vec![super::with_sources(&error)]))
}

fn push_needs(
    config: &Config,
    node: &Node,
    console: &ConsolePushes,
    registry: &mut Registry,
) -> Result<PushNeeds, Failure> {
    let metrics = PushMetrics::new(registry);
    Ok(PushNeeds {
        online: Arc::new(ByPresence(node.presence())),
        provider: provider(config, console, metrics.clone())?,
        metrics,
    })
}

async fn embedded_job_log(data: &Path) -> Result<Arc<dyn JobLog>, Failure> {
    let opened = EmbeddedJobLog::open(&sqlite_url(&data.join("jobs.db"))).await;
    let job_log = opened.map_err(|error| Failure::Dependency(vec![super::with_sources(&error)]))?;
    Ok(Arc::new(job_log))
}

/// Says where everything is, on stdout: stderr is for the logs.
fn greet(public: SocketAddr, internal: SocketAddr, data: &Path) {
    let url = |address: SocketAddr| {
        let is_local = address.ip().is_loopback() || address.ip().is_unspecified();
        match address {
            _ if is_local => format!("http://localhost:{}/", address.port()),
            _ => format!("http://{address}/"),
        }
    };
    println!(
        "wyd {} is running; Ctrl-C stops it",
        env!("CARGO_PKG_VERSION")
    );
    println!("  chat demo         {}", url(public));
    println!("  operator console  {}", url(internal));
    println!("  data              {}", data.display());
}

pub(crate) fn sqlite_url(path: &Path) -> String {
    format!("sqlite://{}", path.display())
}
