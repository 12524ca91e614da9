//! Merges defaults, file and environment into one [`Config`]; later wins.
//!
//! Every problem is collected, so that a person mends all of them at once. A message names the
//! key and where it was set, says what is wrong and what to do. Secret values are never part of
//! a message. `file` and `environment` read the sources, `tree` knows what may be set.

use std::collections::BTreeMap;
use std::path::Path as FilePath;

use serde_json::{Map, Value};
use serde_path_to_error::Segment;

use super::tree::{self, Path};
use super::{Config, environment, file};

pub use super::environment::Environment;

/// Most values that are tried; more mistakes than that are told after the first ones are mended.
const ATTEMPTS_MAX: usize = 200;
/// Longest part of a wrong value that a message repeats, in characters.
const SHOWN_CHARS_MAX: usize = 60;

/// Everything that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigErrors(pub Vec<String>);

/// Loads a configuration over `defaults`.
///
/// # Errors
/// All that is wrong, a line each.
pub fn load(
    defaults: &Config,
    file: Option<&FilePath>,
    environment: &Environment,
) -> Result<Config, ConfigErrors> {
    let shape = tree::shape();
    let defaults = tree::of_defaults(defaults);
    let mut loading = Loading::default();
    if let Some(path) = file {
        loading.file = Some(path.display().to_string());
        match file::read(path) {
            Ok(tree) => loading.tree = tree,
            Err(problem) => loading.problems.push(problem),
        }
    }
    let present = [&loading.tree, &defaults];
    let settings = environment::settings(environment, &shape, present, &mut loading.problems);
    for setting in settings {
        loading.names.insert(setting.path.clone(), setting.name);
        tree::set(&mut loading.tree, &setting.path, setting.value);
    }
    let mut given = std::mem::take(&mut loading.tree);
    loading.check_shape(&mut given, &shape, &mut Path::new());
    let config = loading.deserialize(given, &defaults);
    match config {
        Some(config) if loading.problems.is_empty() => Ok(config),
        _ => Err(ConfigErrors(loading.problems)),
    }
}

/// What is known while the sources are put together.
struct Loading {
    /// What file and environment set.
    tree: Value,
    file: Option<String>,
    /// The variable that set a key.
    names: BTreeMap<Path, String>,
    problems: Vec<String>,
}

impl Default for Loading {
    fn default() -> Self {
        Self {
            tree: Value::Object(Map::new()),
            file: None,
            names: BTreeMap::new(),
            problems: Vec::new(),
        }
    }
}

impl Loading {
    /// Finds unknown keys and values of the wrong kind, and takes them out.
    fn check_shape(&mut self, given: &mut Value, shape: &Value, path: &mut Path) {
        let Value::Object(map) = given else { return };
        map.retain(|key, value| {
            path.push(key.clone());
            let is_kept = match tree::example(shape, key) {
                Some(example) => self.check_value(value, example, path),
                None => {
                    let nearest = nearest(shape, path);
                    self.report(path, &format!("unknown key{nearest}"));
                    false
                }
            };
            path.pop();
            is_kept
        });
    }

    fn check_value(&mut self, value: &mut Value, example: &Value, path: &mut Path) -> bool {
        let expected = match (example, &*value) {
            // An empty key of YAML: as if it were not there.
            (_, Value::Null) => return false,
            (Value::Object(_), Value::Object(_)) => {
                self.check_shape(value, example, path);
                return true;
            }
            (Value::Bool(_), Value::Bool(_))
            | (Value::Number(_), Value::Number(_))
            | (Value::String(_) | Value::Null, Value::String(_))
            | (Value::Array(_), Value::Array(_)) => return true,
            (Value::Object(_), _) => "a section with keys",
            (Value::Bool(_), _) => "true or false",
            (Value::Number(_), _) => "a whole number",
            (Value::String(text), _) if text.parse::<std::net::SocketAddr>().is_ok() => {
                "an address such as \"0.0.0.0:8000\""
            }
            (Value::String(_) | Value::Null, _) => "a text in quotes",
            (Value::Array(_), _) => "a list of texts",
        };
        let given = shown(value, path);
        self.report(path, &format!("expected {expected}, not {given}"));
        false
    }

    /// Makes the configuration; what cannot be read is reported and left out, so that the next
    /// mistake is found as well.
    fn deserialize(&mut self, mut given: Value, defaults: &Value) -> Option<Config> {
        for _ in 0..ATTEMPTS_MAX {
            let mut merged = defaults.clone();
            tree::merge(&mut merged, given.clone());
            let error = match serde_path_to_error::deserialize::<_, Config>(&merged) {
                Ok(config) => return Some(config),
                Err(error) => error,
            };
            let path = keys(error.path());
            let message = if tree::is_secret(&path) {
                "this value cannot be read".to_owned()
            } else {
                plain_words(&error.inner().to_string())
            };
            self.report(&path, &message);
            if !tree::remove(&mut given, &path) {
                return None;
            }
        }
        None
    }

    /// Notes a problem with the key and where it was set.
    fn report(&mut self, path: &[String], problem: &str) {
        let key = path.join(".");
        // A variable that set something below the key named the key, too.
        let mut names = self.names.range(path.to_vec()..);
        let name = names.next().filter(|(set, _)| set.starts_with(path));
        let source = match (name, &self.file) {
            (Some((_, name)), _) => format!(" ({name})"),
            (None, Some(file)) => format!(" (in {file})"),
            (None, None) => String::new(),
        };
        self.problems.push(format!("{key}{source}: {problem}"));
    }
}

fn keys(path: &serde_path_to_error::Path) -> Path {
    path.iter()
        .map_while(|segment| match segment {
            Segment::Map { key } => Some(key.clone()),
            _ => None,
        })
        .collect()
}

fn nearest(shape: &Value, path: &[String]) -> String {
    let (Some(key), Value::Object(known)) = (path.last(), shape) else {
        return String::new();
    };
    let nearest = known
        .keys()
        .map(|known| (strsim::damerau_levenshtein(key, known), known))
        .min();
    let Some((_, name)) = nearest else {
        return String::new();
    };
    let mut path = path.to_vec();
    path.pop();
    path.push(name.clone());
    let variable = environment::name_of(&path);
    format!(
        "; the nearest known key is `{}` ({variable})",
        path.join(".")
    )
}

/// Says what was given, but for secrets only of what kind it is.
fn shown(value: &Value, path: &[String]) -> String {
    let kind = match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a section with keys",
    };
    if tree::is_secret(path) || value.is_object() {
        return kind.to_owned();
    }
    let text = value.to_string();
    if text.chars().count() <= SHOWN_CHARS_MAX {
        return text;
    }
    text.chars().take(SHOWN_CHARS_MAX).chain(['…']).collect()
}

/// Says in plain words what the deserializer says in Rust's.
fn plain_words(message: &str) -> String {
    const WORDS: [(&str, &str); 10] = [
        ("expected usize", "expected a whole number from 0"),
        ("expected u16", "expected a whole number from 0 to 65535"),
        (
            "expected u32",
            "expected a whole number from 0 to 4294967295",
        ),
        ("expected u64", "expected a whole number from 0"),
        ("expected i32", "expected a whole number"),
        ("expected a string", "expected a text in quotes"),
        ("invalid type: ", ""),
        ("invalid value: ", ""),
        ("unknown variant", "unknown value"),
        (
            "invalid socket address syntax",
            "not an address such as \"0.0.0.0:8000\" (an IP address and a port)",
        ),
    ];
    WORDS
        .iter()
        .fold(message.to_owned(), |text, (rust, plain)| {
            text.replace(rust, plain)
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn load_env(pairs: &[(&str, &str)]) -> Result<Config, String> {
        load(&Config::default(), None, &environment(pairs)).map_err(|errors| errors.to_string())
    }

    fn load_both(file: &str, pairs: &[(&str, &str)]) -> Result<Config, String> {
        let path = std::env::temp_dir().join(format!("wyd-{}.toml", uuid::Uuid::new_v4()));
        std::fs::write(&path, file).unwrap();
        let loaded = load(&Config::default(), Some(&path), &environment(pairs));
        std::fs::remove_file(&path).unwrap();
        loaded.map_err(|errors| errors.to_string())
    }

    #[test]
    fn environment_wins_over_file_and_file_over_defaults() {
        let file =
            "listen = \"127.0.0.1:1\"\n[client]\nchannel_limit = 5\nping_interval = \"40s\"\n";
        let config = load_both(
            file,
            &[
                ("WYD__LISTEN", "127.0.0.1:9000"),
                ("WYD__CLIENT__PING_INTERVAL", "30s"),
                ("WYD__CLIENT__INSECURE", "true"),
                (
                    "WYD__CLIENT__ALLOWED_ORIGINS",
                    "https://a.test, https://b.test",
                ),
                ("WYD__AUTH__AUDIENCE", "12"),
                ("JWT_SECRET", "secret"),
                ("WYD_API_KEY", "7"),
                ("WYD__API__KEYS__MOBILE", "8"),
                ("PATH", "ignored"),
                ("WYD__BROKER__KIND", ""),
            ],
        )
        .unwrap();
        assert_eq!(config.listen.port(), 9000);
        assert_eq!(config.client.ping_interval, Duration::from_secs(30));
        assert_eq!(config.client.channel_limit, 5);
        assert_eq!(config.client.pong_timeout, Duration::from_secs(8));
        assert!(config.client.insecure);
        assert_eq!(
            config.client.allowed_origins,
            ["https://a.test", "https://b.test"]
        );
        assert_eq!(config.auth.audience, "12", "text stays text");
        assert_eq!(config.auth.hmac_secret.unwrap().expose(), "secret");
        assert_eq!(config.api.keys["default"].expose(), "7");
        assert_eq!(config.api.keys["mobile"].expose(), "8");
    }

    #[test]
    fn namespaces_are_found_whatever_their_case() {
        let config = load_both(
            "[namespaces.Chat]\nhistory_size = 1\n",
            &[
                ("WYD__NAMESPACES__CHAT__DURABLE", "true"),
                ("WYD__NAMESPACES__NEW__PRESENCE", "true"),
                ("WYD__WITHOUT_NAMESPACE__PRESENCE", "true"),
            ],
        )
        .unwrap();
        assert_eq!(
            config.namespaces.keys().collect::<Vec<_>>(),
            ["Chat", "new"]
        );
        assert!(config.namespaces["Chat"].durable);
        assert_eq!(config.namespaces["Chat"].history_size, 1);
        assert!(config.without_namespace.unwrap().presence);
        let whole = [("WYD__NAMESPACES", r#"{"chat":{"durable":true}}"#)];
        assert!(load_env(&whole).unwrap().namespaces["chat"].durable);
    }

    #[test]
    fn unknown_keys_name_the_nearest() {
        let error = load_env(&[("WYD__CLIENT__PING_INTERVALL", "1s")]).unwrap_err();
        assert_eq!(
            error,
            "client.ping_intervall (WYD__CLIENT__PING_INTERVALL): unknown key; the nearest known \
             key is `client.ping_interval` (WYD__CLIENT__PING_INTERVAL)"
        );
        let error = load_both("[namespaces.chat]\nhistory_sise = 1\n", &[]).unwrap_err();
        assert!(error.contains("`namespaces.chat.history_size`"), "{error}");
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let error = load_both(
            "listen = 8000\nlisen = 1\n[client]\nping_interval = \"soon\"\nchannel_limit = -1\n\
             [namespaces.chat]\nauthorize = \"everybody\"\ndurable = \"yes\"\n",
            &[
                ("WYD__CLIENT__INSECURE", "maybe"),
                ("WYD__BROKER__PARTITIONS", "70000"),
                ("WYD__KAFKA", "localhost"),
                ("FCM_SERVER_KEY", "x"),
            ],
        )
        .unwrap_err();
        for part in [
            "FCM_SERVER_KEY: Google shut",
            "listen (in ",
            "expected an address such as",
            "the nearest known key is `listen`",
            "\"soon\" is not a duration such as",
            "client.channel_limit (in ",
            "integer `-1`, expected a whole number from 0",
            "unknown value `everybody`, expected one of `token`, `public`, `membership`",
            "expected true or false, not \"yes\"",
            "client.insecure (WYD__CLIENT__INSECURE): expected true or false, not \"maybe\"",
            "integer `70000`, expected a whole number from 0 to 65535",
            "kafka (WYD__KAFKA): expected a section with keys, not \"localhost\"",
        ] {
            assert!(error.contains(part), "{part} is not in\n{error}");
        }
        assert_eq!(error.lines().count(), 10, "{error}");
    }

    #[test]
    fn secrets_come_from_files_and_never_into_messages() {
        let path = std::env::temp_dir().join(format!("wyd-{}", uuid::Uuid::new_v4()));
        std::fs::write(&path, "from a file\r\n").unwrap();
        let file = path.to_str().unwrap();
        let config = load_env(&[
            ("JWT_SECRET_FILE", file),
            ("WYD__API__KEYS__MOBILE_FILE", file),
        ])
        .unwrap();
        assert_eq!(config.auth.hmac_secret.unwrap().expose(), "from a file");
        assert_eq!(config.api.keys["mobile"].expose(), "from a file");
        let error = load_env(&[("JWT_SECRET", "hidden"), ("JWT_SECRET_FILE", file)]).unwrap_err();
        assert!(
            error.contains("keep one of them") && !error.contains("hidden"),
            "{error}"
        );
        std::fs::remove_file(&path).unwrap();
        let error = load_env(&[("JWT_SECRET_FILE", file)]).unwrap_err();
        assert!(error.starts_with("JWT_SECRET_FILE: cannot read"), "{error}");
        let error = load_both("[auth]\nhmac_secret = 987654\n", &[]).unwrap_err();
        assert!(
            error.contains("expected a text in quotes, not a number"),
            "{error}"
        );
        assert!(!error.contains("987654"), "{error}");
    }

    #[test]
    fn defaults_keep_their_secrets() {
        let mut defaults = Config::default();
        defaults.auth.hmac_secret = Some("kept".into());
        let config = load(&defaults, None, &Environment::new()).unwrap();
        assert_eq!(config.auth.hmac_secret.unwrap().expose(), "kept");
    }
}
