//! What contradicts itself in a configuration, found once at the start.

use std::time::Duration;

use super::{BrokerKind, Config, NamespaceOptions};

/// Shortest HMAC secret (RFC 7518 §3.2: as long as the hash of HS256).
const SECRET_BYTES_MIN: usize = 32;
/// Clocks that differ by more are a fault to mend, not to tolerate.
const LEEWAY_MAX: Duration = Duration::from_secs(60);
/// SDKs give a command up after five seconds.
const PUBLISH_TIMEOUT_MAX: Duration = Duration::from_secs(5);

/// What a process will do with the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `wyd gateway`.
    Gateway,
    /// `wyd worker`.
    Worker,
    /// `wyd migrate`.
    Migrate,
    /// `wyd dev`: the job log is embedded.
    Dev,
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The process must not start.
    pub errors: Vec<String>,
    /// Somebody should look.
    pub warnings: Vec<String>,
}

/// Checks a configuration for a role. Messages name the key and say what to set.
pub fn check(config: &Config, role: Role) -> Report {
    let mut report = Report::default();
    if matches!(role, Role::Gateway | Role::Dev) {
        check_auth(config, &mut report);
        check_client(config, &mut report);
        check_broker(config, &mut report);
        check_namespaces(config, role, &mut report);
    }
    check_stores(config, role, &mut report);
    report
}

impl Report {
    fn require(&mut self, is_right: bool, message: &str) {
        if !is_right {
            self.errors.push(message.to_owned());
        }
    }
}

fn check_auth(config: &Config, report: &mut Report) {
    let auth = &config.auth;
    report.require(
        auth.leeway <= LEEWAY_MAX,
        "auth.leeway: more than 60s would accept tokens that ended long ago; mend the clocks",
    );
    let Some(secret) = &auth.hmac_secret else {
        report.require(
            config.client.insecure,
            "auth.hmac_secret: no token key is set; set JWT_SECRET (or JWT_SECRET_FILE) to at least 32 random bytes",
        );
        return;
    };
    if secret.expose().len() >= SECRET_BYTES_MIN {
        return;
    }
    let message = "auth.hmac_secret: the secret has fewer than 32 bytes and can be guessed; set JWT_SECRET to at least 32 random bytes";
    if auth.allow_weak_secret {
        report.warnings.push(format!(
            "{message} (accepted because auth.allow_weak_secret is true)"
        ));
    } else {
        report.errors.push(format!(
            "{message}, or auth.allow_weak_secret = true for a test"
        ));
    }
}

fn check_client(config: &Config, report: &mut Report) {
    let client = &config.client;
    report.require(
        client.ping_interval >= Duration::from_secs(1),
        "client.ping_interval: must be at least 1s",
    );
    report.require(
        client.pong_timeout < client.ping_interval,
        "client.pong_timeout: must be shorter than client.ping_interval",
    );
    report.require(
        !client.publish_timeout.is_zero() && client.publish_timeout < PUBLISH_TIMEOUT_MAX,
        "client.publish_timeout: must be above 0s and below the SDKs' 5s",
    );
    for (name, value) in [
        ("client.send_queue_bytes_max", client.send_queue_bytes_max),
        ("client.channel_limit", client.channel_limit),
        (
            "client.commands_in_flight_max",
            client.commands_in_flight_max,
        ),
        (
            "websocket.message_size_limit",
            config.websocket.message_size_limit,
        ),
        ("websocket.fragments_max", config.websocket.fragments_max),
        ("limits.handshakes_max", config.limits.handshakes_max),
        (
            "limits.request_body_bytes_max",
            config.limits.request_body_bytes_max,
        ),
    ] {
        report.require(value > 0, &format!("{name}: must be above 0"));
    }
    if client.insecure {
        report
            .warnings
            .push("client.insecure: everybody may do everything; never in production".to_owned());
    }
    report.require(
        config.listen != config.internal_listen || config.listen.port() == 0,
        "internal_listen: must not be the public address (`listen`); set WYD__INTERNAL_LISTEN",
    );
}

fn check_broker(config: &Config, report: &mut Report) {
    let broker = &config.broker;
    report.require(broker.partitions > 0, "broker.partitions: must be above 0");
    report.require(
        broker.kind != Some(BrokerKind::Redis) || broker.redis_url.is_some(),
        "broker.kind: \"redis\" needs an address; set REDIS_URL",
    );
    if let Some(url) = &broker.redis_url {
        let is_known = ["redis://", "rediss://"]
            .iter()
            .any(|scheme| url.expose().starts_with(scheme));
        report.require(
            is_known,
            "broker.redis_url: the address must begin with redis:// or rediss:// (set REDIS_URL)",
        );
    }
}

fn check_namespaces(config: &Config, role: Role, report: &mut Report) {
    let named = config
        .namespaces
        .iter()
        .map(|(name, options)| (format!("namespaces.{name}"), options));
    let without = config
        .without_namespace
        .iter()
        .map(|o| ("without_namespace".to_owned(), o));
    let has_job_log = role == Role::Dev || !config.kafka.brokers.is_empty();
    for (path, options) in named.chain(without) {
        check_namespace(&path, options, has_job_log, report);
    }
    for name in config.namespaces.keys() {
        let is_plain = !name.is_empty()
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        report.require(
            is_plain,
            &format!(
                "namespaces.{name}: a namespace is named by letters, digits, '-', '_' and '.'"
            ),
        );
    }
}

fn check_namespace(path: &str, options: &NamespaceOptions, has_job_log: bool, report: &mut Report) {
    report.require(
        (options.history_size == 0) == options.history_ttl.is_zero(),
        &format!("{path}: history needs both history_size and history_ttl (or neither)"),
    );
    report.require(
        options.history_meta_ttl > options.history_ttl,
        &format!("{path}.history_meta_ttl: must be longer than history_ttl"),
    );
    report.require(
        !options.durable || options.has_history(),
        &format!("{path}.durable: durable channels need history; set history_size and history_ttl"),
    );
    report.require(
        !options.durable || has_job_log,
        &format!("{path}.durable: durable channels need Kafka; set KAFKA_BROKERS"),
    );
    let wants_position = options.force_recovery || options.force_positioning;
    report.require(
        !wants_position || options.has_history(),
        &format!("{path}: recovery and positioning need history; set history_size and history_ttl"),
    );
}

fn check_stores(config: &Config, role: Role, report: &mut Report) {
    if let Some(url) = &config.database.url {
        let schemes = ["postgres://", "postgresql://", "sqlite://", "sqlite:"];
        report.require(
            schemes
                .iter()
                .any(|scheme| url.expose().starts_with(scheme)),
            "database.url: the address must begin with postgres:// or sqlite:// (set DATABASE_URL)",
        );
    }
    if let Some(url) = &config.mongo.url {
        let schemes = ["mongodb://", "mongodb+srv://"];
        report.require(
            schemes
                .iter()
                .any(|scheme| url.expose().starts_with(scheme)),
            "mongo.url: the address must begin with mongodb:// (set MONGO_URL)",
        );
    }
    if role == Role::Worker {
        let has_archive = config.database.url.is_some() || config.mongo.url.is_some();
        report.require(
            has_archive,
            "database.url: the persist worker needs an archive; set DATABASE_URL (or MONGO_URL)",
        );
        report.require(
            !config.kafka.brokers.is_empty(),
            "kafka.brokers: the worker takes its jobs from Kafka; set KAFKA_BROKERS",
        );
    }
    report.require(
        config.kafka.partitions > 0,
        "kafka.partitions: must be above 0",
    );
    report.require(
        config.kafka.min_insync_replicas <= config.kafka.replication,
        "kafka.min_insync_replicas: must not be above kafka.replication",
    );
    report.require(
        config.worker.batch_jobs_max > 0,
        "worker.batch_jobs_max: must be above 0",
    );
}
