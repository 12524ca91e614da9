//! Signatures by a shared secret: HS256, HS384 and HS512.

use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use shared::config::AuthConfig;

use super::token::{Claims, ConnectionToken, SubscriptionToken, TokenError};

/// A longer token is refused before any work is done on it.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// Checks tokens against the configured key.
pub struct Verifier {
    key: Option<DecodingKey>,
    validation: Validation,
    leeway_seconds: u64,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").finish_non_exhaustive()
    }
}

impl Verifier {
    /// Takes key and required claims from a checked configuration.
    pub fn new(config: &AuthConfig) -> Self {
        let secret = config.hmac_secret.as_ref();
        Self {
            key: secret.map(|secret| DecodingKey::from_secret(secret.expose().as_bytes())),
            validation: validation(config),
            leeway_seconds: config.leeway.as_secs(),
        }
    }

    /// Checks a connection token at `now` (Unix seconds).
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn connection(&self, token: &str, now: u64) -> Result<ConnectionToken, TokenError> {
        self.claims(token)?
            .into_connection(now, self.leeway_seconds)
    }

    /// Checks a subscription token at `now` (Unix seconds).
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn subscription(&self, token: &str, now: u64) -> Result<SubscriptionToken, TokenError> {
        self.claims(token)?
            .into_subscription(now, self.leeway_seconds)
    }

    fn claims(&self, token: &str) -> Result<Claims, TokenError> {
        let key = self.key.as_ref().ok_or(TokenError::Invalid)?;
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Invalid);
        }
        decode::<Claims>(token, key, &self.validation)
            .map(|decoded| decoded.claims)
            .map_err(|_| TokenError::Invalid)
    }
}

/// Times are checked by `Claims` against the caller's clock, not by the library against its own:
/// the session is driven by a given time.
fn validation(config: &AuthConfig) -> Validation {
    let mut validation = Validation::new(Algorithm::HS256);
    validation.algorithms = vec![Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.required_spec_claims.clear();
    validation.validate_aud = !config.audience.is_empty();
    if validation.validate_aud {
        validation.set_audience(&[&config.audience]);
        validation.required_spec_claims.insert("aud".to_owned());
    }
    if !config.issuer.is_empty() {
        validation.set_issuer(&[&config.issuer]);
        validation.required_spec_claims.insert("iss".to_owned());
    }
    validation
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::{EncodingKey, Header, encode};
    use serde_json::{Value, json};

    const SECRET: &str = "a secret of more than thirty-two bytes";

    fn verifier(change: impl FnOnce(&mut AuthConfig)) -> Verifier {
        let mut config = AuthConfig {
            hmac_secret: Some(SECRET.into()),
            ..AuthConfig::default()
        };
        change(&mut config);
        Verifier::new(&config)
    }

    fn token(claims: &Value) -> String {
        signed(claims, SECRET, Algorithm::HS256)
    }

    fn signed(claims: &Value, secret: &str, algorithm: Algorithm) -> String {
        let key = EncodingKey::from_secret(secret.as_bytes());
        encode(&Header::new(algorithm), claims, &key).unwrap()
    }

    #[test]
    fn a_good_token_tells_who_it_is() {
        let claims = json!({"sub": "42", "exp": 200, "info": {"name": "Ann"}, "channels": ["a"]});
        let parsed = verifier(|_| {}).connection(&token(&claims), 100).unwrap();
        assert_eq!(parsed.user, "42");
        assert_eq!(parsed.expire_at, Some(200));
        assert_eq!(parsed.info.unwrap(), r#"{"name":"Ann"}"#);
        assert_eq!(parsed.channels, ["a"]);
    }

    #[test]
    fn time_decides_expired() {
        let verifier = verifier(|_| {});
        let expired = token(&json!({"sub": "42", "exp": 100}));
        assert_eq!(verifier.connection(&expired, 100), Err(TokenError::Expired));
        assert!(verifier.connection(&expired, 99).is_ok());
        let early = token(&json!({"sub": "42", "nbf": 101}));
        assert_eq!(verifier.connection(&early, 100), Err(TokenError::Expired));
    }

    #[test]
    fn wrong_tokens_are_invalid() {
        let verifier = verifier(|_| {});
        let none = "eyJhbGciOiJub25lIn0.eyJzdWIiOiI0MiJ9.";
        let cases = [
            String::new(),
            "garbage".to_owned(),
            "a.b.c".to_owned(),
            none.to_owned(),
            "x".repeat(70_000),
            signed(&json!({"sub": "42"}), "another secret", Algorithm::HS256),
            token(&json!({"sub": 42})),
            token(&json!({"sub": "42", "exp": "200"})),
            token(&json!({"sub": "42", "exp": -1})),
            token(&json!({"sub": "42", "nbf": "1"})),
            token(&json!({"sub": "42", "channel": "a"})),
            token(&json!({"sub": "42", "b64info": "!"})),
            format!("{}x", token(&json!({"sub": "42"}))),
        ];
        for case in cases {
            assert_eq!(
                verifier.connection(&case, 100),
                Err(TokenError::Invalid),
                "{case:.40}"
            );
        }
    }

    #[test]
    fn audience_and_issuer_are_required_when_configured() {
        let verifier = verifier(|config| {
            config.audience = "phones".to_owned();
            config.issuer = "login".to_owned();
        });
        let good = json!({"sub": "1", "aud": "phones", "iss": "login"});
        assert!(verifier.connection(&token(&good), 1).is_ok());
        for bad in [
            json!({"sub": "1"}),
            json!({"sub": "1", "aud": "phones"}),
            json!({"sub": "1", "aud": "phones", "iss": "other"}),
            json!({"sub": "1", "aud": "other", "iss": "login"}),
        ] {
            assert_eq!(
                verifier.connection(&token(&bad), 1),
                Err(TokenError::Invalid),
                "{bad}"
            );
        }
    }

    #[test]
    fn expire_at_overrides_exp_for_the_connection() {
        let verifier = verifier(|_| {});
        let expiry = |claims| verifier.connection(&token(&claims), 100).unwrap().expire_at;
        assert_eq!(expiry(json!({"exp": 200, "expire_at": 300})), Some(300));
        assert_eq!(expiry(json!({"exp": 200, "expire_at": 0})), None);
        assert_eq!(expiry(json!({"exp": u64::MAX})), Some(100 + LIFETIME));
        const LIFETIME: u64 = 365 * 24 * 3600;
    }

    #[test]
    fn a_subscription_token_names_its_channel() {
        let verifier = verifier(|_| {});
        let good = json!({"sub": "42", "channel": "chat:1", "client": "c"});
        let parsed = verifier.subscription(&token(&good), 1).unwrap();
        assert_eq!(
            (parsed.channel.as_str(), parsed.client.as_deref()),
            ("chat:1", Some("c"))
        );
        let bad = json!({"sub": "42"});
        assert_eq!(
            verifier.subscription(&token(&bad), 1),
            Err(TokenError::Invalid)
        );
    }
}
