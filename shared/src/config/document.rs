//! Makes the documented default file and `docs/configuration.md` from the comments of the fields.

use serde_json::Value;

use super::{Config, NamespaceOptions};

/// Name under which the example namespace stands in the documents.
const EXAMPLE_NAMESPACE: &str = "NAME";

/// One key with all there is to say about it.
struct Entry {
    key: String,
    text: String,
    default: Value,
}

/// One section: its path, what it is about, its keys.
struct Section {
    path: String,
    text: String,
    entries: Vec<Entry>,
}

/// Returns the default configuration as a TOML file with comments.
pub fn default_file() -> String {
    let mut out = String::from("# Every setting of wyd with its default.\n");
    for section in sections() {
        // An example is no default: it is there to be copied.
        let mark = match section.path.contains(EXAMPLE_NAMESPACE) {
            true => "# ",
            false => "",
        };
        out.push('\n');
        for line in wrapped(&section.text) {
            out.push_str(&format!("# {line}\n"));
        }
        if !section.path.is_empty() {
            out.push_str(&format!("{mark}[{}]\n", section.path));
        }
        for entry in section.entries {
            for line in wrapped(&entry.text) {
                out.push_str(&format!("# {line}\n"));
            }
            match toml_value(&entry.default) {
                Some(value) => out.push_str(&format!("{mark}{} = {value}\n", entry.key)),
                None => out.push_str(&format!("# {} is not set\n", entry.key)),
            }
        }
    }
    out
}

/// Returns the reference page.
pub fn reference_page() -> String {
    let mut out = String::from(
        "# Configuration\n\n\
         Made from the comments in `shared/src/config`; do not edit. The test of the page tells how to \
         make it anew.\n\n\
         Later wins: defaults, `--config FILE` (TOML, or YAML by its ending), environment. \
         `WYD__SECTION__KEY` sets any key (`WYD__NAMESPACES__CHAT__DURABLE=true`; lists are \
         separated by commas), the names below the usual ones:\n\n\
         `JWT_SECRET` · `DATABASE_URL` · `MONGO_URL` · `REDIS_URL` · `KAFKA_BROKERS` · \
         `FCM_CREDENTIALS` · `WYD_API_KEY` · `AWS_S3_BUCKET` · `AWS_S3_REGION` · \
         `AWS_ENDPOINT_URL` · `RUST_LOG`\n\n\
         A secret may be the content of a file: `JWT_SECRET_FILE=/path`, and so for each of these \
         names and for `WYD__` names of secrets. An unknown key or a value of the wrong kind \
         stops the process before it begins (exit code 78), all of them listed.\n",
    );
    for section in sections() {
        let title = if section.path.is_empty() {
            "top level".to_owned()
        } else {
            format!("[{}]", section.path)
        };
        out.push_str(&format!(
            "\n## `{title}`\n\n{}\n\n| key | default | meaning |\n| --- | --- | --- |\n",
            section.text
        ));
        for entry in section.entries {
            let default = toml_value(&entry.default)
                .map_or_else(|| "not set".to_owned(), |v| format!("`{v}`"));
            let text = entry.text.replace('|', "\\|");
            out.push_str(&format!("| `{}` | {default} | {text} |\n", entry.key));
        }
    }
    out
}

fn sections() -> Vec<Section> {
    let schema = serde_json::to_value(schemars::schema_for!(Config)).unwrap_or_default();
    let mut defaults = serde_json::to_value(Config::default()).unwrap_or_default();
    let options = serde_json::to_value(NamespaceOptions::default()).unwrap_or_default();
    if let Value::Object(defaults) = &mut defaults {
        defaults.insert(
            "namespaces".to_owned(),
            serde_json::json!({ EXAMPLE_NAMESPACE: options }),
        );
    }
    let mut found = vec![Section {
        path: String::new(),
        text: String::from("Addresses."),
        entries: Vec::new(),
    }];
    let properties = schema["properties"]
        .as_object()
        .cloned()
        .unwrap_or_default();
    for (key, property) in &properties {
        let default = &defaults[key];
        match key.as_str() {
            // The same options as a namespace's; its own text says so.
            "without_namespace" => {}
            "namespaces" => {
                let definition = definition(&schema, "NamespaceOptions");
                let path = format!("namespaces.{EXAMPLE_NAMESPACE}");
                found.push(section(path, definition, &default[EXAMPLE_NAMESPACE]));
            }
            _ => match reference(property) {
                Some(name) if default.is_object() => {
                    found.push(section(key.clone(), definition(&schema, &name), default));
                }
                _ => found[0].entries.push(entry(key, property, default)),
            },
        }
    }
    found
}

fn section(path: String, definition: &Value, defaults: &Value) -> Section {
    let properties = definition["properties"]
        .as_object()
        .cloned()
        .unwrap_or_default();
    Section {
        path,
        text: text(definition),
        entries: properties
            .iter()
            .map(|(key, property)| entry(key, property, &defaults[key]))
            .collect(),
    }
}

fn entry(key: &str, property: &Value, default: &Value) -> Entry {
    Entry {
        key: key.to_owned(),
        text: text(property),
        default: default.clone(),
    }
}

fn definition<'a>(schema: &'a Value, name: &str) -> &'a Value {
    &schema["$defs"][name]
}

fn reference(property: &Value) -> Option<String> {
    let direct = property["$ref"].as_str();
    direct
        .and_then(|path| path.rsplit('/').next())
        .map(str::to_owned)
}

fn text(schema: &Value) -> String {
    let text = schema["description"].as_str().unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn toml_value(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::Object(map) if map.is_empty() => Some("{}".to_owned()),
        other => Some(other.to_string()),
    }
}

fn wrapped(text: &str) -> Vec<String> {
    const WIDTH: usize = 94;
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let is_full = lines
            .last()
            .is_some_and(|line| !line.is_empty() && line.len() + word.len() >= WIDTH);
        if is_full {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_file_is_the_default() {
        let file = default_file();
        let parsed: toml::Value = toml::from_str(&file).unwrap();
        assert_eq!(parsed["client"]["ping_interval"].as_str(), Some("25s"));
        assert_eq!(parsed["listen"].as_str(), Some("0.0.0.0:8000"));
        for section in sections() {
            assert!(!section.text.is_empty(), "[{}] has no text", section.path);
            for entry in section.entries {
                assert!(
                    !entry.text.is_empty(),
                    "{}.{} has no text",
                    section.path,
                    entry.key
                );
            }
        }
    }

    #[test]
    fn the_reference_page_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
        if std::env::var_os("WYD_WRITE_DOCS").is_some() {
            std::fs::write(path, reference_page()).unwrap();
        }
        let page = std::fs::read_to_string(path).unwrap_or_default();
        let is_same = page == reference_page();
        assert!(
            is_same,
            "docs/configuration.md is old: WYD_WRITE_DOCS=1 cargo test --workspace --lib reference_page"
        );
    }
}
