//! A stand-in for FCM and Google's token endpoint: HTTP/2 over plain TCP.
//!
//! It checks the assertion and each request as Google documents them, answers as the test says,
//! and keeps every call.

use std::collections::{HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub const PROJECT: &str = "garden-1234";
const EMAIL: &str = "push@garden-1234.iam.gserviceaccount.com";
const SCOPE: &str = "https://www.googleapis.com/auth/firebase.messaging";
const GRANT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
const PAYLOAD_BYTES_MAX: usize = 4096;
const COLLAPSE_KEYS_MAX: usize = 4;

/// One answer that the test asked for.
#[derive(Debug, Clone)]
pub enum Answer {
    /// This status, this error, and `Retry-After` in seconds.
    Error {
        status: u16,
        body: String,
        retry_after_s: Option<u64>,
    },
    /// Taken, but the body never ends.
    SlowBody,
    /// The stream is reset before there is an answer.
    Reset,
}

/// A call to `messages:send`.
#[derive(Debug, Clone)]
pub struct Call {
    pub at: Instant,
    pub token: String,
    pub message: Value,
    pub status: u16,
}

#[derive(Debug, Default)]
struct State {
    calls: Vec<Call>,
    /// What requests had that Google would refuse: must stay empty.
    faults: Vec<String>,
    answers: HashMap<String, VecDeque<Answer>>,
    access_tokens: HashSet<String>,
    token_calls: Vec<Instant>,
    token_endpoint_down: bool,
    token_life_s: u64,
    /// Keys in use by device, the newest last.
    collapse_keys: HashMap<String, HashSet<String>>,
    latency: Duration,
}

/// The stand-in while it is served.
#[derive(Debug)]
pub struct Fcm {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    pub connections: Arc<AtomicUsize>,
    keys: Arc<KeyPair>,
    stop: CancellationToken,
}

impl Drop for Fcm {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[derive(Debug)]
struct KeyPair {
    private_pem: String,
    public_pem: String,
}

impl KeyPair {
    /// A new one, by the system's openssl.
    fn make() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key.pem");
        let openssl = |arguments: &[&str]| {
            let output = Command::new("openssl")
                .args(arguments)
                .arg(&file)
                .output()
                .unwrap();
            assert!(output.status.success(), "openssl: {output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        openssl(&["genpkey", "-algorithm", "RSA", "-out"]);
        Self {
            private_pem: std::fs::read_to_string(&file).unwrap(),
            public_pem: openssl(&["pkey", "-pubout", "-in"]),
        }
    }
}

impl Fcm {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let fcm = Self {
            address: listener.local_addr().unwrap(),
            state: Arc::new(Mutex::new(State {
                token_life_s: 3599,
                ..State::default()
            })),
            connections: Arc::default(),
            keys: Arc::new(KeyPair::make()),
            stop: CancellationToken::new(),
        };
        let service = Service {
            state: Arc::clone(&fcm.state),
            keys: Arc::clone(&fcm.keys),
            token_uri: fcm.token_uri(),
        };
        let (connections, stop) = (Arc::clone(&fcm.connections), fcm.stop.clone());
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                socket.set_nodelay(true).unwrap();
                connections.fetch_add(1, Ordering::Relaxed);
                let service = service.clone();
                tokio::spawn(async move {
                    let answer = service_fn(move |request| {
                        let service = service.clone();
                        async move { service.answer(request).await }
                    });
                    // Ends when the client goes, which is no fault.
                    drop(
                        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                            .max_concurrent_streams(100)
                            .serve_connection(TokioIo::new(socket), answer)
                            .await,
                    );
                });
            }
        }));
        fcm
    }

    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn token_uri(&self) -> String {
        format!("http://{}/token", self.address)
    }

    /// The service account's JSON, as Google's console makes it.
    pub fn credentials(&self) -> String {
        json!({
            "type": "service_account",
            "project_id": PROJECT,
            "private_key_id": "key-1",
            "private_key": self.keys.private_pem,
            "client_email": EMAIL,
            "token_uri": self.token_uri(),
        })
        .to_string()
    }

    /// Answers the next calls for a device token so, then with success.
    pub fn script(&self, token: &str, answers: impl IntoIterator<Item = Answer>) {
        let mut state = self.state.lock().unwrap();
        let queue = state.answers.entry(token.to_owned()).or_default();
        queue.extend(answers);
    }

    /// Every access token given so far is refused from now on.
    pub fn revoke_access_tokens(&self) {
        self.state.lock().unwrap().access_tokens.clear();
    }

    pub fn set_token_endpoint_down(&self, is_down: bool) {
        self.state.lock().unwrap().token_endpoint_down = is_down;
    }

    pub fn set_token_life(&self, seconds: u64) {
        self.state.lock().unwrap().token_life_s = seconds;
    }

    pub fn set_latency(&self, latency: Duration) {
        self.state.lock().unwrap().latency = latency;
    }

    pub fn token_calls(&self) -> usize {
        self.state.lock().unwrap().token_calls.len()
    }

    pub fn calls(&self) -> Vec<Call> {
        self.state.lock().unwrap().calls.clone()
    }

    /// Pushes that were taken.
    pub fn taken(&self) -> Vec<Call> {
        let mut calls = self.calls();
        calls.retain(|call| call.status == 200);
        calls
    }

    /// What Google would have refused.
    pub fn faults(&self) -> Vec<String> {
        self.state.lock().unwrap().faults.clone()
    }
}

/// An error of FCM; `code` empty: no detail.
pub fn error(status: u16, code: &str, message: &str, retry_after_s: Option<u64>) -> Answer {
    let mut details = Vec::new();
    if !code.is_empty() {
        details.push(json!({
            "@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": code,
        }));
    }
    error_with(status, message, &json!(details), retry_after_s)
}

/// An error of FCM with these details.
pub fn error_with(
    status: u16,
    message: &str,
    details: &Value,
    retry_after_s: Option<u64>,
) -> Answer {
    let body = json!({ "error": {
        "code": status, "message": message, "status": status_name(status), "details": details,
    } });
    Answer::Error {
        status,
        body: body.to_string(),
        retry_after_s,
    }
}

fn status_name(status: u16) -> &'static str {
    match status {
        400 => "INVALID_ARGUMENT",
        401 => "UNAUTHENTICATED",
        403 => "PERMISSION_DENIED",
        404 => "NOT_FOUND",
        429 => "RESOURCE_EXHAUSTED",
        503 => "UNAVAILABLE",
        _ => "INTERNAL",
    }
}

#[derive(Clone)]
struct Service {
    state: Arc<Mutex<State>>,
    keys: Arc<KeyPair>,
    token_uri: String,
}

/// A body of one piece, or one that never ends.
type Body = http_body_util::Either<Full<Bytes>, Endless>;

/// Never says anything.
struct Endless;

impl hyper::body::Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Infallible>>> {
        std::task::Poll::Pending
    }
}

fn full(status: u16, body: String) -> Response<Body> {
    let body = http_body_util::Either::Left(Full::new(Bytes::from(body)));
    let response = Response::builder().status(status);
    response.body(body).unwrap()
}

fn plain_error(status: u16, message: &str) -> Response<Body> {
    let Answer::Error { body, .. } = error(status, "", message, None) else {
        unreachable!()
    };
    full(status, body)
}

impl Service {
    /// An `Err` resets the stream.
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>, std::io::Error> {
        let path = request.uri().path().to_owned();
        let is_http2 = request.version() == hyper::Version::HTTP_2;
        let bearer = request.headers().get("authorization").map(|value| {
            let value = value.to_str().unwrap_or_default();
            value.strip_prefix("Bearer ").unwrap_or_default().to_owned()
        });
        let content_type = request.headers().get("content-type").cloned();
        let content_type = content_type.map(|value| value.to_str().unwrap_or_default().to_owned());
        let is_post = request.method() == hyper::Method::POST;
        let body = request.into_body().collect().await.unwrap().to_bytes();
        if !is_http2 || !is_post {
            self.fault(format!("{path}: no HTTP/2 POST"));
        }
        if path == "/token" {
            return Ok(self.token(content_type.as_deref(), &body));
        }
        let latency = self.state.lock().unwrap().latency;
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        if path != format!("/v1/projects/{PROJECT}/messages:send") {
            self.fault(format!("path {path}"));
            return Ok(plain_error(404, "no such path"));
        }
        let is_known = bearer.is_some_and(|bearer| {
            let state = self.state.lock().unwrap();
            state.access_tokens.contains(&bearer)
        });
        self.send(is_known, &body)
    }

    fn fault(&self, fault: String) {
        self.state.lock().unwrap().faults.push(fault);
    }

    fn token(&self, content_type: Option<&str>, body: &[u8]) -> Response<Body> {
        let mut state = self.state.lock().unwrap();
        state.token_calls.push(Instant::now());
        if state.token_endpoint_down {
            return full(503, "<html>away</html>".to_owned());
        }
        let body = std::str::from_utf8(body).unwrap_or_default();
        let refused = |why: &str| {
            let body = json!({ "error": "invalid_grant", "error_description": why });
            full(400, body.to_string())
        };
        if content_type != Some("application/x-www-form-urlencoded") {
            return refused("no form");
        }
        let field = |name: &str| {
            let pairs = body.split('&').filter_map(|pair| pair.split_once('='));
            let mut found = pairs.filter(|(key, _)| *key == name);
            found.next().map(|(_, value)| value.replace("%3A", ":"))
        };
        if field("grant_type").as_deref() != Some(GRANT) {
            return refused("grant_type");
        }
        match self.check_assertion(&field("assertion").unwrap_or_default()) {
            Err(why) => {
                state.faults.push(why.clone());
                refused(&why)
            }
            Ok(()) => {
                let token = format!("ya29.{}", uuid::Uuid::new_v4().simple());
                state.access_tokens.insert(token.clone());
                let answer = json!({
                    "access_token": token, "expires_in": state.token_life_s, "token_type": "Bearer",
                });
                full(200, answer.to_string())
            }
        }
    }

    fn check_assertion(&self, assertion: &str) -> Result<(), String> {
        let header = jsonwebtoken::decode_header(assertion).map_err(|error| error.to_string())?;
        if header.kid.as_deref() != Some("key-1") || header.alg != Algorithm::RS256 {
            return Err(format!("header {header:?}"));
        }
        let key = DecodingKey::from_rsa_pem(self.keys.public_pem.as_bytes()).unwrap();
        let mut validation = Validation::new(Algorithm::RS256);
        validation.set_audience(&[&self.token_uri]);
        validation.set_issuer(&[EMAIL]);
        validation.set_required_spec_claims(&["exp", "aud", "iss"]);
        let claims = jsonwebtoken::decode::<Value>(assertion, &key, &validation)
            .map_err(|error| error.to_string())?
            .claims;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.unwrap().as_secs();
        let (iat, exp) = (claims["iat"].as_u64(), claims["exp"].as_u64());
        let is_timely = iat.is_some_and(|iat| iat <= now + 1)
            && exp.is_some_and(|exp| exp - iat.unwrap_or_default() <= 3600);
        if claims["scope"] != SCOPE || !is_timely {
            return Err(format!("claims {claims}"));
        }
        Ok(())
    }

    fn send(&self, is_authorized: bool, body: &[u8]) -> Result<Response<Body>, std::io::Error> {
        let request: Value = serde_json::from_slice(body).unwrap_or_default();
        let message = request["message"].clone();
        let token = message["token"].as_str().unwrap_or_default().to_owned();
        let mut state = self.state.lock().unwrap();
        if let Err(fault) = check(&request, &mut state.collapse_keys) {
            state.faults.push(fault);
        }
        let answer = match is_authorized {
            true => state.answers.get_mut(&token).and_then(VecDeque::pop_front),
            false => Some(error(401, "", "invalid authentication credentials", None)),
        };
        let status = match &answer {
            Some(Answer::Error { status, .. }) => *status,
            // The client never learns that it was taken.
            Some(Answer::SlowBody | Answer::Reset) | None => 200,
        };
        let number = state.calls.len();
        state.calls.push(Call {
            at: Instant::now(),
            token,
            message,
            status,
        });
        match answer {
            None => {
                let name = format!("projects/{PROJECT}/messages/{number}");
                Ok(full(200, json!({ "name": name }).to_string()))
            }
            Some(Answer::Reset) => Err(std::io::Error::other("reset")),
            Some(Answer::SlowBody) => Ok(Response::new(http_body_util::Either::Right(Endless))),
            Some(Answer::Error {
                status,
                body,
                retry_after_s,
            }) => {
                let mut response = full(status, body);
                if let Some(seconds) = retry_after_s {
                    let headers = response.headers_mut();
                    headers.insert("retry-after", seconds.into());
                }
                Ok(response)
            }
        }
    }
}

/// Checks a request as Google documents it.
fn check(
    request: &Value,
    collapse_keys: &mut HashMap<String, HashSet<String>>,
) -> Result<(), String> {
    let message = request["message"].as_object().ok_or("no message")?;
    let targets = ["token", "topic", "condition"];
    let targets = targets.iter().filter(|name| message.contains_key(**name));
    if targets.count() != 1 {
        return Err("not exactly one target".to_owned());
    }
    let bytes = request["message"].to_string().len();
    if bytes > PAYLOAD_BYTES_MAX {
        return Err(format!("{bytes} bytes"));
    }
    for (name, value) in request["message"]["data"].as_object().into_iter().flatten() {
        if !value.is_string() {
            return Err(format!("data.{name} is no string"));
        }
    }
    let ttl = request["message"]["android"]["ttl"]
        .as_str()
        .unwrap_or_default();
    let seconds = ttl
        .strip_suffix('s')
        .and_then(|ttl| ttl.parse::<u32>().ok());
    if seconds.is_none_or(|seconds| seconds > 2_419_200) {
        return Err(format!("ttl {ttl:?}"));
    }
    let headers = &request["message"]["apns"]["headers"];
    let collapse_id = headers["apns-collapse-id"].as_str().unwrap_or_default();
    if collapse_id.len() > 64 {
        return Err(format!("apns-collapse-id {collapse_id}"));
    }
    let device = request["message"]["token"].as_str().unwrap_or_default();
    if let Some(key) = request["message"]["android"]["collapse_key"].as_str() {
        let keys = collapse_keys.entry(device.to_owned()).or_default();
        keys.insert(key.to_owned());
        if keys.len() > COLLAPSE_KEYS_MAX {
            return Err(format!("{} collapse keys for {device}", keys.len()));
        }
    }
    Ok(())
}
