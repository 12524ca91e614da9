//! `wyd worker`: a worker replica.

use std::sync::Arc;

use prometheus_client::registry::Registry;
use shared::config::check::Role;
use shared::config::{Config, WorkerRoles};

use super::{archive, kafka};
use crate::cli::WorkerArgs;
use crate::internal::{Internal, InternalPort};
use crate::process::{Failure, Signals, Source};
use crate::roles::{WorkerParts, Workers};

pub(crate) async fn run(source: Source<'_>, args: WorkerArgs) -> Result<(), Failure> {
    let roles = WorkerRoles::parse(&args.roles)
        .map_err(|problem| Failure::Configuration(vec![format!("--roles: {problem}")]))?;
    let config = source.start(&Config::default(), Role::Worker(roles))?;
    let signals = Signals::hear()?;
    let internal = InternalPort::bind(config.internal_listen).await?;
    let mut registry = Registry::default();
    let missing = || Failure::Configuration(vec!["kafka.brokers is not configured".to_owned()]);
    let parts = WorkerParts {
        job_log: kafka(&config)?.ok_or_else(missing)?,
        archive: archive(&config).await?,
        metrics: workers::Metrics::new(&mut registry),
        config: Arc::clone(&config),
    };
    let mut workers = Workers::start(roles, &parts).await?;
    let internal = internal.serve(Internal {
        gateway: None,
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
    internal.stop();
    Ok(())
}
