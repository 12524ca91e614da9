//! One gateway node: the one place where concrete parts are joined.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use prometheus_client::registry::Registry;
use shared::config::{BrokerKind, Config};
use shared::ids::{ChannelName, NodeId, UserId};
use shared::protocol::{Disconnect, Unsubscribe};
use store::archive::MessageArchive;
use store::job_log::JobLog;
use store::media::MediaStore;
use store::records::Records;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::{self, Api};
use crate::auth::Verifier;
use crate::broker::{BrokerError, memory, redis_streams};
use crate::channel::Channels;
use crate::chat::media::Media;
use crate::chat::memberships::Memberships;
use crate::chat::{self, Chat};
use crate::control::{Control, ControlCommand, NodeInfo, Obey};
use crate::drain;
use crate::health::Readiness;
use crate::hub::Hub;
use crate::metrics::Metrics;
use crate::outbox::Publisher;
use crate::parts::Parts;
use crate::presence::Presence;
use crate::server_publisher::ServerPublisher;
use crate::session::send_queue::Signal;
use crate::session::ticks::Ticks;
use crate::session::{Rules, Services, VERSION};
use crate::transport::frame::Limits;
use crate::transport::server::{Counts, Server};
use crate::transport::websocket;

/// Time between two entries of this node in the registry.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// How long the background work may take to end after the last session.
const TASKS_TIMEOUT: Duration = Duration::from_secs(5);

/// What a node is made of; the binary decides.
pub struct NodeParts {
    /// Checked configuration.
    pub config: Arc<Config>,
    /// Where durable publications go; `None` without durable namespaces.
    pub job_log: Option<Arc<dyn JobLog>>,
    /// Where old messages are read; `None`: `message.list` is not available.
    pub archive: Option<Arc<dyn MessageArchive>>,
    /// Devices, channels, members; `None`: the chat part is not available.
    pub records: Option<Records>,
    /// Where media are kept; `None`: nothing can be uploaded.
    pub media: Option<Arc<dyn MediaStore>>,
    /// Answers paths of the public port that the gateway has no route for.
    pub extra_routes: Router,
}

impl std::fmt::Debug for NodeParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeParts").finish_non_exhaustive()
    }
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The public address cannot be used.
    #[error("cannot listen on {address}: {source} (set `listen` or WYD__LISTEN)")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// Redis did not answer, or holds what this node cannot work with.
    #[error("broker cannot be used: {0}")]
    Broker(#[source] BrokerError),
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    id: NodeId,
    address: SocketAddr,
    config: Arc<Config>,
    services: Arc<Services>,
    readiness: Arc<Readiness>,
    accepting: CancellationToken,
    background: CancellationToken,
    tasks: TaskTracker,
    /// One task a connection, its session's end included.
    connections: TaskTracker,
    started: Instant,
}

/// A node's figures at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeStats {
    /// Open sessions.
    pub connections: usize,
    /// Different users among them.
    pub users: usize,
    /// Subscriptions.
    pub subscriptions: u64,
    /// Channels with a subscriber.
    pub channels: usize,
    /// Publications handed to subscribers since the start.
    pub deliveries: u64,
    /// How long the node has been up.
    pub uptime: Duration,
}

impl Node {
    /// Joins the parts and accepts connections.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(parts: NodeParts, registry: &mut Registry) -> Result<Self, StartError> {
        let NodeParts {
            config,
            job_log,
            archive,
            records,
            media,
            extra_routes,
        } = parts;
        let push_log = job_log.clone();
        let id = NodeId::random();
        let tasks = TaskTracker::new();
        let background = CancellationToken::new();
        let metrics = Arc::new(Metrics::new(registry));
        let hub = Arc::new(Hub::new(Arc::clone(&metrics), tasks.clone()));
        let memberships = Arc::new(Memberships::new(records.clone(), &config.chat));
        let obeyer = Arc::new(Obeyer {
            hub: Arc::clone(&hub),
            memberships: Arc::clone(&memberships),
        });
        let between = between_nodes(&config, &id, &hub, obeyer, &tasks, &background).await?;
        between.register_metrics(registry);
        hub.attach(Arc::clone(&between.broker));
        let media = media.zip(job_log.clone()).map(|(store, job_log)| Media {
            store,
            job_log,
            config: config.media.clone(),
        });
        let publisher = Publisher::start(
            Arc::clone(&between.broker),
            Arc::clone(&between.outbox),
            job_log,
            &config,
            registry,
            &tasks,
            &background,
        );
        let rules = Arc::new(Rules {
            client: config.client.clone(),
            channels: Channels::new(&config),
            verifier: Verifier::new(&config.auth),
        });
        let chat = Arc::new(Chat {
            rules: Arc::clone(&rules),
            config: config.chat.clone(),
            data_bytes_max: config.websocket.message_size_limit,
            broker: Arc::clone(&between.broker),
            publisher: Arc::clone(&publisher),
            control: Arc::clone(&between.control),
            archive,
            records,
            media,
            memberships,
            metrics: Arc::clone(&metrics),
        });
        let services = Arc::new(Services {
            rules,
            hub,
            broker: Arc::clone(&between.broker),
            publisher,
            presence: between.presence,
            chat,
            metrics,
            ticks: Ticks::new(),
        });
        let readiness = Readiness::new(between.broker, config.broker.unready_after);
        let mut node = Self {
            id,
            address: config.listen,
            config,
            services,
            readiness: Arc::new(readiness),
            accepting: CancellationToken::new(),
            background,
            tasks,
            connections: TaskTracker::new(),
            started: Instant::now(),
        };
        node.spawn_ticks();
        node.spawn_heartbeat(Arc::clone(&between.control));
        node.listen(between.control, push_log, extra_routes).await?;
        node.readiness.start();
        Ok(node)
    }

    /// Returns the node's id.
    pub fn id(&self) -> &NodeId {
        &self.id
    }

    /// Returns what publishes through this node without being a client.
    pub fn server_publisher(&self) -> ServerPublisher {
        ServerPublisher::new(&self.config, Arc::clone(&self.services.publisher))
    }

    /// Returns the address of the public port.
    pub fn public_addr(&self) -> SocketAddr {
        self.address
    }

    /// Returns what `/readyz` asks.
    pub fn readiness(&self) -> Arc<Readiness> {
        Arc::clone(&self.readiness)
    }

    /// Returns who is here, on all nodes.
    pub fn presence(&self) -> Arc<dyn Presence> {
        Arc::clone(&self.services.presence)
    }

    /// Counts.
    pub fn stats(&self) -> NodeStats {
        let metrics = &self.services.metrics;
        let (connections, users) = self.services.hub.clients.count();
        NodeStats {
            connections,
            users,
            subscriptions: u64::try_from(metrics.subscriptions.get()).unwrap_or_default(),
            channels: self.services.hub.channel_count(),
            deliveries: self.deliveries(),
            uptime: self.started.elapsed(),
        }
    }

    /// Stops: `/readyz` first, then no new connections, accepted publishes finish, sessions end
    /// with 3001, background work ends. `hurry` skips what only spreads the load.
    pub async fn drain(&self, hurry: CancellationToken) {
        let drain = self.config.drain.clone();
        self.readiness.drain();
        self.services.metrics.draining.set(1);
        let connections = self.services.hub.clients.count().0;
        tracing::info!(node = %self.id, connections, "draining");
        wait_or_hurry(drain.delay, &hurry).await;
        self.accepting.cancel();
        let told = tokio::select! {
            told = drain::close_sessions(&self.services.hub, &drain) => told,
            () = hurry.cancelled() => {
                let at_once = shared::config::DrainConfig { duration: Duration::ZERO, ..drain.clone() };
                drain::close_sessions(&self.services.hub, &at_once).await
            }
        };
        let is_empty = drain::wait_until_ended(&self.connections, drain.finish_timeout).await;
        let is_flushed = self.services.publisher.flush(drain.finish_timeout).await;
        self.background.cancel();
        self.tasks.close();
        let ended = tokio::time::timeout(TASKS_TIMEOUT, self.tasks.wait()).await;
        tracing::info!(
            node = %self.id, told, is_empty, is_flushed, tasks_ended = ended.is_ok(), "drained"
        );
    }

    fn deliveries(&self) -> u64 {
        let metrics = &self.services.metrics;
        let count = |name: &str| {
            let label = crate::metrics::NamespaceLabel {
                namespace: name.to_owned(),
            };
            metrics.deliveries.get_or_create(&label).get()
        };
        self.services
            .rules
            .channels
            .all()
            .map(|namespace| count(&namespace.name))
            .sum()
    }

    async fn listen(
        &mut self,
        control: Arc<dyn Control>,
        job_log: Option<Arc<dyn JobLog>>,
        extra_routes: Router,
    ) -> Result<(), StartError> {
        let address = self.config.listen;
        let listen_error = |source| StartError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen_error)?;
        self.address = listener.local_addr().map_err(listen_error)?;
        let api = Api::new(Arc::clone(&self.services), control, job_log, &self.config);
        let body_bytes_max = self.config.limits.request_body_bytes_max;
        let routes = api::router(Arc::new(api), body_bytes_max)
            .merge(chat::rest::router(&self.services.chat, body_bytes_max))
            .merge(health_routes(Arc::clone(&self.readiness)))
            .merge(extra_routes);
        let server = Arc::new(Server {
            services: Arc::clone(&self.services),
            limits: self.config.limits.clone(),
            websocket: self
                .config
                .websocket
                .enabled
                .then(|| Arc::new(websocket_settings(&self.config))),
            routes,
            connections: self.connections.clone(),
            counts: Counts::default(),
            accepting: self.accepting.clone(),
        });
        self.tasks.spawn(server.run(listener));
        Ok(())
    }

    fn spawn_ticks(&self) {
        let services = Arc::clone(&self.services);
        let cancel = self.background.clone();
        self.tasks
            .spawn(async move { services.ticks.run(cancel).await });
    }

    fn spawn_heartbeat(&self, control: Arc<dyn Control>) {
        let services = Arc::clone(&self.services);
        let cancel = self.background.clone();
        let (id, started, address) = (self.id.clone(), self.started, self.address);
        self.tasks.spawn(async move {
            loop {
                let info = node_info(&services, &id, address, started);
                if let Err(error) = control.heartbeat(&info).await {
                    tracing::debug!(node = %id, %error, "heartbeat failed");
                }
                tokio::select! {
                    () = cancel.cancelled() => return,
                    () = tokio::time::sleep(HEARTBEAT) => {}
                }
            }
        });
    }
}

/// Carries out on this node's sessions what another node, or this one, was asked.
struct Obeyer {
    hub: Arc<Hub>,
    memberships: Arc<Memberships>,
}

impl Obey for Obeyer {
    fn obey(&self, command: ControlCommand) {
        match command {
            ControlCommand::Disconnect {
                user,
                client,
                whitelist,
                code,
                reason,
            } => {
                let end = Disconnect {
                    code,
                    reason: reason.into(),
                };
                self.signal(
                    &user,
                    client.as_deref(),
                    &whitelist,
                    &Signal::Disconnect(end),
                );
            }
            ControlCommand::Membership {
                user,
                channel,
                ended,
            } => {
                // Forgotten first: a subscribe that comes in between asks the database.
                self.memberships
                    .forget(&UserId::from(user.as_str()), &channel);
                let signal = match ChannelName::new(&channel) {
                    Ok(channel) => Signal::Unsubscribe(channel, Unsubscribe::SERVER),
                    Err(_) if channel.is_empty() => Signal::UnsubscribeAll(Unsubscribe::SERVER),
                    Err(_) => return,
                };
                if ended {
                    self.signal(&user, None, &[], &signal);
                }
            }
            ControlCommand::Unsubscribe {
                user,
                channel,
                client,
            } => {
                // An empty name means every channel.
                let channel = match ChannelName::new(&channel) {
                    Ok(channel) => Some(channel),
                    Err(_) if channel.is_empty() => None,
                    Err(_) => return,
                };
                let signal = match channel {
                    Some(channel) => Signal::Unsubscribe(channel, Unsubscribe::SERVER),
                    None => Signal::UnsubscribeAll(Unsubscribe::SERVER),
                };
                self.signal(&user, client.as_deref(), &[], &signal);
            }
        }
    }
}

impl Obeyer {
    fn signal(&self, user: &str, client: Option<&str>, whitelist: &[String], signal: &Signal) {
        for found in self.hub.clients.of_user(&UserId::from(user)) {
            let id = found.id.to_string();
            let is_meant = client.is_none_or(|client| client == id) && !whitelist.contains(&id);
            if is_meant {
                found.queue.signal(signal.clone());
            }
        }
    }
}

async fn between_nodes(
    config: &Config,
    id: &NodeId,
    hub: &Arc<Hub>,
    obeyer: Arc<Obeyer>,
    tasks: &TaskTracker,
    cancel: &CancellationToken,
) -> Result<Parts, StartError> {
    let broker = &config.broker;
    let kind = broker.kind.unwrap_or(match broker.redis_url {
        Some(_) => BrokerKind::Redis,
        None => BrokerKind::Memory,
    });
    let deliver = Arc::clone(hub);
    match (kind, &broker.redis_url) {
        (BrokerKind::Redis, Some(url)) => redis_streams::connect(
            broker,
            url.expose(),
            id.clone(),
            deliver,
            obeyer,
            tasks,
            cancel.clone(),
        )
        .await
        .map_err(StartError::Broker),
        (BrokerKind::Memory | BrokerKind::Redis, _) => {
            tracing::warn!("memory broker: this node is alone, history does not outlive it");
            Ok(memory::parts(deliver, obeyer, tasks, cancel.clone()))
        }
    }
}

fn websocket_settings(config: &Config) -> websocket::Settings {
    websocket::Settings {
        limits: Limits {
            message_bytes_max: config.websocket.message_size_limit,
            fragments_max: config.websocket.fragments_max,
        },
        message_timeout: config.websocket.message_timeout,
        write_timeout: config.websocket.write_timeout,
        allowed_origins: config.client.allowed_origins.clone(),
    }
}

/// Makes `/healthz` and `/readyz`; the internal port has the same.
pub fn health_routes(readiness: Arc<Readiness>) -> Router {
    use axum::Json;
    use axum::http::StatusCode;
    use axum::routing::get;
    let ready = move || {
        let reasons = readiness.reasons();
        let status = if reasons.is_empty() {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        async move { (status, Json(reasons)) }
    };
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
}

fn node_info(services: &Services, id: &NodeId, address: SocketAddr, started: Instant) -> NodeInfo {
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let (clients, users) = services.hub.clients.count();
    NodeInfo {
        uid: id.clone(),
        name: format!("{}_{}", host_name(), address.port()),
        version: VERSION.to_owned(),
        num_clients: count(clients),
        num_users: count(users),
        num_channels: count(services.hub.channel_count()),
        num_subs: u32::try_from(services.metrics.subscriptions.get()).unwrap_or_default(),
        uptime: u32::try_from(started.elapsed().as_secs()).unwrap_or(u32::MAX),
    }
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname");
    name.map_or_else(|_| "node".to_owned(), |name| name.trim().to_owned())
}

async fn wait_or_hurry(delay: Duration, hurry: &CancellationToken) {
    tokio::select! {
        () = tokio::time::sleep(delay) => {}
        () = hurry.cancelled() => {}
    }
}
