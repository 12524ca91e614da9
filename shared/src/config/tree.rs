//! Settings as a tree of JSON values, before they are a [`Config`]: what may be in it, and walks.

use serde_json::{Map, Value};

use super::{Config, NamespaceOptions};

/// Stands for any name of a map.
const ANY: &str = "*";

/// Where secrets are. Their values never get into a message.
const SECRETS: [&[&str]; 6] = [
    &["api", "keys", ANY],
    &["auth", "hmac_secret"],
    &["broker", "redis_url"],
    &["database", "url"],
    &["mongo", "url"],
    &["push", "fcm_credentials"],
];

/// A place in the tree.
pub(super) type Path = Vec<String>;

/// Returns everything that may be set, as an example value each: the defaults, `*` for any name.
///
/// What has no default is `null`; all of that is written as text.
pub(super) fn shape() -> Value {
    let mut shape = to_value(&Config::default());
    let options = to_value(&NamespaceOptions::default());
    if let Value::Object(shape) = &mut shape {
        let namespaces = serde_json::json!({ ANY: options.clone() });
        shape.insert("namespaces".to_owned(), namespaces);
        shape.insert("without_namespace".to_owned(), options);
        let api = serde_json::json!({ "keys": { ANY: null } });
        shape.insert("api".to_owned(), api);
    }
    shape
}

/// Finds the example of a key.
pub(super) fn example<'a>(shape: &'a Value, key: &str) -> Option<&'a Value> {
    shape.get(key).or_else(|| shape.get(ANY))
}

/// True for a map whose keys are names that people choose.
pub(super) fn has_any_name(shape: &Value) -> bool {
    shape.get(ANY).is_some()
}

/// True when a value at this place must not be shown.
pub(super) fn is_secret(path: &[String]) -> bool {
    SECRETS.iter().any(|secret| {
        secret.len() == path.len()
            && secret
                .iter()
                .zip(path)
                .all(|(known, given)| *known == ANY || known == given)
    })
}

/// Turns the defaults into a tree, secrets included, which serialise masked.
pub(super) fn of_defaults(defaults: &Config) -> Value {
    let mut tree = to_value(defaults);
    let secrets = [
        ("auth.hmac_secret", &defaults.auth.hmac_secret),
        ("broker.redis_url", &defaults.broker.redis_url),
        ("database.url", &defaults.database.url),
        ("mongo.url", &defaults.mongo.url),
        ("push.fcm_credentials", &defaults.push.fcm_credentials),
    ];
    let single = secrets
        .into_iter()
        .filter_map(|(path, secret)| Some((parse(path), secret.as_ref()?)));
    let keys = defaults.api.keys.iter();
    let named = keys.map(|(name, key)| {
        let path = ["api", "keys", name].map(str::to_owned);
        (path.to_vec(), key)
    });
    for (path, secret) in single.chain(named) {
        set(&mut tree, &path, Value::String(secret.expose().to_owned()));
    }
    tree
}

/// Puts a value at a place; what is not a section on the way there becomes one.
pub(super) fn set(tree: &mut Value, path: &[String], value: Value) {
    let Some((key, rest)) = path.split_first() else {
        merge(tree, value);
        return;
    };
    if !tree.is_object() {
        *tree = Value::Object(Map::new());
    }
    if let Value::Object(map) = tree {
        set(map.entry(key.as_str()).or_insert(Value::Null), rest, value);
    }
}

/// Takes the value at a place away; false when there is none.
pub(super) fn remove(tree: &mut Value, path: &[String]) -> bool {
    let (Value::Object(map), Some((key, rest))) = (tree, path.split_first()) else {
        return false;
    };
    if rest.is_empty() {
        return map.remove(key).is_some();
    }
    map.get_mut(key).is_some_and(|inner| remove(inner, rest))
}

/// Lays one tree over another.
pub(super) fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

fn parse(path: &str) -> Path {
    path.split('.').map(str::to_owned).collect()
}

fn to_value(value: &impl serde::Serialize) -> Value {
    // Maps with text keys and plain values: there is nothing in them that JSON cannot say.
    serde_json::to_value(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_set_merged_and_removed_by_path() {
        let mut tree = serde_json::json!({ "a": 1 });
        set(&mut tree, &parse("b.c"), Value::from(2));
        set(&mut tree, &parse("a.d"), Value::from(3));
        merge(&mut tree, serde_json::json!({ "b": { "e": 4 } }));
        assert_eq!(
            tree,
            serde_json::json!({ "a": { "d": 3 }, "b": { "c": 2, "e": 4 } })
        );
        assert!(remove(&mut tree, &parse("b.c")));
        assert!(!remove(&mut tree, &parse("b.c")));
        assert!(!remove(&mut tree, &parse("a.d.x")));
    }

    #[test]
    fn every_secret_is_known_as_one() {
        let mut config = Config::default();
        config.api.keys.insert("mobile".to_owned(), "k".into());
        config.auth.hmac_secret = Some("k".into());
        config.broker.redis_url = Some("k".into());
        config.database.url = Some("k".into());
        config.mongo.url = Some("k".into());
        config.push.fcm_credentials = Some("k".into());
        // What is masked is a secret; and each is there again in the defaults' tree.
        let masked = leaves(&to_value(&config), &Path::new(), &Value::from("***"));
        assert_eq!(masked.len(), SECRETS.len());
        assert!(masked.iter().all(|path| is_secret(path)), "{masked:?}");
        assert!(!is_secret(&parse("kafka.brokers")));
        let given = leaves(&of_defaults(&config), &Path::new(), &Value::from("k"));
        assert_eq!(given, masked);
    }

    fn leaves(tree: &Value, path: &[String], wanted: &Value) -> Vec<Path> {
        match tree {
            Value::Object(map) => map
                .iter()
                .flat_map(|(key, inner)| {
                    let path = [path, std::slice::from_ref(key)].concat();
                    leaves(inner, &path, wanted)
                })
                .collect(),
            leaf if leaf == wanted => vec![path.to_vec()],
            _ => Vec::new(),
        }
    }
}
