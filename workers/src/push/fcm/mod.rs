//! FCM HTTP v1: the provider that brings pushes to Android and, by way of Apple, to iOS.
//!
//! `account` and `access_token` prove who we are, `payload` writes a push, `answer` is the table
//! of errors, `pace` and `breaker` decide when something may be sent at all. There is no batch
//! call: many single ones share few HTTP/2 connections.

mod access_token;
mod account;
mod answer;
mod breaker;
mod pace;
mod payload;

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use reqwest::Client;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use self::access_token::{AccessTokens, TokenError};
pub use self::account::ServiceAccount;
use self::answer::{Verdict, judge};
use self::breaker::Breaker;
use self::pace::Pace;
use super::metrics::PushMetrics;
use super::provider::{Push, PushProvider, SendError};

/// So many tokens of another sender in a row mean that the account's project is wrong.
const OTHER_SENDERS_MAX: u32 = 20;
/// How long a push to an Apple device waits while Apple refuses the project's key.
const APPLE_PAUSE: Duration = Duration::from_secs(600);
/// A dead connection is noticed after this and the call's timeout.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// How FCM is reached.
#[derive(Debug, Clone)]
pub struct FcmSettings {
    /// `https://fcm.googleapis.com`; with `http://` HTTP/2 is spoken at once, for stand-ins.
    pub base_url: String,
    /// How long one call may take.
    pub timeout: Duration,
    /// Connections that calls are spread over.
    pub connections: usize,
    /// Calls under way at most.
    pub in_flight_max: usize,
    /// Pushes a minute at most.
    pub messages_per_minute_max: NonZeroU32,
}

/// Sends pushes by FCM.
pub struct Fcm {
    url: String,
    timeout: Duration,
    /// One for each connection: a client puts all its calls on one.
    clients: Vec<Client>,
    next_client: AtomicUsize,
    tokens: AccessTokens,
    in_flight: Semaphore,
    pace: Pace,
    breaker: Breaker,
    other_senders: AtomicU32,
    metrics: PushMetrics,
}

impl std::fmt::Debug for Fcm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fcm")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl Fcm {
    /// Makes the provider; nothing is connected before the first push.
    ///
    /// # Errors
    /// In plain words, when the settings cannot be used.
    pub fn new(
        settings: &FcmSettings,
        account: ServiceAccount,
        metrics: PushMetrics,
    ) -> Result<Self, String> {
        let base_url = settings.base_url.trim_end_matches('/');
        let url = format!("{base_url}/v1/projects/{}/messages:send", account.project);
        let client = |knows_http2: bool| {
            let client = Client::builder()
                .http2_keep_alive_interval(KEEP_ALIVE)
                .http2_keep_alive_timeout(settings.timeout);
            let client = if knows_http2 {
                client.http2_prior_knowledge()
            } else {
                client
            };
            client.build().map_err(|error| super::with_sources(&error))
        };
        let is_plain = |url: &str| url.starts_with("http://");
        let clients = (0..settings.connections.max(1))
            .map(|_| client(is_plain(base_url)))
            .collect::<Result<_, _>>()?;
        let token_client = client(is_plain(&account.token_uri))?;
        Ok(Self {
            url,
            timeout: settings.timeout,
            clients,
            next_client: AtomicUsize::new(0),
            tokens: AccessTokens::new(account, token_client, settings.timeout),
            in_flight: Semaphore::new(settings.in_flight_max.max(1)),
            pace: Pace::new(settings.messages_per_minute_max),
            breaker: Breaker::default(),
            other_senders: AtomicU32::new(0),
            metrics,
        })
    }

    /// Makes one call; a refused access token is made anew once.
    async fn call(&self, body: &[u8]) -> Result<Verdict, SendError> {
        let token = self.token().await?;
        let verdict = self.post(&token, body).await;
        if !matches!(verdict, Verdict::Unauthorized(_)) {
            return Ok(verdict);
        }
        self.tokens.forget(&token);
        let token = self.token().await?;
        Ok(self.post(&token, body).await)
    }

    async fn token(&self) -> Result<std::sync::Arc<str>, SendError> {
        self.tokens.current().await.map_err(|error| match error {
            TokenError::Refused(_) => self.alarm(error.to_string()),
            TokenError::Unavailable(_) => SendError::Later {
                error: error.to_string(),
                after: self.pace.failure_pause(),
            },
        })
    }

    async fn post(&self, token: &str, body: &[u8]) -> Verdict {
        let turn = self.next_client.fetch_add(1, Ordering::Relaxed);
        let client = &self.clients[turn % self.clients.len()];
        let call = async {
            let response = client
                .post(&self.url)
                .header(AUTHORIZATION, format!("Bearer {token}"))
                .header(CONTENT_TYPE, "application/json")
                .body(body.to_vec())
                .send()
                .await?;
            let status = response.status().as_u16();
            let retry_after = response.headers().get(RETRY_AFTER);
            let retry_after = retry_after.and_then(|value| pause_of(value.to_str().ok()?));
            let body = response.bytes().await?;
            Ok::<_, reqwest::Error>(judge(status, &body, retry_after))
        };
        match tokio::time::timeout(self.timeout, call).await {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(error)) => Verdict::Failed(super::with_sources(&error.without_url())),
            Err(_) => Verdict::Failed(format!("no answer in {} s", self.timeout.as_secs_f32())),
        }
    }

    /// Does what a verdict asks for.
    fn settle(&self, verdict: Verdict) -> Result<(), SendError> {
        if !matches!(verdict, Verdict::OtherSender(_)) {
            self.other_senders.store(0, Ordering::Relaxed);
        }
        let later = |error: &str, after| {
            let error = error.to_owned();
            Err(SendError::Later { error, after })
        };
        match verdict {
            Verdict::Taken => {
                self.breaker.close();
                self.metrics.breaker_open.set(0);
                self.pace.succeeded();
                Ok(())
            }
            Verdict::TokenGone => Err(SendError::TokenGone),
            Verdict::Refused(why) => Err(SendError::Refused(why)),
            Verdict::OtherSender(why) => Err(self.other_sender(why)),
            Verdict::Unauthorized(why) | Verdict::Forbidden(why) => Err(self.alarm(why)),
            Verdict::AppleRefuses(why) => {
                self.metrics.count("apple_refuses");
                tracing::error!(
                    error = why,
                    "Apple refuses what Firebase has for it: upload a valid APNs key to the project"
                );
                later(&why, APPLE_PAUSE)
            }
            Verdict::DeviceQuota(after) => {
                later("too many to this device", Pace::device_pause(after))
            }
            Verdict::Quota(after) => {
                let pause = self.pace.over_quota(Instant::now(), after);
                tracing::warn!(pause_s = pause.as_secs(), "FCM's quota is used up");
                later("the quota is used up", pause)
            }
            Verdict::Overloaded(after) => later(
                "FCM is overloaded",
                self.pace.overloaded(Instant::now(), after),
            ),
            Verdict::Failed(why) => later(&why, self.pace.failure_pause()),
        }
    }

    /// Stops everything for a while, and tells that somebody has to look.
    fn alarm(&self, why: String) -> SendError {
        let after = self.breaker.open(Instant::now());
        self.metrics.breaker_open.set(1);
        self.metrics.count("forbidden");
        tracing::error!(
            error = why,
            pause_s = after.as_secs(),
            "FCM does not accept the account, no pushes are sent: check push.fcm_credentials \
             (FCM_CREDENTIALS), and that the account may use the Firebase Cloud Messaging API"
        );
        SendError::Later { error: why, after }
    }

    /// One token may be anybody's, which a user can register at will; many mean the wrong project.
    fn other_sender(&self, why: String) -> SendError {
        let in_a_row = self.other_senders.fetch_add(1, Ordering::Relaxed) + 1;
        self.metrics.count("other_sender");
        tracing::error!(
            error = why,
            in_a_row,
            "a device's token belongs to another Firebase project: is FCM_CREDENTIALS the app's?"
        );
        if in_a_row >= OTHER_SENDERS_MAX {
            return self.alarm(why);
        }
        SendError::Refused(why)
    }
}

#[async_trait]
impl PushProvider for Fcm {
    async fn send(&self, push: &Push) -> Result<(), SendError> {
        let body = payload::body(push, now_s()).map_err(SendError::Refused)?;
        let wait = |after| SendError::Later {
            error: "nothing is sent to FCM for now".to_owned(),
            after,
        };
        let permit = self.in_flight.acquire().await;
        debug_assert!(permit.is_ok(), "the semaphore is never closed");
        self.pace.turn().await.map_err(wait)?;
        self.breaker.pass(Instant::now()).map_err(wait)?;
        let verdict = self.call(&body).await?;
        self.settle(verdict)
    }
}

/// Reads `Retry-After`: seconds, or a date.
fn pause_of(value: &str) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(value).ok()?;
    Some(until.duration_since(SystemTime::now()).unwrap_or_default())
}

fn now_s() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}
