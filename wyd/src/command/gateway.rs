//! `wyd gateway`: a gateway replica.

use std::sync::Arc;

use axum::Router;
use gateway::{Node, NodeParts, StartError};
use prometheus_client::registry::Registry;
use shared::config::Config;
use shared::config::check::Role;
use workers::push::console::ConsolePushes;

use super::{archive, kafka, records, with_sources};
use crate::internal::{Gateway, Internal, InternalPort};
use crate::media::media_store;
use crate::process::{Failure, Signals, Source};

pub(crate) async fn run(source: Source<'_>) -> Result<(), Failure> {
    let config = source.start(&Config::default(), Role::Gateway)?;
    let signals = Signals::hear()?;
    let internal = InternalPort::bind(config.internal_listen).await?;
    let mut registry = Registry::default();
    let parts = NodeParts {
        job_log: kafka(&config)?,
        archive: archive(&config).await?,
        records: records(&config).await?,
        media: media_store(&config).await?,
        config: Arc::clone(&config),
        extra_routes: Router::new(),
    };
    let node = Node::start(parts, &mut registry)
        .await
        .map_err(|error| failure(&error))?;
    let node = Arc::new(node);
    let internal = internal.serve(Internal {
        gateway: Some(Gateway::new(Arc::clone(&node), &config)),
        pushes: ConsolePushes::new(0),
        registry,
    });
    tracing::info!(
        public = %node.public_addr(), internal = %internal.address, "gateway is ready"
    );
    signals.stop.cancelled().await;
    node.drain(signals.hurry).await;
    internal.stop();
    Ok(())
}

/// Says why a node did not start.
pub(crate) fn failure(error: &StartError) -> Failure {
    let line = with_sources(error);
    match error {
        StartError::Listen { .. } => Failure::Configuration(vec![line]),
        StartError::Broker(_) => Failure::Dependency(vec![line]),
    }
}
