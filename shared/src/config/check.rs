//! What contradicts itself in a configuration, found once at the start.
//!
//! Every message names the key, says what is wrong, and how to set it right.

use std::time::Duration;

use super::{
    Authorize, BrokerKind, Config, Join, NamespaceOptions, PushProviderKind, WorkerRole,
    WorkerRoles, environment,
};

/// Shortest HMAC secret (RFC 7518 §3.2: as long as the hash of HS256).
const SECRET_BYTES_MIN: usize = 32;
/// Clocks that differ by more are a fault to mend, not to tolerate.
const LEEWAY_MAX: Duration = Duration::from_secs(60);
/// SDKs give a command up after five seconds.
const PUBLISH_TIMEOUT_MAX: Duration = Duration::from_secs(5);
/// Longest delay of a push, and longest time that FCM keeps one.
const PUSH_DELAY_MAX: Duration = Duration::from_secs(60);
const PUSH_TTL_MAX: Duration = Duration::from_secs(28 * 24 * 3600);

/// Largest S3 object whose parts need no more than 5 GiB each.
const MEDIA_BYTES_MAX: u64 = 5 << 30;
/// As base64 in a job it still fits into Kafka's default of 1 MiB a message.
const SMALL_BYTES_MAX: u64 = 700 << 10;
/// S3's smallest part, but for the last.
const PART_BYTES_MIN: u64 = 5 << 20;
/// Longest life of a signed address in S3.
const SIGNED_URL_TTL_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// A removed member must not stay one for longer on a node that did not hear of it.
const MEMBERSHIP_CACHE_TTL_MAX: Duration = Duration::from_secs(60);

/// What a process will do with the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `wyd gateway`.
    Gateway,
    /// `wyd worker` with these roles.
    Worker(WorkerRoles),
    /// `wyd migrate`.
    Migrate,
    /// `wyd dev`: the job log is embedded.
    Dev,
}

impl Role {
    /// True for a worker with that role.
    fn has(self, role: WorkerRole) -> bool {
        matches!(self, Self::Worker(roles) if roles.has(role))
    }
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The process must not start.
    pub errors: Vec<String>,
    /// Somebody should look.
    pub warnings: Vec<String>,
}

/// Checks a configuration for a role.
pub fn check(config: &Config, role: Role) -> Report {
    let mut report = Report::default();
    if matches!(role, Role::Gateway | Role::Dev) {
        check_auth(config, &mut report);
        check_client(config, &mut report);
        check_limits(config, &mut report);
        check_broker(config, &mut report);
        check_namespaces(config, role, &mut report);
        check_chat(config, &mut report);
    }
    if matches!(role, Role::Gateway | Role::Dev | Role::Worker(_)) {
        check_addresses(config, role, &mut report);
    }
    check_kafka(config, role, &mut report);
    check_stores(config, role, &mut report);
    check_worker(config, &mut report);
    check_push(config, role, &mut report);
    check_media(config, role, &mut report);
    report
}

/// Checks only what tokens are signed and verified with.
pub fn check_token_key(config: &Config) -> Report {
    let mut report = Report::default();
    check_auth(config, &mut report);
    report
}

impl Report {
    /// Notes an error unless the condition holds; the message says which variable sets the key.
    fn require(&mut self, is_right: bool, key: &str, problem: impl std::fmt::Display) {
        if !is_right {
            self.errors.push(message(key, &problem));
        }
    }

    fn warn(&mut self, key: &str, problem: impl std::fmt::Display) {
        self.warnings.push(message(key, &problem));
    }

    fn require_above_zero(&mut self, values: &[(&str, usize)]) {
        for (key, value) in values {
            self.require(*value > 0, key, "must be above 0");
        }
    }

    fn require_some_time(&mut self, values: &[(&str, Duration)]) {
        for (key, value) in values {
            self.require(!value.is_zero(), key, "must be longer than 0s");
        }
    }
}

fn message(key: &str, problem: &dyn std::fmt::Display) -> String {
    let path: Vec<String> = key.split('.').map(str::to_owned).collect();
    format!(
        "{key}: {problem} (in the file, or {})",
        environment::name_of(&path)
    )
}

fn check_auth(config: &Config, report: &mut Report) {
    let auth = &config.auth;
    report.require(
        auth.leeway <= LEEWAY_MAX,
        "auth.leeway",
        "more than 60s would accept tokens that ended long ago; set at most 60s and mend the clocks",
    );
    let key = "auth.hmac_secret";
    let Some(secret) = &auth.hmac_secret else {
        report.require(
            config.client.insecure,
            key,
            "there is no token key; set JWT_SECRET (or JWT_SECRET_FILE) to at least 32 random bytes",
        );
        return;
    };
    if secret.expose().len() >= SECRET_BYTES_MIN {
        return;
    }
    let weak = "the secret has fewer than 32 bytes and can be guessed; set JWT_SECRET to at least 32 random bytes";
    if auth.allow_weak_secret {
        report.warn(
            key,
            format!("{weak}; accepted because of auth.allow_weak_secret"),
        );
    } else {
        report.require(
            false,
            key,
            format!("{weak}, or auth.allow_weak_secret = true for a test"),
        );
    }
}

fn check_client(config: &Config, report: &mut Report) {
    let client = &config.client;
    report.require(
        client.ping_interval >= Duration::from_secs(1),
        "client.ping_interval",
        "clients are told whole seconds; set at least 1s",
    );
    report.require(
        client.pong_timeout < client.ping_interval,
        "client.pong_timeout",
        "must be shorter than client.ping_interval",
    );
    report.require(
        !client.publish_timeout.is_zero() && client.publish_timeout < PUBLISH_TIMEOUT_MAX,
        "client.publish_timeout",
        "must be above 0s and below 5s, when SDKs give up",
    );
    report.require_some_time(&[
        ("client.pong_timeout", client.pong_timeout),
        ("client.stale_close_delay", client.stale_close_delay),
    ]);
    report.require_above_zero(&[
        ("client.send_queue_bytes_max", client.send_queue_bytes_max),
        ("client.channel_limit", client.channel_limit),
        (
            "client.commands_in_flight_max",
            client.commands_in_flight_max,
        ),
        (
            "client.history_max_publication_limit",
            client.history_max_publication_limit,
        ),
        (
            "client.recovery_max_publication_limit",
            client.recovery_max_publication_limit,
        ),
    ]);
    report.require(
        client.send_queue_bytes_max >= config.websocket.message_size_limit
            || client.send_queue_bytes_max == 0,
        "client.send_queue_bytes_max",
        "must hold at least one message (websocket.message_size_limit), or every reader is too slow",
    );
    for origin in &client.allowed_origins {
        let is_pattern = origin == "*" || origin.contains("://");
        report.require(
            is_pattern && !origin.ends_with('/'),
            "client.allowed_origins",
            format!(
                "{origin:?} is no origin; write scheme and host, such as \"https://chat.example.com\""
            ),
        );
    }
    if client.insecure {
        report.warn(
            "client.insecure",
            "everybody may do everything; never in production",
        );
    }
}

fn check_limits(config: &Config, report: &mut Report) {
    let (websocket, limits) = (&config.websocket, &config.limits);
    report.require_above_zero(&[
        ("websocket.message_size_limit", websocket.message_size_limit),
        ("websocket.fragments_max", websocket.fragments_max),
        ("limits.handshakes_max", limits.handshakes_max),
        (
            "limits.request_body_bytes_max",
            limits.request_body_bytes_max,
        ),
    ]);
    report.require_some_time(&[
        ("websocket.message_timeout", websocket.message_timeout),
        ("websocket.write_timeout", websocket.write_timeout),
        ("limits.header_timeout", limits.header_timeout),
        ("drain.finish_timeout", config.drain.finish_timeout),
    ]);
    for (name, key) in &config.api.keys {
        report.require(
            !key.expose().is_empty(),
            &format!("api.keys.{name}"),
            "an empty key would let everybody in; set a random one, or remove it",
        );
    }
}

fn check_addresses(config: &Config, role: Role, report: &mut Report) {
    let (public, internal) = (config.listen, config.internal_listen);
    let is_one_host = public.ip() == internal.ip()
        || public.ip().is_unspecified()
        || internal.ip().is_unspecified();
    let is_one_port = public.port() == internal.port() && public.port() != 0;
    report.require(
        matches!(role, Role::Worker(_)) || !(is_one_host && is_one_port),
        "internal_listen",
        "must not be the public address (`listen`), which everybody reaches",
    );
}

fn check_broker(config: &Config, report: &mut Report) {
    let broker = &config.broker;
    report.require(
        broker.partitions > 0,
        "broker.partitions",
        "must be above 0",
    );
    report.require_some_time(&[
        ("broker.command_timeout", broker.command_timeout),
        ("broker.outbox_sweep_age", broker.outbox_sweep_age),
    ]);
    report.require(
        broker.outbox_entries_max > 0,
        "broker.outbox_entries_max",
        "must be above 0",
    );
    report.require(
        broker.command_timeout < config.client.publish_timeout,
        "broker.command_timeout",
        "must be shorter than client.publish_timeout, or no publish can be tried again",
    );
    report.require(
        broker.kind != Some(BrokerKind::Redis) || broker.redis_url.is_some(),
        "broker.redis_url",
        "broker.kind is \"redis\", but there is no address; set REDIS_URL",
    );
    if let Some(url) = &broker.redis_url {
        require_scheme(
            report,
            "broker.redis_url",
            url.expose(),
            &["redis", "rediss"],
        );
    }
}

fn check_namespaces(config: &Config, role: Role, report: &mut Report) {
    let named = config.namespaces.iter();
    let named = named.map(|(name, options)| (format!("namespaces.{name}"), options));
    let without = config.without_namespace.iter();
    let without = without.map(|options| ("without_namespace".to_owned(), options));
    let has_job_log = role == Role::Dev || !config.kafka.brokers.is_empty();
    for (path, options) in named.chain(without) {
        check_namespace(&path, options, has_job_log, report);
        check_membership(&path, options, config.database.url.is_some(), report);
    }
    for name in config.namespaces.keys() {
        let is_plain = !name.is_empty()
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        report.require(
            is_plain,
            &format!("namespaces.{name}"),
            "a namespace is named by letters, digits, '-', '_' and '.'; rename it",
        );
    }
}

fn check_namespace(path: &str, options: &NamespaceOptions, has_job_log: bool, report: &mut Report) {
    let key = |name: &str| format!("{path}.{name}");
    let missing = match options.history_size {
        0 => "history_size",
        _ => "history_ttl",
    };
    report.require(
        (options.history_size == 0) == options.history_ttl.is_zero(),
        &key(missing),
        "history needs both history_size and history_ttl, or neither; set this one, too",
    );
    report.require(
        options.history_meta_ttl > options.history_ttl,
        &key("history_meta_ttl"),
        "must be longer than history_ttl: a position must outlive what it points into",
    );
    let needs = "needs history; set history_size and history_ttl";
    for (name, is_wanted) in [
        ("durable", options.durable),
        ("force_recovery", options.force_recovery),
        ("force_positioning", options.force_positioning),
    ] {
        report.require(!is_wanted || options.has_history(), &key(name), needs);
    }
    report.require(
        !options.durable || has_job_log,
        &key("durable"),
        "durable channels need Kafka; set KAFKA_BROKERS",
    );
    for (name, is_there) in [("durable", options.durable), ("presence", options.presence)] {
        report.require(
            !options.push || is_there,
            &key("push"),
            format!("pushes need {name} = true; set it, too"),
        );
    }
    report.require(
        options.archive_retention.is_zero() || options.durable,
        &key("archive_retention"),
        "nothing is archived; set durable = true, or leave it out",
    );
    report.require(
        !options.force_push_join_leave || options.join_leave,
        &key("force_push_join_leave"),
        "there is nothing to push; set join_leave = true",
    );
}

fn check_membership(
    path: &str,
    options: &NamespaceOptions,
    has_database: bool,
    report: &mut Report,
) {
    let is_for_members = options.authorize == Authorize::Membership;
    report.require(
        !is_for_members || has_database,
        &format!("{path}.authorize"),
        "members are kept in the SQL database; set DATABASE_URL",
    );
    report.require(
        options.join == Join::Server || is_for_members,
        &format!("{path}.join"),
        "there are no members to join; set authorize = \"membership\"",
    );
}

fn check_chat(config: &Config, report: &mut Report) {
    let chat = &config.chat;
    for (key, value) in [
        ("channels_per_user_max", chat.channels_per_user_max),
        ("members_per_channel_max", chat.members_per_channel_max),
        ("devices_per_user_max", chat.devices_per_user_max),
        ("blocks_per_user_max", chat.blocks_per_user_max),
        (
            "invitations_per_channel_max",
            chat.invitations_per_channel_max,
        ),
    ] {
        report.require(value > 0, &format!("chat.{key}"), "must be above 0");
    }
    report.require_above_zero(&[(
        "chat.membership_cache_entries_max",
        chat.membership_cache_entries_max,
    )]);
    report.require_some_time(&[("chat.invitation_ttl_max", chat.invitation_ttl_max)]);
    report.require(
        chat.membership_cache_ttl <= MEMBERSHIP_CACHE_TTL_MAX,
        "chat.membership_cache_ttl",
        "for so long a removed member could go on on a node that was cut off; set at most 60s",
    );
}

fn check_kafka(config: &Config, role: Role, report: &mut Report) {
    let kafka = &config.kafka;
    for broker in kafka
        .brokers
        .split(',')
        .filter(|_| !kafka.brokers.is_empty())
    {
        let port = broker.trim().rsplit_once(':');
        let is_address =
            port.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        report.require(
            is_address,
            "kafka.brokers",
            format!(
                "{:?} is no address; write host:port, separated by commas",
                broker.trim()
            ),
        );
    }
    report.require(
        !matches!(role, Role::Worker(_)) || !kafka.brokers.is_empty(),
        "kafka.brokers",
        "a worker takes its jobs from Kafka; set KAFKA_BROKERS",
    );
    report.require(kafka.partitions > 0, "kafka.partitions", "must be above 0");
    report.require(
        kafka.replication > 0,
        "kafka.replication",
        "must be above 0",
    );
    report.require(
        (1..=kafka.replication).contains(&kafka.min_insync_replicas),
        "kafka.min_insync_replicas",
        "must be from 1 to kafka.replication",
    );
    report.require(
        !kafka.append_timeout.is_zero() && kafka.append_timeout < config.client.publish_timeout,
        "kafka.append_timeout",
        "must be above 0s and below client.publish_timeout, which it is a part of",
    );
}

fn check_stores(config: &Config, role: Role, report: &mut Report) {
    let (database, mongo) = (&config.database, &config.mongo);
    if let Some(url) = &database.url {
        let schemes = ["postgres", "postgresql", "sqlite"];
        require_scheme(report, "database.url", url.expose(), &schemes);
    }
    if let Some(url) = &mongo.url {
        require_scheme(
            report,
            "mongo.url",
            url.expose(),
            &["mongodb", "mongodb+srv"],
        );
    }
    report.require(
        database.connections_max > 0,
        "database.connections_max",
        "must be above 0",
    );
    let has_archive = database.url.is_some() || mongo.url.is_some();
    report.require(
        !role.has(WorkerRole::Persist) || has_archive,
        "database.url",
        "the persist worker needs an archive; set DATABASE_URL (or MONGO_URL)",
    );
    report.require(
        role != Role::Migrate || has_archive || !config.kafka.brokers.is_empty(),
        "database.url",
        "there is nothing to migrate; set DATABASE_URL, MONGO_URL or KAFKA_BROKERS",
    );
}

fn check_worker(config: &Config, report: &mut Report) {
    let worker = &config.worker;
    report.require_above_zero(&[("worker.batch_jobs_max", worker.batch_jobs_max)]);
    report.require_some_time(&[
        ("worker.store_timeout", worker.store_timeout),
        ("worker.retention_interval", worker.retention_interval),
    ]);
}

fn check_media(config: &Config, role: Role, report: &mut Report) {
    let media = &config.media;
    let works = role.has(WorkerRole::Upload) && media.is_on();
    report.require(
        !works || config.database.url.is_some(),
        "database.url",
        "the upload worker keeps its rows in SQL; set DATABASE_URL",
    );
    report.require(
        !works || config.broker.redis_url.is_some(),
        "broker.redis_url",
        "the upload worker announces media through the nodes' Redis; set REDIS_URL",
    );
    report.require(
        role == Role::Dev || media.folder.is_empty(),
        "media.folder",
        "only wyd dev serves a folder; leave it empty, and set AWS_S3_BUCKET",
    );
    let at_most = [
        ("media.size_max", media.size_max, MEDIA_BYTES_MAX),
        (
            "media.image_bytes_max",
            media.image_bytes_max,
            media.size_max,
        ),
        (
            "media.small_bytes_max",
            media.small_bytes_max as u64,
            SMALL_BYTES_MAX,
        ),
    ];
    for (key, value, most) in at_most {
        report.require(
            (1..=most).contains(&value),
            key,
            format!("must be from 1 to {most}"),
        );
    }
    report.require(
        media.multipart_bytes_min >= PART_BYTES_MIN,
        "media.multipart_bytes_min",
        format!("a part has at least {PART_BYTES_MIN} bytes in S3; set at least that"),
    );
    report.require_above_zero(&[
        ("media.pending_max", media.pending_max),
        ("media.parallel", media.parallel),
        ("media.content_types", media.content_types.len()),
    ]);
    report.require_some_time(&[
        ("media.upload_url_ttl", media.upload_url_ttl),
        ("media.download_url_ttl", media.download_url_ttl),
        ("media.staging_ttl", media.staging_ttl),
        ("media.image_timeout", media.image_timeout),
    ]);
    for (key, ttl) in [
        ("media.upload_url_ttl", media.upload_url_ttl),
        ("media.download_url_ttl", media.download_url_ttl),
    ] {
        report.require(
            ttl <= SIGNED_URL_TTL_MAX,
            key,
            "S3 accepts signed addresses for 7 days at most; set a shorter time",
        );
    }
    let sides = media.thumbnail_sides.iter().chain([&media.image_side_max]);
    report.require(
        sides.into_iter().all(|side| (16..=8192).contains(side)),
        "media.thumbnail_sides",
        "sides of pictures are from 16 to 8192 pixels; image_side_max, too",
    );
}

fn check_push(config: &Config, role: Role, report: &mut Report) {
    let push = &config.push;
    report.require_above_zero(&[
        ("push.connections", push.connections),
        ("push.in_flight_max", push.in_flight_max),
        ("push.console_pushes_max", push.console_pushes_max),
    ]);
    report.require_some_time(&[
        ("push.request_timeout", push.request_timeout),
        ("push.device_age_max", push.device_age_max),
    ]);
    report.require(
        push.messages_per_minute_max > 0,
        "push.messages_per_minute_max",
        "must be above 0",
    );
    for (key, value) in [
        ("push.delay", push.delay),
        ("push.burst_window", push.burst_window),
    ] {
        report.require(value <= PUSH_DELAY_MAX, key, "must be at most 60s");
    }
    report.require(
        !push.ttl.is_zero() && push.ttl <= PUSH_TTL_MAX,
        "push.ttl",
        "must be above 0s and at most 28days, which is as long as FCM keeps a push",
    );
    let schemes = ["http", "https"];
    require_scheme(report, "push.fcm_base_url", &push.fcm_base_url, &schemes);
    report.require(
        push.provider != Some(PushProviderKind::Fcm) || push.fcm_credentials.is_some(),
        "push.fcm_credentials",
        "push.provider is \"fcm\"; set FCM_CREDENTIALS to a service account's JSON (or its path)",
    );
    if role.has(WorkerRole::Push) {
        check_push_worker(config, report);
    }
}

fn check_push_worker(config: &Config, report: &mut Report) {
    let instead = "or leave `push` out of --roles";
    report.require(
        config.database.url.is_some(),
        "database.url",
        format!("the push worker reads members and devices there; set DATABASE_URL, {instead}"),
    );
    report.require(
        config.broker.redis_url.is_some(),
        "broker.redis_url",
        format!("the push worker reads there who is online; set REDIS_URL, {instead}"),
    );
    let all = config.namespaces.values().chain(&config.without_namespace);
    let is_wanted = all.into_iter().any(|options| options.push);
    let is_chosen = config.push.provider.is_some() || config.push.fcm_credentials.is_some();
    report.require(
        !is_wanted || is_chosen,
        "push.fcm_credentials",
        "a namespace has push = true; set FCM_CREDENTIALS to a service account's JSON (or its \
         path), or push.provider = \"console\" to send nothing",
    );
}

/// The address itself is not shown: it may hold a password.
fn require_scheme(report: &mut Report, key: &str, url: &str, schemes: &[&str]) {
    let scheme = url.split_once(':').map(|(scheme, _)| scheme);
    let wanted: Vec<String> = schemes
        .iter()
        .map(|scheme| format!("{scheme}://"))
        .collect();
    report.require(
        scheme.is_some_and(|scheme| schemes.contains(&scheme)),
        key,
        format!("the address must begin with {}", wanted.join(" or ")),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKER: Role = Role::Worker(WorkerRoles::ALL);

    fn good() -> Config {
        let mut config = Config::default();
        config.auth.hmac_secret = Some("x".repeat(SECRET_BYTES_MIN).into());
        config.database.url = Some("postgres://u:hidden@localhost/wyd".into());
        config.kafka.brokers = "localhost:9092".to_owned();
        config.broker.redis_url = Some("redis://localhost".into());
        config
    }

    fn errors(role: Role, change: impl FnOnce(&mut Config)) -> String {
        let mut config = good();
        change(&mut config);
        check(&config, role).errors.join("\n")
    }

    #[test]
    fn a_good_configuration_has_no_fault() {
        for role in [Role::Gateway, WORKER, Role::Migrate, Role::Dev] {
            assert_eq!(check(&good(), role), Report::default(), "{role:?}");
        }
    }

    #[test]
    fn roles_need_different_things() {
        let without = |config: &mut Config| {
            config.database.url = None;
            config.broker.redis_url = None;
            config.kafka.brokers.clear();
        };
        assert_eq!(errors(Role::Gateway, without), "");
        assert!(errors(WORKER, without).contains("set KAFKA_BROKERS"));
        assert!(errors(WORKER, without).contains("set DATABASE_URL"));
        assert!(errors(Role::Migrate, without).contains("nothing to migrate"));
        let no_secret = |config: &mut Config| config.auth.hmac_secret = None;
        assert!(errors(Role::Gateway, no_secret).contains("set JWT_SECRET"));
        assert_eq!(errors(WORKER, no_secret), "");
    }

    #[test]
    fn members_need_a_database() {
        let members = |config: &mut Config| {
            let options = NamespaceOptions {
                authorize: Authorize::Membership,
                join: Join::Open,
                ..NamespaceOptions::default()
            };
            config.namespaces.insert("chat".to_owned(), options);
        };
        assert_eq!(errors(Role::Gateway, members), "");
        let text = errors(Role::Gateway, |config| {
            members(config);
            config.database.url = None;
        });
        assert!(text.contains("namespaces.chat.authorize") && text.contains("set DATABASE_URL"));
        let text = errors(Role::Gateway, |config| {
            members(config);
            if let Some(options) = config.namespaces.get_mut("chat") {
                options.authorize = Authorize::Token;
            }
        });
        assert!(text.contains("namespaces.chat.join"), "{text}");
    }

    #[test]
    fn pushes_need_somebody_who_brings_them() {
        let with_push = |config: &mut Config| {
            let options = NamespaceOptions {
                push: true,
                durable: true,
                presence: true,
                history_size: 1,
                history_ttl: Duration::from_secs(1),
                ..NamespaceOptions::default()
            };
            config.namespaces.insert("chat".to_owned(), options);
        };
        assert!(errors(WORKER, with_push).contains("set FCM_CREDENTIALS"));
        assert_eq!(errors(Role::Gateway, with_push), "");
        let persist = Role::Worker(WorkerRoles::parse(&["persist".to_owned()]).unwrap());
        let chosen = |config: &mut Config| {
            with_push(config);
            config.push.provider = Some(PushProviderKind::Console);
        };
        assert_eq!(errors(persist, with_push), "");
        assert_eq!(errors(WORKER, chosen), "");
        let alone = errors(WORKER, |config| {
            chosen(config);
            config.broker.redis_url = None;
            config
                .namespaces
                .entry("chat".to_owned())
                .or_default()
                .durable = false;
            config.push.provider = Some(PushProviderKind::Fcm);
        });
        assert!(alone.contains("set REDIS_URL"), "{alone}");
        assert!(alone.contains("set FCM_CREDENTIALS"), "{alone}");
        let text = errors(Role::Gateway, |config| {
            with_push(config);
            config
                .namespaces
                .entry("chat".to_owned())
                .or_default()
                .presence = false;
        });
        assert!(text.contains("presence = true"), "{text}");
    }

    #[test]
    fn messages_say_how_to_set_the_key() {
        let text = errors(Role::Gateway, |config| {
            config.client.pong_timeout = config.client.ping_interval;
        });
        assert_eq!(
            text,
            "client.pong_timeout: must be shorter than client.ping_interval \
             (in the file, or WYD__CLIENT__PONG_TIMEOUT)"
        );
    }

    #[test]
    fn a_weak_secret_is_refused_or_warned_about() {
        let weak = |config: &mut Config| config.auth.hmac_secret = Some("hidden".into());
        let text = errors(Role::Gateway, weak);
        assert!(
            text.contains("fewer than 32 bytes") && !text.contains("hidden"),
            "{text}"
        );
        let mut config = good();
        weak(&mut config);
        config.auth.allow_weak_secret = true;
        let report = check(&config, Role::Gateway);
        assert!(report.errors.is_empty());
        assert_eq!(report.warnings.len(), 1);
    }

    #[test]
    fn addresses_with_passwords_are_not_shown() {
        let text = errors(Role::Gateway, |config| {
            config.broker.redis_url = Some("http://u:hidden@h".into());
            config.database.url = Some("mysql://u:hidden@h".into());
            config.mongo.url = Some("u:hidden@h".into());
        });
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(!text.contains("hidden"), "{text}");
    }
}
