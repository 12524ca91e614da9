//! The configuration of `wyd dev`, before its file and environment.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use shared::config::load::Environment;
use shared::config::{Authorize, BrokerKind, Config, DrainConfig, Join, NamespaceOptions};

use super::secrets::Secrets;
use super::sqlite_url;

const HISTORY_SIZE: usize = 1000;
const HISTORY_TTL: Duration = Duration::from_secs(24 * 3600);

/// Names of services in a developer's shell. They belong to another project more often than not,
/// and `wyd dev` must not write to what it happens to find there.
const SERVICES: [&str; 8] = [
    "DATABASE_URL",
    "MONGO_URL",
    "REDIS_URL",
    "KAFKA_BROKERS",
    "FCM_CREDENTIALS",
    "AWS_S3_BUCKET",
    "AWS_S3_REGION",
    "AWS_ENDPOINT_URL",
];

/// Makes the defaults; file and environment win over them.
pub(super) fn config(data: &Path, secrets: Secrets) -> Config {
    let mut config = Config::default();
    config.auth.hmac_secret = Some(secrets.hmac_secret);
    let key = ("default".to_owned(), secrets.api_key);
    config.api.keys.extend([key]);
    config.broker.kind = Some(BrokerKind::Memory);
    config.database.url = Some(sqlite_url(&data.join("archive.db")).into());
    config.media.folder = data.join("media").display().to_string();
    // Whoever reaches the demo gets a token for any name: only this machine does.
    config.listen.set_ip(Ipv4Addr::LOCALHOST.into());
    config.internal_listen.set_ip(Ipv4Addr::LOCALHOST.into());
    // One person's process: nobody else's load balancer must notice that it stops.
    config.drain = DrainConfig {
        delay: Duration::ZERO,
        duration: Duration::ZERO,
        ..DrainConfig::default()
    };
    config.namespaces.insert("chat".to_owned(), chat());
    config.namespaces.insert("live".to_owned(), live());
    config
}

/// Takes the services out of the environment, and says which there were.
pub(super) fn without_services(mut environment: Environment) -> (Environment, Vec<&'static str>) {
    let ignored = SERVICES
        .into_iter()
        .filter(|name| {
            let value = environment.remove(*name);
            value.is_some_and(|value| !value.is_empty())
        })
        .collect();
    (environment, ignored)
}

/// Lets the demo's own page connect, unless the configuration says who may.
pub(super) fn with_own_origin(config: &Config) -> Config {
    let mut config = config.clone();
    if config.client.allowed_origins.is_empty() {
        config.client.allowed_origins = own_origins(config.listen);
    }
    config
}

fn own_origins(listen: SocketAddr) -> Vec<String> {
    let mut hosts = ["localhost", "127.0.0.1", "[::1]"]
        .map(str::to_owned)
        .to_vec();
    if !listen.ip().is_unspecified() && !listen.ip().is_loopback() {
        hosts.push(match listen {
            SocketAddr::V4(address) => address.ip().to_string(),
            SocketAddr::V6(address) => format!("[{}]", address.ip()),
        });
    }
    let origin = |host: String| match listen.port() {
        // Any free port: nobody knows which before it is bound.
        0 => format!("http://{host}:*"),
        // Browsers leave the scheme's own port out.
        80 => format!("http://{host}"),
        port => format!("http://{host}:{port}"),
    };
    hosts.into_iter().map(origin).collect()
}

/// Durable: what is said is kept; for its members, which everybody may become.
fn chat() -> NamespaceOptions {
    NamespaceOptions {
        durable: true,
        push: true,
        authorize: Authorize::Membership,
        join: Join::Open,
        history_size: HISTORY_SIZE,
        history_ttl: HISTORY_TTL,
        force_recovery: true,
        allow_history_for_subscriber: true,
        ..live()
    }
}

/// Ephemeral: who types, who is here.
fn live() -> NamespaceOptions {
    NamespaceOptions {
        authorize: Authorize::Public,
        presence: true,
        join_leave: true,
        force_push_join_leave: true,
        allow_publish_for_subscriber: true,
        allow_presence_for_subscriber: true,
        ..NamespaceOptions::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::config::check::{Report, Role, check};

    fn made() -> Config {
        let secrets = Secrets {
            hmac_secret: "x".repeat(32).into(),
            api_key: "key".into(),
        };
        config(Path::new("data"), secrets)
    }

    #[test]
    fn the_defaults_have_no_fault() {
        assert_eq!(check(&made(), Role::Dev), Report::default());
    }

    #[test]
    fn services_of_the_shell_are_left_alone() {
        let environment = Environment::from([
            ("DATABASE_URL".to_owned(), "postgres://other".to_owned()),
            ("REDIS_URL".to_owned(), String::new()),
            ("WYD__LISTEN".to_owned(), "127.0.0.1:1".to_owned()),
        ]);
        let (left, ignored) = without_services(environment);
        assert_eq!(ignored, ["DATABASE_URL"]);
        assert_eq!(left.into_keys().collect::<Vec<_>>(), ["WYD__LISTEN"]);
    }

    #[test]
    fn only_the_own_page_may_connect() {
        let origins = |address: &str| own_origins(address.parse().unwrap());
        let local = [
            "http://localhost:8000",
            "http://127.0.0.1:8000",
            "http://[::1]:8000",
        ];
        assert_eq!(origins("127.0.0.1:8000"), local);
        assert_eq!(origins("0.0.0.0:80").first().unwrap(), "http://localhost");
        assert_eq!(origins("192.0.2.1:9").last().unwrap(), "http://192.0.2.1:9");
        let mut config = made();
        config.client.allowed_origins = vec!["http://mine".to_owned()];
        assert_eq!(
            with_own_origin(&config).client.allowed_origins,
            ["http://mine"]
        );
    }
}
