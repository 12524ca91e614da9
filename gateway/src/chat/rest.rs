//! The operations under `/v1`: token, path, query and body make one request; errors are problem
//! details.
//!
//! The request's JSON is put together as text: path and query come first, the body's own members
//! after them, and a field that comes twice is refused by whoever reads the whole. So a message
//! is never taken apart on its way.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::{BytesRejection, RawPathParamsRejection};
use axum::extract::{DefaultBodyLimit, RawPathParams, RawQuery};
use axum::http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;
use axum::routing::{MethodFilter, MethodRouter, any, get, on};
use bytes::Bytes;
use percent_encoding::percent_decode_str;
use schemars::SchemaGenerator;
use serde_json::Value;
use shared::ids::ClientId;
use shared::protocol::{ClientError, ClientInfo};

use super::error::ChatError;
use super::messages::SentMessage;
use super::operation::{OPERATIONS, Operation, Run, Verb, json};
use super::{Caller, Chat, openapi};
use crate::auth::TokenError;
use crate::session::Now;
use crate::session::call::client_error;

/// Carries the field of that name, where an operation has one.
const IDEMPOTENCY_KEY: &str = "idempotency-key";
const IDEMPOTENCY_FIELD: &str = "idempotency_key";
const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Makes the routes under `/v1`.
pub(crate) fn router(chat: &Arc<Chat>, body_bytes_max: usize) -> Router {
    let mut paths: BTreeMap<&'static str, MethodRouter> = BTreeMap::new();
    for operation in OPERATIONS {
        let endpoint = Arc::new(Endpoint::new(Arc::clone(chat), operation));
        let route = on(
            filter(operation.verb),
            move |path, query, headers, body| async move {
                endpoint.answer(path, query, headers, body).await
            },
        );
        let known = paths.remove(operation.path).unwrap_or_default();
        paths.insert(operation.path, known.merge(route));
    }
    let document = Bytes::from(openapi::document().to_string());
    paths
        .into_iter()
        .fold(Router::new(), |router, (path, route)| {
            router.route(path, route)
        })
        .route(
            "/v1/openapi.json",
            get(move || async move { respond(StatusCode::OK, JSON, document) }),
        )
        .route(
            "/v1/{*rest}",
            any(|| async { problem(&ChatError::NotFound("there is nothing at this path")) }),
        )
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(body_bytes_max))
}

async fn method_not_allowed() -> Response {
    let mut response = problem(&ChatError::Protocol(ClientError::METHOD_NOT_FOUND));
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
}

fn filter(verb: Verb) -> MethodFilter {
    match verb {
        Verb::Get => MethodFilter::GET,
        Verb::Post => MethodFilter::POST,
        Verb::Put => MethodFilter::PUT,
        Verb::Patch => MethodFilter::PATCH,
        Verb::Delete => MethodFilter::DELETE,
    }
}

/// One operation at its path.
struct Endpoint {
    chat: Arc<Chat>,
    operation: &'static Operation,
    /// The request's fields; true for those that are written without quotes.
    fields: HashMap<String, bool>,
}

impl Endpoint {
    fn new(chat: Arc<Chat>, operation: &'static Operation) -> Self {
        Self {
            chat,
            operation,
            fields: fields(operation),
        }
    }

    async fn answer(
        &self,
        path: Result<RawPathParams, RawPathParamsRejection>,
        query: RawQuery,
        headers: HeaderMap,
        body: Result<Bytes, BytesRejection>,
    ) -> Response {
        self.chat.metrics.count_command("rest");
        let done = async {
            let caller = self.caller(&headers)?;
            let request = self.request(path, query, &headers, body)?;
            self.run(caller, request).await
        };
        match done.await {
            Ok(answer) => respond(StatusCode::OK, JSON, answer),
            Err(error) => problem(&error),
        }
    }

    async fn run(&self, caller: Caller, request: Bytes) -> Result<Bytes, ChatError> {
        let chat = Arc::clone(&self.chat);
        match self.operation.run {
            Run::Ask(run) => run(chat, caller, request).await,
            Run::Publish(run) => {
                let publication = run(chat, caller, request).await?;
                let published = self.chat.publisher.publish(publication).await;
                let published = published.map_err(|error| client_error(&error))?;
                json(&SentMessage::from(&published))
            }
        }
    }

    /// Says who asks, by the token that a connection would be opened with.
    fn caller(&self, headers: &HeaderMap) -> Result<Caller, ChatError> {
        let now = Now::read().unix;
        let rules = &self.chat.rules;
        let token = bearer(headers).unwrap_or_default();
        let verified = rules.verifier.connection(token, now);
        let (user, conn_info) = match verified {
            Ok(token) if token.expire_at.is_some_and(|at| at <= now) => {
                return Err(ChatError::Protocol(ClientError::TOKEN_EXPIRED));
            }
            Ok(token) => (token.user, token.info),
            Err(_) if rules.client.insecure => (String::new(), None),
            Err(TokenError::Expired) => {
                return Err(ChatError::Protocol(ClientError::TOKEN_EXPIRED));
            }
            Err(TokenError::Invalid) if token.is_empty() => {
                return Err(ChatError::Unauthenticated(
                    "a connection token is needed: send Authorization: Bearer",
                ));
            }
            Err(TokenError::Invalid) => {
                return Err(ChatError::Unauthenticated("the token is not valid"));
            }
        };
        let info = ClientInfo {
            user: user.into(),
            client: ClientId::from_u128(0),
            conn_info,
            chan_info: None,
        };
        Ok(Caller {
            info: Arc::new(info),
            subscription: None,
        })
    }

    fn request(
        &self,
        path: Result<RawPathParams, RawPathParamsRejection>,
        RawQuery(query): RawQuery,
        headers: &HeaderMap,
        body: Result<Bytes, BytesRejection>,
    ) -> Result<Bytes, ChatError> {
        let path = path.map_err(|error| ChatError::Invalid(error.to_string()))?;
        let body = body.map_err(|error| match error.status() {
            StatusCode::PAYLOAD_TOO_LARGE => ChatError::TooLarge(error.to_string()),
            _ => ChatError::Invalid(error.to_string()),
        })?;
        let mut members: Vec<(String, String)> = path
            .iter()
            .map(|(name, value)| (name.to_owned(), quoted(value)))
            .collect();
        for (name, value) in pairs(query.as_deref().unwrap_or_default())? {
            let is_bare = self.fields.get(&name).copied();
            let is_bare = is_bare.ok_or_else(|| {
                ChatError::Invalid(format!("there is no query parameter {name:?}"))
            })?;
            let value = if is_bare {
                bare(&name, value)?
            } else {
                quoted(&value)
            };
            members.push((name, value));
        }
        if let Some(key) = headers.get(IDEMPOTENCY_KEY)
            && self.fields.contains_key(IDEMPOTENCY_FIELD)
        {
            let key = key.to_str();
            let key = key.map_err(|_| ChatError::Invalid("Idempotency-Key: not ASCII".into()))?;
            members.push((IDEMPOTENCY_FIELD.to_owned(), quoted(key)));
        }
        with_body(&members, &body)
    }
}

/// Finds the token.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Lists a request's fields by the schema; true for numbers and switches.
fn fields(operation: &Operation) -> HashMap<String, bool> {
    let mut generator = SchemaGenerator::default();
    let schema = (operation.request)(&mut generator);
    let name = schema.get("$ref").and_then(Value::as_str);
    let name = name.and_then(|path| path.rsplit('/').next());
    let definition = name.and_then(|name| generator.definitions().get(name));
    let properties = definition.and_then(|definition| definition.get("properties"));
    let properties = properties.and_then(Value::as_object).into_iter().flatten();
    let is_bare = |property: &Value| {
        let types = property.get("type");
        let named = |name: &str| match types {
            Some(Value::String(one)) => one == name,
            Some(Value::Array(all)) => all.iter().any(|one| one == name),
            _ => false,
        };
        named("integer") || named("boolean")
    };
    properties
        .map(|(name, property)| (name.clone(), is_bare(property)))
        .collect()
}

fn pairs(query: &str) -> Result<Vec<(String, String)>, ChatError> {
    let decode = |text: &str| {
        let text = text.replace('+', " ");
        let decoded = percent_decode_str(&text).decode_utf8();
        let decoded = decoded.map(std::borrow::Cow::into_owned);
        decoded.map_err(|_| ChatError::Invalid("the query is not UTF-8".to_owned()))
    };
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(name)?, decode(value)?))
        })
        .collect()
}

/// Takes a number or a switch as it is: nothing else can be written there.
fn bare(name: &str, value: String) -> Result<String, ChatError> {
    let is_number = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    if is_number || value == "true" || value == "false" {
        Ok(value)
    } else {
        Err(ChatError::Invalid(format!(
            "{name}: {value:?} is no value for it"
        )))
    }
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// Puts members in front of those of a body's object; no body is an empty object.
fn with_body(members: &[(String, String)], body: &[u8]) -> Result<Bytes, ChatError> {
    let body = body.trim_ascii();
    let body = if body.is_empty() { b"{}" } else { body };
    let Some(rest) = body.strip_prefix(b"{") else {
        return Err(ChatError::Invalid("the body is no JSON object".to_owned()));
    };
    let mut json = Vec::with_capacity(body.len() + 64 * members.len());
    json.push(b'{');
    for (index, (name, value)) in members.iter().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        json.extend_from_slice(quoted(name).as_bytes());
        json.push(b':');
        json.extend_from_slice(value.as_bytes());
    }
    let is_empty = rest.trim_ascii_start().starts_with(b"}");
    if !members.is_empty() && !is_empty {
        json.push(b',');
    }
    json.extend_from_slice(rest);
    Ok(json.into())
}

fn problem(error: &ChatError) -> Response {
    let body = json(&error.problem()).unwrap_or_default();
    let status = error.status();
    let mut response = respond(status, PROBLEM, body);
    if status == StatusCode::UNAUTHORIZED {
        let value = HeaderValue::from_static("Bearer");
        response.headers_mut().insert(WWW_AUTHENTICATE, value);
    }
    if status == StatusCode::SERVICE_UNAVAILABLE {
        let value = HeaderValue::from_static("1");
        response.headers_mut().insert(RETRY_AFTER, value);
    }
    response
}

fn respond(status: StatusCode, content_type: HeaderValue, body: Bytes) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put_together(body: &str) -> Result<String, ChatError> {
        let members = [("channel".to_owned(), quoted("a\"b"))];
        let json = with_body(&members, body.as_bytes())?;
        Ok(String::from_utf8(json.to_vec()).unwrap())
    }

    #[test]
    fn path_and_body_make_one_object() {
        let of = |body| put_together(body).unwrap();
        assert_eq!(of(""), r#"{"channel":"a\"b"}"#);
        assert_eq!(of(" { } "), r#"{"channel":"a\"b" }"#);
        assert_eq!(
            of(r#"{"data":{"b":1.0}}"#),
            r#"{"channel":"a\"b","data":{"b":1.0}}"#
        );
        assert!(put_together("[]").is_err());
        assert!(put_together("null").is_err());
    }

    #[test]
    fn a_field_that_comes_twice_is_refused() {
        #[derive(serde::Deserialize)]
        struct Request {
            #[allow(dead_code, reason = "only whether it can be read matters")]
            channel: String,
        }
        for body in [r#"{"channel":"x"}"#, r#"{}{"channel":"x"}"#, r#"{"x":1},"#] {
            let json = put_together(body).unwrap();
            assert!(serde_json::from_str::<Request>(&json).is_err(), "{json}");
        }
    }

    #[test]
    fn numbers_are_known_from_the_schema() {
        let operation = super::super::operation::find("message.list").unwrap();
        let fields = fields(operation);
        assert_eq!(fields.get("limit"), Some(&true));
        assert_eq!(fields.get("reverse"), Some(&true));
        assert_eq!(fields.get("channel"), Some(&false));
        assert!(bare("limit", "1,\"channel\":2".to_owned()).is_err());
    }
}
