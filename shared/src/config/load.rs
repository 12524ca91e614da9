//! Merges defaults, file and environment into one [`Config`]; later wins.
//!
//! Every problem is collected, so that a person mends all of them at once. A message names the
//! key as it must be written, says what is wrong and what to do. Secret values are never part of
//! a message.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::{Config, NamespaceOptions};

/// Begins the environment names that follow the file's structure.
const PREFIX: &str = "WYD__";
const SEPARATOR: &str = "__";
/// Reads a secret from the file it names: `JWT_SECRET_FILE` for `JWT_SECRET`.
const FILE_SUFFIX: &str = "_FILE";

/// Well-known names, each with the key it sets.
const WELL_KNOWN: [(&str, &[&str]); 6] = [
    ("JWT_SECRET", &["auth", "hmac_secret"]),
    ("DATABASE_URL", &["database", "url"]),
    ("MONGO_URL", &["mongo", "url"]),
    ("REDIS_URL", &["broker", "redis_url"]),
    ("KAFKA_BROKERS", &["kafka", "brokers"]),
    ("WYD_API_KEY", &["api", "keys", "default"]),
];

/// Everything that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigErrors(pub Vec<String>);

/// The environment, given as a value: nothing else in the project reads it.
pub type Environment = BTreeMap<String, String>;

/// Loads a configuration over `defaults`.
///
/// # Errors
/// All that is wrong, a line each.
pub fn load(
    defaults: &Config,
    file: Option<&Path>,
    environment: &Environment,
) -> Result<Config, ConfigErrors> {
    let mut errors = Vec::new();
    let mut tree = file.map_or_else(Map::new, |path| read_file(path, &mut errors));
    overlay_environment(&mut tree, environment, &mut errors);
    check_keys(&Value::Object(tree.clone()), &known_keys(), "", &mut errors);
    if !errors.is_empty() {
        return Err(ConfigErrors(errors));
    }
    let mut merged = defaults_tree(defaults);
    let given = secrets_of(defaults, tree);
    merge(&mut merged, Value::Object(given));
    let deserialized: Result<Config, _> = serde_path_to_error::deserialize(merged);
    deserialized.map_err(|error| {
        let path = error.path().to_string();
        ConfigErrors(vec![format!(
            "{path}: {}",
            without_place(&error.into_inner().to_string())
        )])
    })
}

fn read_file(path: &Path, errors: &mut Vec<String>) -> Map<String, Value> {
    let shown = path.display();
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            errors.push(format!("cannot read configuration file {shown}: {error}"));
            return Map::new();
        }
    };
    let is_yaml = path
        .extension()
        .is_some_and(|end| end == "yaml" || end == "yml");
    let parsed: Result<Value, String> = if is_yaml {
        serde_saphyr::from_str(&text).map_err(|error| error.to_string())
    } else {
        toml::from_str(&text).map_err(|error| error.to_string())
    };
    match parsed {
        Ok(Value::Object(tree)) => tree,
        Ok(Value::Null) => Map::new(),
        Ok(_) => {
            errors.push(format!(
                "configuration file {shown} does not hold keys and values"
            ));
            Map::new()
        }
        Err(error) => {
            errors.push(format!(
                "configuration file {shown} cannot be parsed: {}",
                one_line(&error)
            ));
            Map::new()
        }
    }
}

fn overlay_environment(
    tree: &mut Map<String, Value>,
    environment: &Environment,
    errors: &mut Vec<String>,
) {
    if environment.contains_key("FCM_SERVER_KEY") {
        errors.push(
            "FCM_SERVER_KEY: Google shut the legacy FCM API down in 2024; \
             set FCM_CREDENTIALS to a service account's JSON (or its path) instead"
                .to_owned(),
        );
    }
    for (name, path) in WELL_KNOWN {
        match well_known(name, environment) {
            Some(Ok(value)) => set(tree, path.iter().copied(), Value::String(value)),
            Some(Err(error)) => errors.push(error),
            None => {}
        }
    }
    if let Some(filter) = environment
        .get("RUST_LOG")
        .filter(|filter| !filter.is_empty())
    {
        set(
            tree,
            ["telemetry", "log_filter"],
            Value::String(filter.clone()),
        );
    }
    let structured = environment
        .iter()
        .filter_map(|(name, value)| name.strip_prefix(PREFIX).map(|path| (path, value)));
    for (path, value) in structured {
        let path = path.to_ascii_lowercase();
        set(tree, path.split(SEPARATOR), scalar(value));
    }
}

/// Finds a well-known value, or the file that holds it; an empty one counts as not set.
fn well_known(name: &str, environment: &Environment) -> Option<Result<String, String>> {
    if let Some(value) = environment.get(name).filter(|value| !value.is_empty()) {
        return Some(Ok(value.clone()));
    }
    let file_name = format!("{name}{FILE_SUFFIX}");
    let path = environment
        .get(&file_name)
        .filter(|path| !path.is_empty())?;
    let text = std::fs::read_to_string(path);
    Some(match text {
        Ok(text) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
        Err(error) => Err(format!("{file_name}: cannot read {path}: {error}")),
    })
}

/// Reads an environment value as the type it looks like; lists are separated by commas in `[…]`.
fn scalar(text: &str) -> Value {
    match serde_json::from_str::<Value>(text) {
        Ok(value @ (Value::Bool(_) | Value::Number(_) | Value::Array(_))) => value,
        _ => Value::String(text.to_owned()),
    }
}

fn set<'a>(tree: &mut Map<String, Value>, path: impl IntoIterator<Item = &'a str>, value: Value) {
    let mut path = path.into_iter().peekable();
    let mut place = tree;
    while let Some(key) = path.next() {
        if path.peek().is_none() {
            place.insert(key.to_owned(), value);
            return;
        }
        let next = place
            .entry(key)
            .or_insert_with(|| Value::Object(Map::new()));
        if !next.is_object() {
            *next = Value::Object(Map::new());
        }
        let Value::Object(inner) = next else {
            return;
        };
        place = inner;
    }
}

/// What may be set: the default configuration, with `*` standing for any name of a map.
fn known_keys() -> Value {
    let mut known = serde_json::to_value(Config::default()).unwrap_or_default();
    let options = serde_json::to_value(NamespaceOptions::default()).unwrap_or_default();
    if let Value::Object(known) = &mut known {
        known.insert(
            "namespaces".to_owned(),
            serde_json::json!({ "*": options.clone() }),
        );
        known.insert("without_namespace".to_owned(), options);
        known.insert(
            "api".to_owned(),
            serde_json::json!({ "keys": { "*": null } }),
        );
    }
    known
}

fn check_keys(given: &Value, known: &Value, path: &str, errors: &mut Vec<String>) {
    let (Value::Object(given), Value::Object(known)) = (given, known) else {
        return;
    };
    for (key, value) in given {
        let full = if path.is_empty() {
            key.clone()
        } else {
            format!("{path}.{key}")
        };
        match known.get(key).or_else(|| known.get("*")) {
            Some(known) => check_keys(value, known, &full, errors),
            None => errors.push(unknown_key(&full, key, path, known)),
        }
    }
}

fn unknown_key(full: &str, key: &str, path: &str, known: &Map<String, Value>) -> String {
    let nearest = known
        .keys()
        .map(|candidate| (strsim::damerau_levenshtein(key, candidate), candidate))
        .min();
    let hint = match nearest {
        Some((_, name)) if path.is_empty() => format!("; the nearest known key is `{name}`"),
        Some((_, name)) => format!("; the nearest known key is `{path}.{name}`"),
        None => String::new(),
    };
    format!("{full}: unknown key{hint}")
}

fn defaults_tree(defaults: &Config) -> Value {
    serde_json::to_value(defaults).unwrap_or_default()
}

/// Puts the defaults' secrets, which serialise masked, under the given values.
fn secrets_of(defaults: &Config, given: Map<String, Value>) -> Map<String, Value> {
    let mut tree = Map::new();
    let secrets = [
        (&["auth", "hmac_secret"], &defaults.auth.hmac_secret),
        (&["broker", "redis_url"], &defaults.broker.redis_url),
        (&["database", "url"], &defaults.database.url),
        (&["mongo", "url"], &defaults.mongo.url),
    ];
    for (path, secret) in secrets {
        if let Some(secret) = secret {
            set(
                &mut tree,
                path.iter().copied(),
                Value::String(secret.expose().to_owned()),
            );
        }
    }
    for (name, key) in &defaults.api.keys {
        set(
            &mut tree,
            ["api", "keys", name],
            Value::String(key.expose().to_owned()),
        );
    }
    let mut tree = Value::Object(tree);
    merge(&mut tree, Value::Object(given));
    match tree {
        Value::Object(tree) => tree,
        _ => Map::new(),
    }
}

fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

fn one_line(text: &str) -> String {
    text.split('\n')
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

fn without_place(text: &str) -> &str {
    text.split(" at line ").next().unwrap_or(text)
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

    #[test]
    fn environment_wins_over_defaults() {
        let config = load_env(&[
            ("WYD__LISTEN", "127.0.0.1:9000"),
            ("WYD__CLIENT__PING_INTERVAL", "30s"),
            ("WYD__CLIENT__INSECURE", "true"),
            ("WYD__NAMESPACES__CHAT__HISTORY_SIZE", "10"),
            ("JWT_SECRET", "secret"),
            ("WYD_API_KEY", "key"),
            ("PATH", "ignored"),
        ])
        .unwrap();
        assert_eq!(config.listen.port(), 9000);
        assert_eq!(config.client.ping_interval, Duration::from_secs(30));
        assert!(config.client.insecure);
        assert_eq!(config.namespaces["chat"].history_size, 10);
        assert_eq!(config.auth.hmac_secret.unwrap().expose(), "secret");
        assert_eq!(config.api.keys["default"].expose(), "key");
    }

    #[test]
    fn unknown_keys_name_the_nearest() {
        let error = load_env(&[("WYD__CLIENT__PING_INTERVALL", "1s")]).unwrap_err();
        assert_eq!(
            error,
            "client.ping_intervall: unknown key; the nearest known key is `client.ping_interval`"
        );
    }

    #[test]
    fn wrong_types_name_the_key() {
        let error = load_env(&[("WYD__CLIENT__CHANNEL_LIMIT", "many")]).unwrap_err();
        assert!(error.starts_with("client.channel_limit: "), "{error}");
        let error = load_env(&[("WYD__CLIENT__PING_INTERVAL", "soon")]).unwrap_err();
        assert!(error.contains("is not a duration such as"), "{error}");
    }

    #[test]
    fn defaults_keep_their_secrets() {
        let mut defaults = Config::default();
        defaults.auth.hmac_secret = Some("kept".into());
        let config = load(&defaults, None, &Environment::new()).unwrap();
        assert_eq!(config.auth.hmac_secret.unwrap().expose(), "kept");
    }
}
