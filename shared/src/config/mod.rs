//! The configuration: one typed struct a section, every field documented here and nowhere else.
//!
//! `load` merges defaults, file and environment into a [`Config`]; `check` finds what contradicts
//! itself; `document` makes the default file and `docs/configuration.md` from the comments below.
//! Nothing else in the project reads the environment. Later code never doubts a checked value.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use schemars::JsonSchema;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::ids::ChannelName;

mod chat;
pub mod check;
pub mod document;
mod duration;
mod environment;
mod file;
pub mod load;
mod media;
mod push;
mod roles;
mod secret;
mod tree;

pub use chat::ChatConfig;
pub use media::MediaConfig;
pub use push::{PushConfig, PushProviderKind};
pub use roles::{WorkerRole, WorkerRoles};
pub use secret::Secret;

/// Everything that can be set.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address of the public port: clients, `/api`, `/v1`.
    pub listen: SocketAddr,
    /// Address of the internal port: metrics, health, operator console. Never expose it.
    pub internal_listen: SocketAddr,
    /// Keys of the server API.
    pub api: ApiConfig,
    /// Tokens of connecting clients.
    pub auth: AuthConfig,
    /// One client's connection.
    pub client: ClientConfig,
    /// The WebSocket endpoint.
    pub websocket: WebsocketConfig,
    /// The link between nodes.
    pub broker: BrokerConfig,
    /// Kafka: durable publications and jobs.
    pub kafka: KafkaConfig,
    /// The SQL database.
    pub database: DatabaseConfig,
    /// MongoDB: the message archive, when set.
    pub mongo: MongoConfig,
    /// Pushes to people who are away.
    pub push: PushConfig,
    /// Pictures and files.
    pub media: MediaConfig,
    /// The chat part.
    pub chat: ChatConfig,
    /// The worker processes.
    pub worker: WorkerConfig,
    /// How a node stops.
    pub drain: DrainConfig,
    /// What the node accepts at most.
    pub limits: LimitsConfig,
    /// Logs.
    pub telemetry: TelemetryConfig,
    /// Options of channels without a ':' in their name; absent: such channels are refused.
    pub without_namespace: Option<NamespaceOptions>,
    /// Options of channels `NAME:…`, by NAME.
    pub namespaces: BTreeMap<String, NamespaceOptions>,
}

impl Config {
    /// Returns the options of a channel; `None`: its namespace is not configured.
    pub fn options_of(&self, channel: &ChannelName) -> Option<&NamespaceOptions> {
        match channel.namespace() {
            Some(name) => self.namespaces.get(name),
            None => self.without_namespace.as_ref(),
        }
    }

    /// True when any namespace's archive is kept for a time only.
    pub fn has_archive_retention(&self) -> bool {
        let all = self.namespaces.values().chain(&self.without_namespace);
        all.into_iter()
            .any(|options| !options.archive_retention.is_zero())
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 8000)),
            internal_listen: SocketAddr::from(([0, 0, 0, 0], 8001)),
            api: ApiConfig::default(),
            auth: AuthConfig::default(),
            client: ClientConfig::default(),
            websocket: WebsocketConfig::default(),
            broker: BrokerConfig::default(),
            kafka: KafkaConfig::default(),
            database: DatabaseConfig::default(),
            mongo: MongoConfig::default(),
            push: PushConfig::default(),
            media: MediaConfig::default(),
            chat: ChatConfig::default(),
            worker: WorkerConfig::default(),
            drain: DrainConfig::default(),
            limits: LimitsConfig::default(),
            telemetry: TelemetryConfig::default(),
            without_namespace: None,
            namespaces: BTreeMap::new(),
        }
    }
}

/// Keys of the server API: section `[api]`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ApiConfig {
    /// Keys by the name that logs and idempotency scopes use. `WYD_API_KEY` adds one named
    /// `default`. Without any key the API answers 401 to everything.
    pub keys: BTreeMap<String, Secret>,
}

/// Tokens of connecting clients: section `[auth]`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AuthConfig {
    /// HMAC secret of connection and subscription tokens (HS256, HS384, HS512); at least 32
    /// bytes. Environment: `JWT_SECRET`.
    pub hmac_secret: Option<Secret>,
    /// Accepts an `hmac_secret` under 32 bytes, with a warning at every start.
    pub allow_weak_secret: bool,
    /// Required `aud` claim; empty: not checked.
    pub audience: String,
    /// Required `iss` claim; empty: not checked.
    pub issuer: String,
    /// Tolerance for clocks that differ when `exp` and `nbf` are checked; at most 60 s.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub leeway: Duration,
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self {
            hmac_secret: None,
            allow_weak_secret: false,
            audience: String::new(),
            issuer: String::new(),
            leeway: Duration::ZERO,
        }
    }
}

/// Limits of one client connection: section `[client]`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ClientConfig {
    /// Time between server pings; the first comes at a random point in its second half.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub ping_interval: Duration,
    /// How long to wait for a pong (close 3012); shorter than `ping_interval`.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub pong_timeout: Duration,
    /// How long a connection may stay without a successful connect (close 3502).
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub stale_close_delay: Duration,
    /// How long past its token's expiry a connection stays open for a refresh (close 3005).
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub expired_close_delay: Duration,
    /// The same for a subscription token (unsubscribe 2501).
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub expired_sub_close_delay: Duration,
    /// Bytes that may wait to be written to one client before it is let go (close 3008).
    pub send_queue_bytes_max: usize,
    /// Channels one client may subscribe to (error 106).
    pub channel_limit: usize,
    /// Commands of one client that may wait for their turn; past it, its socket is not read.
    pub commands_in_flight_max: usize,
    /// Most publications one `history` command answers.
    pub history_max_publication_limit: usize,
    /// Most publications one recovery answers; past it: `recovered: false`.
    pub recovery_max_publication_limit: usize,
    /// How long a publish may take before the client gets error 100; below the SDKs' 5 s.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub publish_timeout: Duration,
    /// Lets clients without a token connect, as the anonymous user.
    pub allow_anonymous_connect_without_token: bool,
    /// No tokens needed, everything allowed, nothing expires. For tests and demos only.
    pub insecure: bool,
    /// Origins that browsers may connect from: `*`, or patterns such as
    /// `https://*.example.com`. Empty: every request with an `Origin` header is refused.
    pub allowed_origins: Vec<String>,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            ping_interval: Duration::from_secs(25),
            pong_timeout: Duration::from_secs(8),
            stale_close_delay: Duration::from_secs(10),
            expired_close_delay: Duration::from_secs(25),
            expired_sub_close_delay: Duration::from_secs(25),
            send_queue_bytes_max: 1 << 20,
            channel_limit: 128,
            commands_in_flight_max: 256,
            history_max_publication_limit: 300,
            recovery_max_publication_limit: 300,
            publish_timeout: Duration::from_millis(3500),
            allow_anonymous_connect_without_token: false,
            insecure: false,
            allowed_origins: Vec::new(),
        }
    }
}

/// The WebSocket endpoint: section `[websocket]`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WebsocketConfig {
    /// Serves `/connection/websocket`.
    pub enabled: bool,
    /// Largest message a client may send, in bytes, over all its fragments (close 1009).
    pub message_size_limit: usize,
    /// Most fragments of one message (close 1009).
    pub fragments_max: usize,
    /// How long a message may take from its first byte to its last (close 1008).
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub message_timeout: Duration,
    /// How long a blocked write may last (close 3009).
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub write_timeout: Duration,
}

impl Default for WebsocketConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            message_size_limit: 64 * 1024,
            fragments_max: 128,
            message_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(1),
        }
    }
}

/// The link between nodes: section `[broker]`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BrokerConfig {
    /// Which broker; absent: `redis` when a Redis address is set, else `memory` (one node).
    pub kind: Option<BrokerKind>,
    /// Redis address. Environment: `REDIS_URL`.
    pub redis_url: Option<Secret>,
    /// Partitions that channels are spread over. Fixed for the life of a Redis: a different
    /// number than the stored one is refused at start.
    pub partitions: u16,
    /// How long one Redis command may take.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub command_timeout: Duration,
    /// Entries a partition's outbox may hold before durable publishes are refused.
    pub outbox_entries_max: u64,
    /// Age after which any node relays another's outbox entry.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub outbox_sweep_age: Duration,
    /// How long Redis may be unreachable before `/readyz` says so.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub unready_after: Duration,
}

/// Which broker joins the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BrokerKind {
    /// One node, nothing kept over a restart.
    Memory,
    /// Any number of nodes over Redis Streams.
    Redis,
}

impl Default for BrokerConfig {
    fn default() -> Self {
        Self {
            kind: None,
            redis_url: None,
            partitions: 256,
            command_timeout: Duration::from_secs(2),
            outbox_entries_max: 10_000,
            outbox_sweep_age: Duration::from_secs(2),
            unready_after: Duration::from_secs(5),
        }
    }
}

impl BrokerConfig {
    /// Returns which broker is meant when none is named.
    pub fn kind(&self) -> BrokerKind {
        self.kind.unwrap_or(match self.redis_url {
            Some(_) => BrokerKind::Redis,
            None => BrokerKind::Memory,
        })
    }
}

/// Kafka: section `[kafka]`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct KafkaConfig {
    /// Brokers, `host:port` separated by commas. Environment: `KAFKA_BROKERS`.
    pub brokers: String,
    /// Partitions of `wyd.messages` when `wyd migrate` creates it.
    pub partitions: i32,
    /// Replication factor of topics that `wyd migrate` creates. Production: 3.
    pub replication: i32,
    /// `min.insync.replicas` of topics that `wyd migrate` creates. Production: 2.
    pub min_insync_replicas: i32,
    /// How long an append may take, retries included.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub append_timeout: Duration,
    /// How workers share partitions. All members of a group must use the same one; a live group
    /// may be moved by a rolling restart.
    pub group_protocol: GroupProtocol,
}

/// How the members of a consumer group share partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GroupProtocol {
    /// Members agree among themselves (cooperative sticky): every broker has it.
    #[default]
    Classic,
    /// The broker decides (KIP-848): Kafka 4.0 or later; rebalances stop nobody.
    Consumer,
}

impl Default for KafkaConfig {
    fn default() -> Self {
        Self {
            brokers: String::new(),
            partitions: 12,
            replication: 3,
            min_insync_replicas: 2,
            append_timeout: Duration::from_secs(3),
            group_protocol: GroupProtocol::Classic,
        }
    }
}

/// The SQL database: section `[database]`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DatabaseConfig {
    /// `postgres://…` or `sqlite://…`. Environment: `DATABASE_URL`.
    pub url: Option<Secret>,
    /// Connections a process opens at most.
    pub connections_max: u32,
}

impl Default for DatabaseConfig {
    fn default() -> Self {
        Self {
            url: None,
            connections_max: 10,
        }
    }
}

/// MongoDB: section `[mongo]`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MongoConfig {
    /// `mongodb://…/DATABASE`; when set, the archive is kept there instead of in SQL.
    /// Environment: `MONGO_URL`.
    pub url: Option<Secret>,
}

/// The worker processes: section `[worker]`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WorkerConfig {
    /// Jobs in one batch of the archive at most.
    pub batch_jobs_max: usize,
    /// How long a batch waits to fill.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub batch_linger: Duration,
    /// How long one batch may take in the store before it is tried again.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub store_timeout: Duration,
    /// Time between two looks for what is older than its namespace's `archive_retention`.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub retention_interval: Duration,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            batch_jobs_max: 500,
            batch_linger: Duration::from_millis(20),
            store_timeout: Duration::from_secs(10),
            retention_interval: Duration::from_secs(3600),
        }
    }
}

/// How a node stops: section `[drain]`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DrainConfig {
    /// Time between `/readyz` turning 503 and the first close, for load balancers to notice.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub delay: Duration,
    /// Time over which the connections are closed (3001), evenly.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub duration: Duration,
    /// How long accepted publishes and send queues may take to finish.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub finish_timeout: Duration,
}

impl Default for DrainConfig {
    fn default() -> Self {
        Self {
            delay: Duration::from_secs(5),
            duration: Duration::from_secs(10),
            finish_timeout: Duration::from_secs(10),
        }
    }
}

/// What a node accepts at most: section `[limits]`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Open connections (503 before the upgrade); 0: as many as the process may open files.
    pub connections_max: usize,
    /// Connections that are still in their HTTP handshake.
    pub handshakes_max: usize,
    /// How long the request header of a new connection may take.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub header_timeout: Duration,
    /// Largest HTTP request body, in bytes (413).
    pub request_body_bytes_max: usize,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            connections_max: 0,
            handshakes_max: 2048,
            header_timeout: Duration::from_secs(5),
            request_body_bytes_max: 1 << 20,
        }
    }
}

/// Logs: section `[telemetry]`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// What is logged, in the syntax of `RUST_LOG`, which wins over it.
    pub log_filter: String,
    /// How log lines are written to stderr.
    pub log_format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for log collectors.
    Json,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            log_filter: "info".to_owned(),
            log_format: LogFormat::Text,
        }
    }
}

/// Options of a namespace's channels: sections `[namespaces.NAME]` and `[without_namespace]`.
///
/// Names and meanings are the reference server's where it has the option. A channel's class
/// follows from them: *ephemeral* without history, *recoverable* with it, *durable* with
/// `durable = true`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each switch is an independent public option of the reference server"
)]
pub struct NamespaceOptions {
    /// Publications reach Kafka and the archive, and are acknowledged only then. Needs history.
    pub durable: bool,
    /// Members who are away get pushes. Needs `durable` and `presence`.
    pub push: bool,
    /// How long the archive keeps publications; `0s`: for ever. Older ones leave it from the
    /// front, and pages then tell where a channel's history begins.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub archive_retention: Duration,
    /// Who may subscribe: `token` (a subscription token or another rule is needed), `public`
    /// (every user with a valid connection token; anonymous ones only with
    /// `allow_subscribe_for_anonymous`) or `membership` (the channel's members; no token and no
    /// other rule lets anybody else in, to publish or to read). Needs `database.url`.
    pub authorize: Authorize,
    /// Who may become a member where `authorize` is `membership`: `server` (only who the server
    /// API adds), `invite` (also who a member invites) or `open` (everybody).
    pub join: Join,
    /// Keeps who is subscribed.
    pub presence: bool,
    /// Tells subscribers who came and went, when they ask for it.
    pub join_leave: bool,
    /// Tells them without being asked.
    pub force_push_join_leave: bool,
    /// Publications kept; with `history_ttl` 0 or this 0 there is no history.
    pub history_size: usize,
    /// How long after the last publish they are kept.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub history_ttl: Duration,
    /// How long epoch and offset are kept after the last touch; longer than `history_ttl`.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub history_meta_ttl: Duration,
    /// Every subscription notices missed publications.
    pub force_positioning: bool,
    /// A client may ask for that.
    pub allow_positioning: bool,
    /// Every subscription recovers missed publications.
    pub force_recovery: bool,
    /// A client may ask for that.
    pub allow_recovery: bool,
    /// Any user may subscribe.
    pub allow_subscribe_for_client: bool,
    /// Anonymous users may, where users may.
    pub allow_subscribe_for_anonymous: bool,
    /// Any user may publish.
    pub allow_publish_for_client: bool,
    /// Subscribers may publish.
    pub allow_publish_for_subscriber: bool,
    /// Anonymous users may publish, where users may.
    pub allow_publish_for_anonymous: bool,
    /// Any user may read presence.
    pub allow_presence_for_client: bool,
    /// Subscribers may read presence.
    pub allow_presence_for_subscriber: bool,
    /// Anonymous users may read presence, where users may.
    pub allow_presence_for_anonymous: bool,
    /// Any user may read history.
    pub allow_history_for_client: bool,
    /// Subscribers may read history.
    pub allow_history_for_subscriber: bool,
    /// Anonymous users may read history, where users may.
    pub allow_history_for_anonymous: bool,
    /// `#` in a channel's name limits it to the users named after it.
    pub allow_user_limited_channels: bool,
}

/// Who may subscribe to a namespace's channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Authorize {
    /// Whoever a token or another option lets in.
    #[default]
    Token,
    /// Every user with a valid connection token.
    Public,
    /// The channel's members, and nobody else.
    Membership,
}

/// Who may become a member of a namespace's channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Join {
    /// Whom the server API adds.
    #[default]
    Server,
    /// Whoever has an invitation.
    Invite,
    /// Everybody.
    Open,
}

impl Default for NamespaceOptions {
    fn default() -> Self {
        Self {
            durable: false,
            push: false,
            archive_retention: Duration::ZERO,
            authorize: Authorize::Token,
            join: Join::Server,
            presence: false,
            join_leave: false,
            force_push_join_leave: false,
            history_size: 0,
            history_ttl: Duration::ZERO,
            history_meta_ttl: Duration::from_secs(720 * 3600),
            force_positioning: false,
            allow_positioning: false,
            force_recovery: false,
            allow_recovery: false,
            allow_subscribe_for_client: false,
            allow_subscribe_for_anonymous: false,
            allow_publish_for_client: false,
            allow_publish_for_subscriber: false,
            allow_publish_for_anonymous: false,
            allow_presence_for_client: false,
            allow_presence_for_subscriber: false,
            allow_presence_for_anonymous: false,
            allow_history_for_client: false,
            allow_history_for_subscriber: false,
            allow_history_for_anonymous: false,
            allow_user_limited_channels: false,
        }
    }
}

impl NamespaceOptions {
    /// True when publications are kept: both size and time to live are set.
    pub fn has_history(&self) -> bool {
        self.history_size > 0 && !self.history_ttl.is_zero()
    }
}
