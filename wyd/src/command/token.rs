//! `wyd token`: a connection token (HS256), for trying out.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use shared::config::Config;

use crate::cli::TokenArgs;
use crate::process::{Failure, Source};

pub(crate) fn run(source: Source<'_>, args: &TokenArgs) -> Result<(), Failure> {
    let config = source.load(&Config::default())?;
    let info = match &args.info {
        Some(text) => serde_json::from_str(text).map_err(|error| {
            Failure::Configuration(vec![format!("--info is not JSON: {error}")])
        })?,
        None => Value::Null,
    };
    println!(
        "{}",
        mint(&config, &args.user, args.ttl, &args.channels, &info)?
    );
    Ok(())
}

/// Makes a token for a user.
pub(crate) fn mint(
    config: &Config,
    user: &str,
    ttl: Duration,
    channels: &[String],
    info: &Value,
) -> Result<String, Failure> {
    let auth = &config.auth;
    let Some(secret) = &auth.hmac_secret else {
        return Err(Failure::Configuration(vec![
            "auth.hmac_secret: tokens need a secret; set JWT_SECRET".to_owned(),
        ]));
    };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let mut claims = json!({
        "sub": user,
        "iat": now.as_secs(),
        "exp": (now + ttl).as_secs(),
    });
    let optional = [
        ("channels", json!(channels), !channels.is_empty()),
        ("info", info.clone(), !info.is_null()),
        ("aud", json!(auth.audience), !auth.audience.is_empty()),
        ("iss", json!(auth.issuer), !auth.issuer.is_empty()),
    ];
    for (name, value, is_set) in optional {
        if is_set {
            claims[name] = value;
        }
    }
    let key = EncodingKey::from_secret(secret.expose().as_bytes());
    encode(&Header::new(Algorithm::HS256), &claims, &key)
        .map_err(|error| Failure::Other(format!("token cannot be signed: {error}")))
}
