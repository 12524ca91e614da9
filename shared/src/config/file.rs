//! Reads the configuration file: TOML, or YAML by its ending.

use std::path::Path;

use serde_json::{Map, Value};

/// Reads a file into a tree.
///
/// # Errors
/// A message that names the file and the place in it. It never repeats the file's text: the line
/// with the mistake may be the one with the secret.
pub(super) fn read(path: &Path) -> Result<Value, String> {
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("--config: cannot read {shown}: {error}"))?;
    let is_yaml = path
        .extension()
        .is_some_and(|end| end == "yaml" || end == "yml");
    let parsed = if is_yaml { yaml(&text) } else { toml(&text) };
    match parsed {
        Ok(tree @ Value::Object(_)) => Ok(tree),
        Ok(Value::Null) => Ok(Value::Object(Map::new())),
        Ok(_) => Err(format!("{shown}: expected keys with values")),
        Err(error) => Err(format!("{shown}: {error}")),
    }
}

fn toml(text: &str) -> Result<Value, String> {
    toml::from_str(text).map_err(|error| {
        let line = error.span().and_then(|span| {
            let before = text.get(..span.start)?;
            Some(before.matches('\n').count() + 1)
        });
        let place = line.map_or_else(String::new, |line| format!("line {line}: "));
        format!("{place}not TOML: {}", without_quotes(error.message()))
    })
}

fn yaml(text: &str) -> Result<Value, String> {
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let place = error
            .location()
            .map_or_else(String::new, |place| format!("line {}: ", place.line()));
        format!("{place}not YAML: {}", without_quotes(&error.to_string()))
    })
}

/// Leaves out what a parser quotes from the file.
fn without_quotes(message: &str) -> String {
    let mut out = String::new();
    for (index, part) in message.split(['`', '"']).enumerate() {
        match index % 2 {
            0 => out.push_str(part),
            _ => out.push('…'),
        }
    }
    out.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(name: &str, text: &str) -> Result<Value, String> {
        let folder = std::env::temp_dir().join(format!("wyd-config-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        let result = read(&path);
        std::fs::remove_dir_all(&folder).unwrap();
        result
    }

    #[test]
    fn both_languages_say_the_same() {
        let toml = read_text("a.toml", "[client]\nchannel_limit = 5\n").unwrap();
        let yaml = read_text("a.yaml", "client:\n  channel_limit: 5\n").unwrap();
        assert_eq!(toml, yaml);
        assert_eq!(read_text("a.yml", "").unwrap(), Value::Object(Map::new()));
    }

    #[test]
    fn mistakes_are_placed_and_nothing_of_the_file_is_shown() {
        for (name, text) in [
            ("a.toml", "[auth]\nhmac_secret = hidden-value\n"),
            ("a.toml", "[auth]\nhmac_secret = \"hidden-value\n"),
            ("a.toml", "[auth]\nhidden-value\n"),
            ("a.yaml", "auth:\n  hmac_secret: \"hidden-value\n"),
            ("a.yaml", "auth:\n  hmac_secret: [hidden-value\n"),
            ("a.yaml", "auth: *hidden-value\n"),
        ] {
            let error = read_text(name, text).unwrap_err();
            assert!(error.contains("line "), "{error}");
            assert!(!error.contains("hidden"), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
