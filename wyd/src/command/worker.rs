//! `wyd worker`: a worker replica.

use std::sync::Arc;

use gateway::ServerPublisher;
use prometheus_client::registry::Registry;
use shared::config::check::Role;
use shared::config::{Config, WorkerRole, WorkerRoles};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use workers::push::console::ConsolePushes;
use workers::push::metrics::PushMetrics;
use workers::upload::ChannelPublisher;

use super::{archive, kafka, records, with_sources};
use crate::cli::WorkerArgs;
use crate::internal::{Internal, InternalPort};
use crate::media::{Announcer, media_store};
use crate::process::{Failure, Signals, Source};
use crate::push::{ByPresence, provider};
use crate::roles::{PushNeeds, WorkerParts, Workers};

pub(crate) async fn run(source: Source<'_>, args: WorkerArgs) -> Result<(), Failure> {
    let roles = WorkerRoles::parse(&args.roles)
        .map_err(|problem| Failure::Configuration(vec![format!("--roles: {problem}")]))?;
    let config = source.start(&Config::default(), Role::Worker(roles))?;
    let signals = Signals::hear()?;
    let internal = InternalPort::bind(config.internal_listen).await?;
    let mut registry = Registry::default();
    let console = ConsolePushes::new(config.push.console_pushes_max);
    let background = Background::default();
    let missing = || Failure::Configuration(vec!["kafka.brokers is not configured".to_owned()]);
    let job_log = kafka(&config)?.ok_or_else(missing)?;
    let media = media_store(&config)
        .await?
        .filter(|_| roles.has(WorkerRole::Upload));
    let publishing = CancellationToken::new();
    let announcer: Option<Arc<dyn ChannelPublisher>> = match &media {
        Some(_) => {
            let log = Arc::clone(&job_log);
            let connected = ServerPublisher::connect(&config, log, &mut registry, &publishing);
            let connected = connected
                .await
                .map_err(|error| Failure::Dependency(vec![with_sources(&error)]))?;
            Some(Arc::new(Announcer(connected)))
        }
        None => None,
    };
    let parts = WorkerParts {
        job_log,
        archive: archive(&config).await?,
        records: records(&config).await?,
        media,
        announcer,
        metrics: workers::Metrics::new(&mut registry),
        push: match roles.has(WorkerRole::Push) {
            true => Some(push_needs(&config, &console, &background, &mut registry).await?),
            false => None,
        },
        config: Arc::clone(&config),
    };
    let mut workers = Workers::start(roles, &parts).await?;
    let internal = internal.serve(Internal {
        gateway: None,
        pushes: console,
        registry,
    });
    let names: Vec<_> = roles.iter().map(|role| role.name()).collect();
    tracing::info!(internal = %internal.address, roles = names.join(","), "worker is ready");
    workers.until_stopped(&signals).await?;
    tracing::info!("workers finish their batches");
    tokio::select! {
        ended = workers.finish() => ended?,
        () = signals.hurry.cancelled() => {}
    }
    publishing.cancel();
    internal.stop();
    Ok(())
}

/// What runs beside the workers, until this is dropped.
struct Background {
    tasks: TaskTracker,
    cancel: CancellationToken,
    _guard: DropGuard,
}

impl Default for Background {
    fn default() -> Self {
        let cancel = CancellationToken::new();
        Self {
            tasks: TaskTracker::new(),
            _guard: cancel.clone().drop_guard(),
            cancel,
        }
    }
}

async fn push_needs(
    config: &Config,
    console: &ConsolePushes,
    background: &Background,
    registry: &mut Registry,
) -> Result<PushNeeds, Failure> {
    let missing = |key: &str| Failure::Configuration(vec![format!("{key} is not configured")]);
    let url = config.broker.redis_url.as_ref();
    let url = url.ok_or_else(|| missing("broker.redis_url"))?;
    let presence = gateway::broker::redis_streams::presence_reader(
        &config.broker,
        url.expose(),
        &background.tasks,
        background.cancel.clone(),
    );
    let presence = presence
        .await
        .map_err(|error| Failure::Dependency(vec![format!("redis: {}", with_sources(&error))]))?;
    let metrics = PushMetrics::new(registry);
    Ok(PushNeeds {
        online: Arc::new(ByPresence(presence)),
        provider: provider(config, console, metrics.clone())?,
        metrics,
    })
}
