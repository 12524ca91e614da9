//! The command line: a wrong configuration is refused at once, with a line that helps (G11).
//!
//! Needs no service. Every case starts the real binary with an environment of its own.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on panics, and its helpers are part of it"
)]

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::Instant;

/// Stands wherever a secret or a password stands; it must never be printed.
const PLANTED: &str = "planted-secret-that-nobody-may-see";
const SECRET: (&str, &str) = ("JWT_SECRET", PLANTED);
const CONFIGURATION: i32 = 78;
const DEPENDENCY: i32 = 69;
/// How long a refusal may take.
const REFUSAL_TIME_MAX: Duration = Duration::from_secs(1);
/// A refusal that took too long is looked at again: this machine may have had other work.
const ATTEMPTS: usize = 5;

/// A configuration with a mistake, and the parts of the line that tells of it.
struct Case {
    name: &'static str,
    args: &'static [&'static str],
    env: Vec<(&'static str, &'static str)>,
    /// Name and text of the configuration file.
    file: Option<(&'static str, String)>,
    tells: &'static [&'static str],
}

fn case(name: &'static str, tells: &'static [&'static str]) -> Case {
    Case {
        name,
        args: &["gateway"],
        env: vec![SECRET],
        file: None,
        tells,
    }
}

impl Case {
    fn args(self, args: &'static [&'static str]) -> Self {
        Self { args, ..self }
    }

    fn env(mut self, name: &'static str, value: &'static str) -> Self {
        self.env.retain(|(known, _)| *known != name);
        self.env.push((name, value));
        self
    }

    fn without_secret(mut self) -> Self {
        self.env.clear();
        self
    }

    fn toml(self, text: &str) -> Self {
        Self {
            file: Some(("wyd.toml", text.replace("PLANTED", PLANTED))),
            ..self
        }
    }

    fn yaml(self, text: &str) -> Self {
        Self {
            file: Some(("wyd.yaml", text.replace("PLANTED", PLANTED))),
            ..self
        }
    }

    fn run(&self) -> Output {
        let folder = tempfile::tempdir().unwrap();
        let mut command = wyd(&folder, self.args);
        command.envs(self.env.iter().copied());
        if let Some((name, text)) = &self.file {
            std::fs::write(folder.path().join(name), text).unwrap();
            command.args(["--config", name]);
        }
        command.output().unwrap()
    }

    /// Says what is wrong with the refusal, if anything.
    fn judge(&self) -> Result<(), String> {
        let mut took = Duration::MAX;
        for _ in 0..ATTEMPTS {
            let begun = Instant::now();
            let output = self.run();
            took = took.min(begun.elapsed());
            let (code, text) = (output.status.code(), all_text(&output));
            if code != Some(CONFIGURATION) {
                return Err(format!("exit code {code:?}:\n{text}"));
            }
            if text.contains(PLANTED) {
                return Err(format!("a secret was printed:\n{text}"));
            }
            let is_told = |line: &str| self.tells.iter().all(|part| line.contains(part));
            if !text.lines().any(is_told) {
                return Err(format!("no line holds all of {:?}:\n{text}", self.tells));
            }
            if took <= REFUSAL_TIME_MAX {
                return Ok(());
            }
        }
        Err(format!("refused only after {took:?}"))
    }
}

#[test]
fn g11_wrong_configurations_are_refused_with_a_line_that_helps() {
    let cases: Vec<Case> = [sources(), values(), rules(), commands()]
        .into_iter()
        .flatten()
        .collect();
    assert!(cases.len() >= 60, "only {} cases", cases.len());
    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|case| {
            let error = case.judge().err()?;
            Some(format!("{}: {error}", case.name))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Mistakes in where settings come from.
fn sources() -> Vec<Case> {
    vec![
        case("no such file", &["--config", "nowhere.toml", "cannot read"]).args(&[
            "gateway",
            "--config",
            "nowhere.toml",
        ]),
        case("a folder as file", &["--config", "cannot read"]).args(&["gateway", "--config", "."]),
        case("broken TOML", &["wyd.toml", "line 2", "not TOML"])
            .toml("[auth]\nhmac_secret = \"PLANTED\n"),
        case("bare word in TOML", &["wyd.toml", "line 2", "not TOML"])
            .toml("[auth]\nhmac_secret = PLANTED\n"),
        case("a key twice", &["wyd.toml", "line 2", "not TOML"])
            .toml("listen = \"127.0.0.1:1\"\nlisten = \"PLANTED\"\n"),
        case("broken YAML", &["wyd.yaml", "not YAML"]).yaml("auth:\n  hmac_secret: \"PLANTED\n"),
        case(
            "YAML without keys",
            &["wyd.yaml", "expected keys with values"],
        )
        .yaml("- PLANTED\n"),
        case(
            "secret file missing",
            &["JWT_SECRET_FILE", "cannot read", "/nowhere/secret"],
        )
        .without_secret()
        .env("JWT_SECRET_FILE", "/nowhere/secret"),
        case(
            "secret file empty",
            &["JWT_SECRET_FILE", "/dev/null", "empty"],
        )
        .without_secret()
        .env("JWT_SECRET_FILE", "/dev/null"),
        case(
            "secret and its file",
            &["JWT_SECRET_FILE", "JWT_SECRET is set", "keep one"],
        )
        .env("JWT_SECRET_FILE", "/nowhere/secret"),
        case(
            "key file missing",
            &["WYD__API__KEYS__MOBILE_FILE", "cannot read"],
        )
        .env("WYD__API__KEYS__MOBILE_FILE", "/nowhere/key"),
        case("legacy push key", &["FCM_SERVER_KEY", "FCM_CREDENTIALS"])
            .env("FCM_SERVER_KEY", PLANTED),
        case("keys by URL", &["JWT_JWKS_URL", "JWT_SECRET"]).env(
            "JWT_JWKS_URL",
            "https://keys.test/planted-secret-that-nobody-may-see",
        ),
        case(
            "unknown key",
            &["lisen", "wyd.toml", "`listen`", "WYD__LISTEN"],
        )
        .toml("lisen = \"127.0.0.1:1\"\n"),
        case("unknown section", &["clients", "`client`"]).toml("[clients]\nchannel_limit = 1\n"),
        case(
            "unknown key of a section",
            &["auth.hmac_secrett", "`auth.hmac_secret`", "JWT_SECRET"],
        )
        .toml("[auth]\nhmac_secrett = \"PLANTED\"\n"),
        case(
            "unknown key in YAML",
            &["client.chanel_limit", "`client.channel_limit`"],
        )
        .yaml("client:\n  chanel_limit: 5\n"),
        case(
            "unknown option",
            &[
                "namespaces.chat.history_sise",
                "`namespaces.chat.history_size`",
            ],
        )
        .toml("[namespaces.chat]\nhistory_sise = 5\n"),
        case(
            "unknown option without namespace",
            &["without_namespace.presense", "presence`"],
        )
        .toml("[without_namespace]\npresense = true\n"),
        case(
            "unknown name",
            &["WYD__CLIENT__PING_INTERVALL", "WYD__CLIENT__PING_INTERVAL)"],
        )
        .env("WYD__CLIENT__PING_INTERVALL", "1s"),
        case(
            "unknown section by name",
            &["WYD__CLINT__INSECURE", "`client`"],
        )
        .env("WYD__CLINT__INSECURE", "true"),
        case(
            "unknown option by name",
            &["WYD__NAMESPACES__CHAT__DURABEL", "durable`"],
        )
        .env("WYD__NAMESPACES__CHAT__DURABEL", "true"),
    ]
}

/// Values that are not what the key holds.
fn values() -> Vec<Case> {
    vec![
        case(
            "no duration",
            &["client.ping_interval", "wyd.toml", "\"soon\"", "\"25s\""],
        )
        .toml("[client]\nping_interval = \"soon\"\n"),
        case(
            "duration without unit",
            &["WYD__DRAIN__DELAY", "\"5\"", "duration"],
        )
        .env("WYD__DRAIN__DELAY", "5"),
        case(
            "duration as number",
            &["client.ping_interval", "expected a text", "25"],
        )
        .toml("[client]\nping_interval = 25\n"),
        case(
            "text for a number",
            &["WYD__CLIENT__CHANNEL_LIMIT", "a whole number", "\"many\""],
        )
        .env("WYD__CLIENT__CHANNEL_LIMIT", "many"),
        case(
            "negative number",
            &["client.channel_limit", "`-1`", "from 0"],
        )
        .toml("[client]\nchannel_limit = -1\n"),
        case(
            "broken number",
            &["client.channel_limit", "1.5", "a whole number"],
        )
        .toml("[client]\nchannel_limit = 1.5\n"),
        case(
            "number too large",
            &["WYD__BROKER__PARTITIONS", "`70000`", "65535"],
        )
        .env("WYD__BROKER__PARTITIONS", "70000"),
        case(
            "text for a switch",
            &["WYD__CLIENT__INSECURE", "true or false", "\"yes\""],
        )
        .env("WYD__CLIENT__INSECURE", "yes"),
        case(
            "number for a switch",
            &["namespaces.chat.presence", "true or false", "1"],
        )
        .toml("[namespaces.chat]\npresence = 1\n"),
        case(
            "address without port",
            &["listen", "WYD__LISTEN", "\"0.0.0.0:8000\""],
        )
        .env("WYD__LISTEN", "127.0.0.1"),
        case(
            "address with a name",
            &["internal_listen", "an IP address and a port"],
        )
        .toml("internal_listen = \"localhost:8001\"\n"),
        case(
            "address as number",
            &["listen", "expected an address", "8000"],
        )
        .toml("listen = 8000\n"),
        case(
            "value for a section",
            &["kafka", "a section with keys", "\"localhost\""],
        )
        .toml("kafka = \"localhost\"\n"),
        case(
            "section for a value",
            &["client.channel_limit", "a whole number", "a section"],
        )
        .toml("[client.channel_limit]\nx = 1\n"),
        case(
            "value for a namespace",
            &["namespaces.chat", "a section with keys"],
        )
        .toml("[namespaces]\nchat = true\n"),
        case(
            "number for a list",
            &["client.allowed_origins", "a list of texts", "5"],
        )
        .toml("[client]\nallowed_origins = 5\n"),
        case(
            "number in a list",
            &["client.allowed_origins", "`5`", "a text"],
        )
        .toml("[client]\nallowed_origins = [5]\n"),
        case(
            "unknown broker",
            &["broker.kind", "`nats`", "`memory` or `redis`"],
        )
        .toml("[broker]\nkind = \"nats\"\n"),
        case(
            "unknown rule",
            &[
                "namespaces.chat.authorize",
                "`friends`",
                "`token`, `public`, `membership`",
            ],
        )
        .toml("[namespaces.chat]\nauthorize = \"friends\"\n"),
        case(
            "unknown log format",
            &["WYD__TELEMETRY__LOG_FORMAT", "`xml`", "`json`"],
        )
        .env("WYD__TELEMETRY__LOG_FORMAT", "xml"),
        case(
            "secret as number",
            &["auth.hmac_secret", "expected a text", "not a number"],
        )
        .without_secret()
        .toml("[auth]\nhmac_secret = 7777777\n"),
        case(
            "secret as list",
            &["api.keys.mobile", "expected a text", "not a list"],
        )
        .toml("[api.keys]\nmobile = [\"PLANTED\"]\n"),
    ]
}

/// Settings that contradict each other, or that nobody should run with.
fn rules() -> Vec<Case> {
    let history = "history_size = 10\nhistory_ttl = \"1h\"\n";
    let namespace = |options: &str| format!("[namespaces.chat]\n{options}");
    vec![
        case(
            "no token key",
            &["auth.hmac_secret", "set JWT_SECRET", "32"],
        )
        .without_secret(),
        case(
            "weak secret",
            &["auth.hmac_secret", "fewer than 32 bytes", "JWT_SECRET"],
        )
        .env("JWT_SECRET", "planted"),
        case("leeway", &["auth.leeway", "60s", "WYD__AUTH__LEEWAY"]).env("WYD__AUTH__LEEWAY", "2m"),
        case(
            "pong after ping",
            &["client.pong_timeout", "client.ping_interval"],
        )
        .env("WYD__CLIENT__PONG_TIMEOUT", "25s"),
        case("ping too often", &["client.ping_interval", "at least 1s"])
            .env("WYD__CLIENT__PING_INTERVAL", "10ms"),
        case("publish too slow", &["client.publish_timeout", "below 5s"])
            .env("WYD__CLIENT__PUBLISH_TIMEOUT", "5s"),
        case("no channels", &["client.channel_limit", "above 0"])
            .env("WYD__CLIENT__CHANNEL_LIMIT", "0"),
        case(
            "queue too small",
            &["client.send_queue_bytes_max", "one message"],
        )
        .env("WYD__CLIENT__SEND_QUEUE_BYTES_MAX", "1024"),
        case(
            "no origin",
            &["client.allowed_origins", "\"example.com\"", "https://"],
        )
        .env("WYD__CLIENT__ALLOWED_ORIGINS", "example.com"),
        case(
            "no header time",
            &["limits.header_timeout", "longer than 0s"],
        )
        .env("WYD__LIMITS__HEADER_TIMEOUT", "0s"),
        case("empty API key", &["api.keys.mobile", "empty key"])
            .toml("[api.keys]\nmobile = \"\"\n"),
        case(
            "one address for both",
            &["internal_listen", "public address"],
        )
        .env("WYD__INTERNAL_LISTEN", "0.0.0.0:8000"),
        case("no partitions", &["broker.partitions", "above 0"])
            .env("WYD__BROKER__PARTITIONS", "0"),
        case(
            "Redis without address",
            &["broker.redis_url", "set REDIS_URL"],
        )
        .env("WYD__BROKER__KIND", "redis"),
        case(
            "Redis address",
            &["broker.redis_url", "redis:// or rediss://", "REDIS_URL"],
        )
        .env("REDIS_URL", "http://u:planted-secret-that-nobody-may-see@h"),
        case(
            "database address",
            &["database.url", "postgres://", "DATABASE_URL"],
        )
        .env(
            "DATABASE_URL",
            "mysql://u:planted-secret-that-nobody-may-see@h",
        ),
        case("MongoDB address", &["mongo.url", "mongodb://", "MONGO_URL"])
            .env("MONGO_URL", "h/planted-secret-that-nobody-may-see"),
        case(
            "Kafka address",
            &["kafka.brokers", "\"kafka\"", "host:port", "KAFKA_BROKERS"],
        )
        .env("KAFKA_BROKERS", "kafka"),
        case(
            "too many in sync",
            &["kafka.min_insync_replicas", "kafka.replication"],
        )
        .env("WYD__KAFKA__MIN_INSYNC_REPLICAS", "4"),
        case(
            "append too slow",
            &["kafka.append_timeout", "client.publish_timeout"],
        )
        .env("WYD__KAFKA__APPEND_TIMEOUT", "4s"),
        case(
            "durable without history",
            &["namespaces.chat.durable", "needs history"],
        )
        .env("KAFKA_BROKERS", "h:1")
        .toml(&namespace("durable = true\n")),
        case(
            "durable without Kafka",
            &["namespaces.chat.durable", "set KAFKA_BROKERS"],
        )
        .toml(&namespace(&format!("durable = true\n{history}"))),
        case(
            "history without time",
            &["namespaces.chat.history_ttl", "both"],
        )
        .toml(&namespace("history_size = 10\n")),
        case(
            "history without size",
            &["namespaces.chat.history_size", "both"],
        )
        .toml(&namespace("history_ttl = \"1h\"\n")),
        case(
            "position dies first",
            &[
                "namespaces.chat.history_meta_ttl",
                "longer than history_ttl",
            ],
        )
        .toml(&namespace(&format!("{history}history_meta_ttl = \"1h\"\n"))),
        case(
            "recovery without history",
            &["without_namespace.force_recovery", "needs history"],
        )
        .toml("[without_namespace]\nforce_recovery = true\n"),
        case(
            "nothing to push",
            &["force_push_join_leave", "join_leave = true"],
        )
        .toml(&namespace("force_push_join_leave = true\n")),
        case("namespace's name", &["namespaces.a:b", "letters, digits"])
            .toml("[namespaces.\"a:b\"]\npresence = true\n"),
    ]
}

/// The other commands.
fn commands() -> Vec<Case> {
    const WORKER: &[&str] = &["worker"];
    vec![
        case(
            "worker without Kafka",
            &["kafka.brokers", "set KAFKA_BROKERS"],
        )
        .args(WORKER)
        .env("DATABASE_URL", "sqlite://a.db"),
        case(
            "worker without archive",
            &["database.url", "set DATABASE_URL"],
        )
        .args(WORKER)
        .env("KAFKA_BROKERS", "h:1"),
        case(
            "worker of another version",
            &["--roles", "\"print\"", "`persist`"],
        )
        .args(&["worker", "--roles", "persist,print"]),
        case(
            "worker without batch",
            &["worker.batch_jobs_max", "above 0"],
        )
        .args(WORKER)
        .env("WYD__WORKER__BATCH_JOBS_MAX", "0"),
        case(
            "nothing to migrate",
            &["database.url", "nothing to migrate"],
        )
        .args(&["migrate"]),
        case("check of nothing", &["auth.hmac_secret", "set JWT_SECRET"])
            .args(&["check"])
            .without_secret(),
        case(
            "check for a worker",
            &["kafka.brokers", "set KAFKA_BROKERS"],
        )
        .args(&["check", "--role", "worker"]),
        case("token without key", &["auth.hmac_secret", "set JWT_SECRET"])
            .args(&["token", "--user", "ann"])
            .without_secret(),
        case(
            "token with a weak key",
            &["auth.hmac_secret", "fewer than 32 bytes"],
        )
        .args(&["token", "--user", "ann"])
        .env("JWT_SECRET", "planted"),
        case("config of a wrong file", &["lisen", "`listen`"])
            .args(&["config"])
            .toml("lisen = \"PLANTED\"\n"),
        case(
            "dev with a weak secret",
            &["auth.hmac_secret", "fewer than 32 bytes"],
        )
        .args(&["dev"])
        .env("JWT_SECRET", "planted"),
        case("dev in a file", &["--data", "/dev/null"]).args(&["dev", "--data", "/dev/null/here"]),
    ]
}

#[test]
fn all_mistakes_are_told_at_once() {
    let case = case("many", &[]).without_secret().toml(
        "lisen = 1\nlisten = \"nowhere\"\n[client]\nchannel_limit = \"PLANTED\"\n\
         [broker]\nkind = \"nats\"\n",
    );
    let output = case.run();
    assert_eq!(output.status.code(), Some(CONFIGURATION));
    assert_eq!(
        all_text(&output).lines().count(),
        4,
        "{}",
        all_text(&output)
    );
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (name, other) in [
        ("WYD__LISTEN", "WYD__INTERNAL_LISTEN"),
        ("WYD__INTERNAL_LISTEN", "WYD__LISTEN"),
    ] {
        for command in ["gateway", "dev"] {
            let folder = tempfile::tempdir().unwrap();
            let output = wyd(&folder, &[command])
                .envs([SECRET, (other, "127.0.0.1:0"), (name, &address)])
                .output()
                .unwrap();
            let text = all_text(&output);
            assert_eq!(output.status.code(), Some(CONFIGURATION), "{text}");
            let is_told = |line: &str| line.contains(&address) && line.contains(name);
            assert!(text.lines().any(is_told), "{command} {name}: {text}");
        }
    }
}

#[test]
fn services_that_do_not_answer_are_all_listed() {
    // A port that nobody listens on: it was free a moment ago, and nobody else asks for it.
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let output = wyd(&folder, &["check"])
        .envs([SECRET])
        .env("REDIS_URL", format!("redis://u:{PLANTED}@{free}"))
        .env("DATABASE_URL", format!("postgres://u:{PLANTED}@{free}/wyd"))
        .output()
        .unwrap();
    let text = all_text(&output);
    assert_eq!(output.status.code(), Some(DEPENDENCY), "{text}");
    for service in ["redis:", "database:"] {
        assert!(text.contains(service), "{service} {text}");
    }
    assert!(!text.contains(PLANTED), "{text}");
}

#[test]
fn the_default_file_is_a_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let default = stdout(&folder, &["config", "--default"], &[]);
    std::fs::write(folder.path().join("wyd.toml"), &default).unwrap();
    let with_file = stdout(&folder, &["config", "--config", "wyd.toml"], &[]);
    assert_eq!(with_file, stdout(&folder, &["config"], &[]));
    assert!(default.contains("# Time between server pings"), "{default}");
}

#[test]
fn the_effective_configuration_shows_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    std::fs::write(&file, PLANTED).unwrap();
    let path = file.to_str().unwrap();
    let shown = stdout(
        &folder,
        &["config"],
        &[
            SECRET,
            ("WYD_API_KEY_FILE", path),
            ("WYD__CLIENT__CHANNEL_LIMIT", "77"),
        ],
    );
    assert!(shown.contains("channel_limit = 77"), "{shown}");
    assert!(shown.contains("hmac_secret = \"***\""), "{shown}");
    assert!(shown.contains("default = \"***\""), "{shown}");
    assert!(!shown.contains(PLANTED), "{shown}");
}

#[test]
fn tokens_say_who_comes() {
    let folder = tempfile::tempdir().unwrap();
    let args = [
        "token",
        "--user",
        "ann",
        "--channels",
        "chat:1,chat:2",
        "--ttl",
        "60s",
    ];
    let claims = claims(&stdout(&folder, &args, &[SECRET]));
    assert_eq!(claims["sub"], "ann");
    assert_eq!(claims["channels"], serde_json::json!(["chat:1", "chat:2"]));
    let lifetime = claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap();
    assert_eq!(lifetime, 60);
    let args = [
        "token",
        "--anonymous",
        "--info",
        r#"{"name":"?"}"#,
        "--ttl",
        "999999999years",
    ];
    let output = wyd(&folder, &args).envs([SECRET]).output().unwrap();
    assert_eq!(
        output.status.code(),
        Some(2),
        "a lifetime that is no lifetime"
    );
    let args = ["token", "--anonymous", "--info", r#"{"name":"?"}"#];
    let anonymous = self::claims(&stdout(&folder, &args, &[SECRET]));
    assert!(anonymous.get("sub").is_none());
    assert_eq!(anonymous["info"]["name"], "?");
}

fn claims(token: &str) -> serde_json::Value {
    let mut validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::HS256);
    validation.validate_aud = false;
    let key = jsonwebtoken::DecodingKey::from_secret(PLANTED.as_bytes());
    let decoded = jsonwebtoken::decode(token.trim(), &key, &validation);
    decoded.unwrap().claims
}

fn wyd(folder: &TempDir, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wyd"));
    let folder: &Path = folder.path();
    command.args(args).env_clear().current_dir(folder);
    command
}

/// Runs a command that must succeed.
fn stdout(folder: &TempDir, args: &[&str], env: &[(&str, &str)]) -> String {
    let output = wyd(folder, args)
        .envs(env.iter().copied())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", all_text(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn all_text(output: &Output) -> String {
    let texts = [&output.stdout, &output.stderr];
    texts
        .map(|text| String::from_utf8_lossy(text).into_owned())
        .concat()
}
