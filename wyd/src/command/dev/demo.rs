//! The chat demo and the tokens it connects with.
//!
//! Nobody proves who they are here, so these routes exist in `wyd dev` only.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::header::{CACHE_CONTROL, HOST};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;
use shared::config::Config;

use crate::command::token::{Grant, mint};
use crate::internal::chat_page;

/// How long the demo's tokens are good.
const TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);
/// Longest name in the demo.
const NAME_BYTES_MAX: usize = 64;

/// Makes the demo's pages and `/dev/token`.
pub(super) fn routes(config: Arc<Config>) -> Router {
    Router::new()
        .route("/dev/token", get(token))
        .fallback(chat_page)
        .with_state(config)
}

#[derive(Debug, Deserialize)]
struct TokenQuery {
    #[serde(default)]
    user: String,
}

async fn token(
    State(config): State<Arc<Config>>,
    Query(query): Query<TokenQuery>,
    headers: HeaderMap,
) -> Response {
    if !is_own_page(&headers, &config.client.allowed_origins) {
        return refuse(StatusCode::FORBIDDEN, "tokens are for the demo's own page");
    }
    let name = query.user.trim();
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        let error = format!("user: a name has 1 to {NAME_BYTES_MAX} bytes");
        return refuse(StatusCode::BAD_REQUEST, &error);
    }
    let grant = Grant {
        user: name,
        ttl: TOKEN_TTL,
        channels: &[],
        info: json!({ "name": name }),
    };
    match mint(&config, &grant) {
        Ok(token) => (
            [(CACHE_CONTROL, "no-store")],
            Json(json!({ "token": token })),
        )
            .into_response(),
        Err(_) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "no token could be made"),
    }
}

/// True when the page was loaded by one of this node's own names.
///
/// Another site's name may be made to point at this machine (DNS rebinding); its pages then count
/// as of one origin with this route, but `Host` still tells.
fn is_own_page(headers: &HeaderMap, origins: &[String]) -> bool {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    host.is_some_and(|host| {
        let origin = format!("http://{host}");
        origins.iter().any(|own| match own.strip_suffix(":*") {
            Some(own) => {
                let port = origin.strip_prefix(own);
                port.is_some_and(|port| port.starts_with(':'))
            }
            None => own == "*" || *own == origin,
        })
    })
}

fn refuse(status: StatusCode, text: &str) -> Response {
    (status, format!("{text}\n")).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_for_the_own_page() {
        let own = ["http://localhost:8000", "http://[::1]:*"].map(str::to_owned);
        let asked = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, host.parse().unwrap());
            is_own_page(&headers, &own)
        };
        assert!(asked("localhost:8000"));
        assert!(asked("[::1]:1234"));
        assert!(!asked("localhost:8001"));
        assert!(!asked("evil.test:8000"));
        assert!(!is_own_page(&HeaderMap::new(), &own));
    }
}
