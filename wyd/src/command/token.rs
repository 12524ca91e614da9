//! `wyd token`: a connection token (HS256), for trying out.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use shared::config::Config;
use shared::config::check::check_token_key;

use crate::cli::TokenArgs;
use crate::process::{Failure, Source};

pub(crate) fn run(source: Source<'_>, args: &TokenArgs) -> Result<(), Failure> {
    let config = source.load(&Config::default())?;
    // A token that every gateway of this configuration refuses would help nobody.
    let report = check_token_key(&config);
    if !report.errors.is_empty() {
        return Err(Failure::Configuration(report.errors));
    }
    let grant = Grant {
        user: args.user.as_deref().unwrap_or_default(),
        ttl: args.ttl,
        channels: &args.channels,
        info: args.info.clone().unwrap_or_default(),
    };
    println!("{}", mint(&config, &grant)?);
    Ok(())
}

/// Whom a token lets in, and with what.
pub(crate) struct Grant<'a> {
    /// Empty: the anonymous user.
    pub(crate) user: &'a str,
    /// How long it is good.
    pub(crate) ttl: Duration,
    /// Server-side subscriptions.
    pub(crate) channels: &'a [String],
    /// What others see; `null`: nothing.
    pub(crate) info: Value,
}

/// Makes a token that this configuration's gateways accept.
pub(crate) fn mint(config: &Config, grant: &Grant<'_>) -> Result<String, Failure> {
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
        "iat": now.as_secs(),
        "exp": now.as_secs().saturating_add(grant.ttl.as_secs()),
    });
    let optional = [
        ("sub", json!(grant.user), !grant.user.is_empty()),
        (
            "channels",
            json!(grant.channels),
            !grant.channels.is_empty(),
        ),
        ("info", grant.info.clone(), !grant.info.is_null()),
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
