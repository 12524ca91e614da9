//! Publishes as the server does: for workers, beside a node or in a process of their own.

use std::sync::Arc;

use bytes::Bytes;
use prometheus_client::registry::Registry;
use shared::config::Config;
use shared::ids::{ChannelName, NodeId};
use shared::protocol::Tags;
use store::job_log::JobLog;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::{BrokerError, Deliver, Delivery, NewPublication, redis_streams};
use crate::channel::Channels;
use crate::control::{ControlCommand, Obey};
use crate::outbox::Publisher;
use crate::session::identify;

/// Publishes without being anybody's client.
#[derive(Debug)]
pub struct ServerPublisher {
    channels: Channels,
    publisher: Arc<Publisher>,
}

/// Why a publish of the server failed.
#[derive(Debug, thiserror::Error)]
pub enum ServerPublishError {
    /// The channel has no namespace, or the key is too long.
    #[error("channel or key is refused: {0}")]
    Refused(&'static str),
    /// The broker failed.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

impl ServerPublisher {
    pub(crate) fn new(config: &Config, publisher: Arc<Publisher>) -> Self {
        Self {
            channels: Channels::new(config),
            publisher,
        }
    }

    /// Joins the nodes' Redis without being a node: it has no clients, and nobody sees it.
    ///
    /// # Errors
    /// [`BrokerError::Incompatible`] without a Redis address, or when Redis holds what does not
    /// go with the configuration; [`BrokerError::Unavailable`] when it does not answer.
    pub async fn connect(
        config: &Config,
        job_log: Arc<dyn JobLog>,
        registry: &mut Registry,
        cancel: &CancellationToken,
    ) -> Result<Self, BrokerError> {
        let Some(url) = &config.broker.redis_url else {
            let text = "there is no Redis to publish through; set REDIS_URL";
            return Err(BrokerError::Incompatible(text.to_owned()));
        };
        let tasks = TaskTracker::new();
        let parts = redis_streams::connect(
            &config.broker,
            url.expose(),
            NodeId::random(),
            Arc::new(Nobody),
            Arc::new(Nobody),
            &tasks,
            cancel.clone(),
        )
        .await?;
        parts.register_metrics(registry);
        let publisher = Publisher::start(
            parts.broker,
            parts.outbox,
            Some(job_log),
            config,
            registry,
            &tasks,
            cancel,
        );
        Ok(Self::new(config, publisher))
    }

    /// Publishes JSON, with tags that may be reserved ones, and waits until it is as safe as the channel's class promises. A repeated
    /// key publishes nothing and is no error; `scope` keeps the keys of different callers apart.
    ///
    /// # Errors
    /// See [`ServerPublishError`].
    pub async fn publish(
        &self,
        channel: &ChannelName,
        data: Bytes,
        tags: Tags,
        scope: &str,
        key: &str,
    ) -> Result<(), ServerPublishError> {
        let refused =
            |error: shared::protocol::ClientError| ServerPublishError::Refused(error.message);
        let (channel, namespace) = self.channels.resolve(channel.as_str()).map_err(refused)?;
        let (id, idempotency) = identify(scope, &channel, &namespace, key).map_err(refused)?;
        let publication = NewPublication {
            channel,
            data,
            info: None,
            tags,
            id,
            history: namespace.history.clone(),
            durable: namespace.options.durable,
            idempotency,
        };
        self.publisher.publish(publication).await?;
        Ok(())
    }
}

/// Has no clients.
struct Nobody;

impl Deliver for Nobody {
    fn deliver(&self, _batch: Vec<(ChannelName, Delivery)>) {}
}

impl Obey for Nobody {
    fn obey(&self, _command: ControlCommand) {}
}
