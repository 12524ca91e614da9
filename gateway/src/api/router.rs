//! Key, body, method, answer: the same for every method.
//!
//! HTTP 200 carries a result or an error; 401 a wrong key, 404 an unknown method, 405 another
//! verb than POST, 400 a body that is not JSON. With `X-Centrifugo-Error-Mode: transport` errors
//! become HTTP statuses.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, FromRequest, Path, RawQuery, Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use shared::config::Config;
use shared::protocol::ClientError;
use store::job_log::JobLog;

use crate::control::Control;
use crate::session::Services;

/// What the API's methods call.
pub(crate) struct Api {
    pub(super) services: Arc<Services>,
    pub(super) control: Arc<dyn Control>,
    /// Where pushes go.
    pub(super) job_log: Option<Arc<dyn JobLog>>,
    /// How long a push is wanted when the call does not say.
    pub(super) push_ttl: Duration,
    keys: HashMap<String, Bytes>,
}

/// The answer of a method: the JSON of its result.
pub(super) type Answer = Result<Value, ClientError>;

impl Api {
    pub(crate) fn new(
        services: Arc<Services>,
        control: Arc<dyn Control>,
        job_log: Option<Arc<dyn JobLog>>,
        config: &Config,
    ) -> Self {
        let keys = config.api.keys.iter();
        Self {
            services,
            control,
            job_log,
            push_ttl: config.push.ttl,
            keys: keys
                .map(|(name, key)| {
                    (
                        name.clone(),
                        Bytes::copy_from_slice(key.expose().as_bytes()),
                    )
                })
                .collect(),
        }
    }

    /// Returns whose key it is.
    fn name_of_key(&self, key: &[u8]) -> Option<&str> {
        // Every key is compared, and each in constant time: how long it takes tells nothing.
        let mut found = None;
        for (name, known) in &self.keys {
            if is_same(known, key) {
                found = Some(name.as_str());
            }
        }
        found
    }

    async fn call(&self, key_name: &str, method: &str, body: &[u8]) -> Option<Answer> {
        Some(match method {
            "publish" => self.publish(key_name, body).await,
            "broadcast" => self.broadcast(key_name, body).await,
            "history" => self.history(body).await,
            "history_remove" => self.history_remove(body).await,
            "presence" => self.presence(body).await,
            "presence_stats" => self.presence_stats(body).await,
            "disconnect" => self.disconnect(body).await,
            "unsubscribe" => self.unsubscribe(body).await,
            "members_add" => self.members_add(body).await,
            "members_remove" => self.members_remove(body).await,
            "members_set_role" => self.members_set_role(body).await,
            "info" => self.info().await,
            "push" => self.push(key_name, body).await,
            "user_export" => self.user_export(body).await,
            "user_erase" => self.user_erase(body).await,
            _ => return None,
        })
    }
}

/// Makes the routes under `/api`.
pub(crate) fn router(api: Arc<Api>, body_bytes_max: usize) -> Router {
    Router::new()
        .route("/api/{method}", post(answer))
        .layer(DefaultBodyLimit::max(body_bytes_max))
        .with_state(api)
}

async fn answer(
    State(api): State<Arc<Api>>,
    Path(method): Path<String>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Response {
    let headers = request.headers().clone();
    let Some(key) = key(&headers, query.as_deref()) else {
        return plain(
            StatusCode::UNAUTHORIZED,
            "an API key is needed: send X-API-Key",
        );
    };
    let Some(key_name) = api.name_of_key(key.as_bytes()) else {
        return plain(StatusCode::UNAUTHORIZED, "the API key is not known");
    };
    // Only after the key: a stranger's body is not read.
    let body = match Bytes::from_request(request, &()).await {
        Ok(body) => body,
        Err(refused) => return refused.into_response(),
    };
    if let Err(error) = serde_json::from_slice::<serde::de::IgnoredAny>(&body) {
        return plain(
            StatusCode::BAD_REQUEST,
            &format!("the body is not JSON: {error}"),
        );
    }
    let Some(answer) = api.call(key_name, &method, &body).await else {
        return plain(
            StatusCode::NOT_FOUND,
            &format!("there is no API method {method:?}"),
        );
    };
    let mode = headers.get("x-centrifugo-error-mode");
    let errors_are_statuses = mode.is_some_and(|mode| mode == "transport");
    match answer {
        Ok(result) => json_answer(StatusCode::OK, &json!({ "result": result })),
        Err(error) if errors_are_statuses => json_answer(status(error), &error_json(error)),
        Err(error) => json_answer(StatusCode::OK, &json!({ "error": error_json(error) })),
    }
}

/// Finds the key where clients put it: two headers, or the query.
fn key(headers: &HeaderMap, query: Option<&str>) -> Option<String> {
    if let Some(key) = headers.get("x-api-key") {
        return key.to_str().ok().map(str::to_owned);
    }
    let authorization = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    if let Some(("apikey", key)) = authorization.and_then(|value| value.split_once(' ')) {
        return Some(key.to_owned());
    }
    let pairs = query.unwrap_or_default().split('&');
    let encoded = pairs
        .filter_map(|pair| pair.split_once('='))
        .find(|(name, _)| *name == "api_key");
    let decoded = percent_encoding::percent_decode_str(encoded?.1)
        .decode_utf8()
        .ok()?;
    Some(decoded.into_owned())
}

fn is_same(known: &[u8], given: &[u8]) -> bool {
    let differences = known.iter().zip(given).fold(0, |all, (a, b)| all | (a ^ b));
    known.len() == given.len() && std::hint::black_box(differences) == 0
}

/// Reads a method's parameters.
///
/// # Errors
/// 107 when they do not have the method's shape.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(body).map_err(|error| {
        tracing::debug!(%error, "API request cannot be understood");
        ClientError::BAD_REQUEST
    })
}

fn error_json(error: ClientError) -> Value {
    json!({ "code": error.code, "message": error.message })
}

fn status(error: ClientError) -> StatusCode {
    match error.code {
        102 | 104 | 404 => StatusCode::NOT_FOUND,
        107 | 108 => StatusCode::BAD_REQUEST,
        112 => StatusCode::RANGE_NOT_SATISFIABLE,
        113 => StatusCode::CONFLICT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn json_answer(status: StatusCode, body: &Value) -> Response {
    respond(status, "application/json", body.to_string())
}

fn plain(status: StatusCode, text: &str) -> Response {
    respond(status, "text/plain; charset=utf-8", format!("{text}\n"))
}

fn respond(status: StatusCode, content_type: &'static str, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let value = axum::http::HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, value);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_where_clients_put_them() {
        let header = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            headers
        };
        let found = |headers, query| key(&headers, query);
        assert_eq!(found(header("x-api-key", "k"), None).as_deref(), Some("k"));
        assert_eq!(
            found(header("authorization", "apikey k"), None).as_deref(),
            Some("k")
        );
        assert_eq!(found(header("authorization", "Bearer k"), None), None);
        assert_eq!(
            found(HeaderMap::new(), Some("a=1&api_key=k%2F")).as_deref(),
            Some("k/")
        );
        assert_eq!(found(HeaderMap::new(), None), None);
    }

    #[test]
    fn comparing_needs_all_bytes() {
        assert!(is_same(b"abc", b"abc"));
        for other in [&b""[..], b"ab", b"abcd", b"abd"] {
            assert!(!is_same(b"abc", other));
        }
    }
}
