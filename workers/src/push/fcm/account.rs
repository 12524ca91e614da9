//! The service account that pushes are sent for.

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::{Deserialize, Serialize};

/// What the access token is for.
const SCOPE: &str = "https://www.googleapis.com/auth/firebase.messaging";
/// Longest life of an assertion that Google accepts, in seconds.
const ASSERTION_LIFE: u64 = 3600;

/// A service account: whose pushes they are, and how that is proven.
pub struct ServiceAccount {
    pub(super) project: String,
    pub(super) token_uri: String,
    email: String,
    key_id: Option<String>,
    key: EncodingKey,
}

impl std::fmt::Debug for ServiceAccount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceAccount")
            .field("project", &self.project)
            .field("email", &self.email)
            .finish_non_exhaustive()
    }
}

/// The file that Google's console makes; what is not needed is left out.
#[derive(Deserialize)]
struct Json {
    project_id: String,
    client_email: String,
    private_key: String,
    #[serde(default)]
    private_key_id: Option<String>,
    token_uri: String,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    scope: &'a str,
    aud: &'a str,
    iat: u64,
    exp: u64,
}

impl ServiceAccount {
    /// Reads an account from its JSON, or from the file that a path names.
    ///
    /// # Errors
    /// In plain words and without any of the secret.
    pub fn read(json_or_path: &str) -> Result<Self, String> {
        let text = json_or_path.trim();
        if text.starts_with('{') {
            return Self::parse(text);
        }
        let file = std::fs::read_to_string(text)
            .map_err(|error| format!("neither JSON nor a file that can be read: {error}"))?;
        Self::parse(&file)
    }

    fn parse(json: &str) -> Result<Self, String> {
        // The parser's own words could repeat a part of the key.
        let json: Json = serde_json::from_str(json).map_err(|error| {
            format!(
                "no service account's JSON (line {}, column {}); it needs project_id, \
                 client_email, private_key and token_uri",
                error.line(),
                error.column()
            )
        })?;
        let key = EncodingKey::from_rsa_pem(json.private_key.as_bytes())
            .map_err(|_| "private_key is no RSA key in PEM".to_owned())?;
        Ok(Self {
            project: json.project_id,
            token_uri: json.token_uri,
            email: json.client_email,
            key_id: json.private_key_id,
            key,
        })
    }

    /// Signs what is exchanged for an access token (RFC 7523).
    pub(super) fn assertion(&self, now_s: u64) -> Result<String, String> {
        let claims = Claims {
            iss: &self.email,
            scope: SCOPE,
            aud: &self.token_uri,
            iat: now_s,
            exp: now_s + ASSERTION_LIFE,
        };
        let header = Header {
            kid: self.key_id.clone(),
            ..Header::new(Algorithm::RS256)
        };
        jsonwebtoken::encode(&header, &claims, &self.key).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_account_is_told_without_its_secret() {
        let missing = ServiceAccount::read("/nowhere/at-all.json").unwrap_err();
        assert!(missing.contains("file"), "{missing}");
        let json = r#"{"project_id": "p", "private_key": "PLANTED"}"#;
        let short = ServiceAccount::read(json).unwrap_err();
        assert!(short.contains("client_email"), "{short}");
        let json = r#"{"project_id": "p", "private_key": "PLANTED", "client_email": "e",
                       "token_uri": "u"}"#;
        let no_key = ServiceAccount::read(json).unwrap_err();
        assert!(no_key.contains("private_key"), "{no_key}");
        for text in [missing, short, no_key] {
            assert!(!text.contains("PLANTED"), "{text}");
        }
    }
}
