//! Settings from the environment: well-known names, `WYD__SECTION__KEY`, and `NAME_FILE`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::tree::{self, Path};

/// The environment, given as a value: nothing else in the project reads it.
pub type Environment = BTreeMap<String, String>;

/// Begins the names that follow the file's structure.
const PREFIX: &str = "WYD__";
const SEPARATOR: &str = "__";
/// Reads a secret from the file it names: `JWT_SECRET_FILE` for `JWT_SECRET`.
const FILE_SUFFIX: &str = "_FILE";

/// Well-known names, each with the key it sets.
pub(super) const WELL_KNOWN: [(&str, &str); 11] = [
    ("JWT_SECRET", "auth.hmac_secret"),
    ("DATABASE_URL", "database.url"),
    ("MONGO_URL", "mongo.url"),
    ("REDIS_URL", "broker.redis_url"),
    ("KAFKA_BROKERS", "kafka.brokers"),
    ("FCM_CREDENTIALS", "push.fcm_credentials"),
    ("WYD_API_KEY", "api.keys.default"),
    ("AWS_S3_BUCKET", "media.bucket"),
    ("AWS_S3_REGION", "media.region"),
    ("AWS_ENDPOINT_URL", "media.endpoint"),
    ("RUST_LOG", "telemetry.log_filter"),
];

/// Names that people set for what this version does not do, and what to do instead.
const REFUSED: [(&str, &str); 2] = [
    (
        "FCM_SERVER_KEY",
        "Google shut the legacy FCM API down in 2024; unset it, and set FCM_CREDENTIALS to a \
         service account's JSON (or its path)",
    ),
    (
        "JWT_JWKS_URL",
        "this version takes token keys from JWT_SECRET only; unset it, and set JWT_SECRET",
    ),
];

/// One setting that the environment makes.
pub(super) struct Setting {
    pub(super) path: Path,
    pub(super) value: Value,
    /// The variable.
    pub(super) name: String,
}

/// Returns the name that sets a key.
pub(super) fn name_of(path: &[String]) -> String {
    let joined = path.join(".");
    let well_known = WELL_KNOWN.iter().find(|(_, known)| *known == joined);
    match well_known {
        Some((name, _)) => (*name).to_owned(),
        None => PREFIX.to_owned() + &path.join(SEPARATOR).to_ascii_uppercase(),
    }
}

/// Reads all settings; `present` are the trees whose chosen names (namespaces) a name may mean.
pub(super) fn settings(
    environment: &Environment,
    shape: &Value,
    present: [&Value; 2],
    problems: &mut Vec<String>,
) -> Vec<Setting> {
    for (name, instead) in REFUSED {
        if given(environment, name).is_some() {
            problems.push(format!("{name}: {instead}"));
        }
    }
    let mut settings = Vec::new();
    for (name, key) in WELL_KNOWN {
        let path = key.split('.').map(str::to_owned).collect();
        match value_or_file(environment, name) {
            Some(Ok((name, value))) => settings.push(Setting {
                path,
                value: Value::String(value),
                name,
            }),
            Some(Err(problem)) => problems.push(problem),
            None => {}
        }
    }
    for (name, text) in environment {
        let Some(keys) = name.strip_prefix(PREFIX) else {
            continue;
        };
        match structured(name, keys, text, shape, present) {
            Ok(Some(setting)) => settings.push(setting),
            Ok(None) => {}
            Err(problem) => problems.push(problem),
        }
    }
    settings
}

/// Reads `WYD__SECTION__KEY`; `None` when it is set to nothing and the key is not a plain text.
fn structured(
    name: &str,
    keys: &str,
    text: &str,
    shape: &Value,
    present: [&Value; 2],
) -> Result<Option<Setting>, String> {
    let (path, example) = resolve(keys, shape, present);
    let plain = keys
        .strip_suffix(FILE_SUFFIX)
        .map(|keys| resolve(keys, shape, present));
    let (path, text) = match plain {
        // A key may itself end in `_file`; only of secrets the ending means a file.
        Some((path, _)) if tree::is_secret(&path) => (path, read(name, text)?),
        _ => (path, text.to_owned()),
    };
    if text.is_empty() && !matches!(example, Some(Value::String(_))) {
        return Ok(None);
    }
    Ok(Some(Setting {
        value: typed(text, example, &path),
        path,
        name: name.to_owned(),
    }))
}

/// Finds the key that an upper-case name means.
fn resolve<'a>(keys: &str, shape: &'a Value, present: [&Value; 2]) -> (Path, Option<&'a Value>) {
    let mut path = Path::new();
    let mut shape = Some(shape);
    let mut present = present.map(Some);
    for key in keys.split(SEPARATOR) {
        let is_name = shape.is_some_and(tree::has_any_name);
        let same = present
            .iter()
            .flatten()
            .filter_map(|tree| tree.as_object())
            .flat_map(|map| map.keys())
            .find(|known| is_name && known.eq_ignore_ascii_case(key));
        let key = same.cloned().unwrap_or_else(|| key.to_ascii_lowercase());
        shape = shape.and_then(|shape| tree::example(shape, &key));
        present = present.map(|tree| tree.and_then(|tree| tree.get(&key)));
        path.push(key);
    }
    (path, shape)
}

/// Reads a text as what the key holds; what cannot be read so stays text, for a message later.
fn typed(text: String, example: Option<&Value>, path: &[String]) -> Value {
    if tree::is_secret(path) {
        return Value::String(text);
    }
    let parsed = serde_json::from_str::<Value>(&text).ok();
    match (example, parsed) {
        (Some(Value::Bool(_)), Some(value @ Value::Bool(_)))
        | (Some(Value::Number(_)), Some(value @ Value::Number(_)))
        | (Some(Value::Array(_)), Some(value @ Value::Array(_)))
        | (Some(Value::Object(_)), Some(value @ Value::Object(_))) => value,
        (Some(Value::Array(_)), _) => text.split(',').map(str::trim).collect(),
        _ => Value::String(text),
    }
}

/// Finds a well-known value, or the one in the file that is named, with the variable's name.
fn value_or_file(
    environment: &Environment,
    name: &str,
) -> Option<Result<(String, String), String>> {
    let file_name = format!("{name}{FILE_SUFFIX}");
    match (given(environment, name), given(environment, &file_name)) {
        (Some(_), Some(_)) => Some(Err(format!(
            "{file_name}: {name} is set, too; keep one of them"
        ))),
        (Some(value), None) => Some(Ok((name.to_owned(), value.to_owned()))),
        (None, Some(path)) => Some(read(&file_name, path).map(|value| (file_name, value))),
        (None, None) => None,
    }
}

fn read(name: &str, path: &str) -> Result<String, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("{name}: cannot read {path}: {error}"))?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() {
        return Err(format!("{name}: {path} is empty"));
    }
    Ok(text.to_owned())
}

/// Set to nothing counts as not set.
fn given<'a>(environment: &'a Environment, name: &str) -> Option<&'a str> {
    let value = environment.get(name)?;
    (!value.is_empty()).then_some(value)
}
