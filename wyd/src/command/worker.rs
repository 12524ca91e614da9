//! `wyd worker`: a worker replica.

use prometheus_client::registry::Registry;
use shared::config::Config;
use shared::config::check::Role;
use tokio_util::sync::CancellationToken;

use super::{archive, kafka, until_stopped};
use crate::cli::WorkerArgs;
use crate::internal::{Internal, InternalPort};
use crate::process::{Failure, Signals, Source};

pub(crate) async fn run(source: Source<'_>, args: WorkerArgs) -> Result<(), Failure> {
    if let Some(role) = args
        .roles
        .iter()
        .find(|role| *role != workers::persist::ROLE)
    {
        return Err(Failure::Configuration(vec![format!(
            "--roles: {role:?} is no role of this version; it has `{}`",
            workers::persist::ROLE
        )]));
    }
    let config = source.start(&Config::default(), Role::Worker)?;
    let signals = Signals::hear()?;
    let internal = InternalPort::bind(config.internal_listen).await?;
    let mut registry = Registry::default();
    let missing = |what: &str| Failure::Configuration(vec![format!("{what} is not configured")]);
    let job_log = kafka(&config)?.ok_or_else(|| missing("kafka.brokers"))?;
    let archive = archive(&config)
        .await?
        .ok_or_else(|| missing("database.url"))?;
    let cancel = CancellationToken::new();
    let persist = workers::persist::start(
        &config.worker,
        job_log,
        archive,
        workers::Metrics::new(&mut registry),
        cancel.clone(),
    );
    let persist = persist
        .await
        .map_err(|error| Failure::Dependency(vec![error.to_string()]))?;
    let mut running = tokio::spawn(persist);
    let internal = internal.serve(Internal {
        gateway: None,
        registry,
    });
    tracing::info!(internal = %internal.address, roles = args.roles.join(","), "worker is ready");
    until_stopped(&signals, &mut running).await?;
    tracing::info!("worker finishes its batch");
    cancel.cancel();
    tokio::select! {
        ended = running => ended.map_err(|error| Failure::Other(format!("worker: {error}")))?,
        () = signals.hurry.cancelled() => {}
    }
    internal.stop();
    Ok(())
}
