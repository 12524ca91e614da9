//! Access tokens: one is kept, and made anew before it ends.
//!
//! At four fifths of its life one caller makes the next while the others go on with this one; it
//! is used until its end when Google's token endpoint does not answer.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use reqwest::Client;
use serde::Deserialize;
use tokio::time::Instant;

use super::account::ServiceAccount;

/// When a token is made anew, as a part of its life.
const REFRESH_AT: f64 = 0.8;
/// Pause after a failed try, while the old token is still good.
const RETRY_PAUSE: Duration = Duration::from_secs(10);
/// A token is not used at the very end of its life: a call takes time. A part of it, and at most.
const RESERVE: (f64, Duration) = (0.05, Duration::from_secs(10));
const GRANT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

/// The account's access token, made when it is needed.
pub(super) struct AccessTokens {
    account: ServiceAccount,
    client: Client,
    timeout: Duration,
    kept: Mutex<Option<Kept>>,
    /// Held by the one caller that makes the next.
    making: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Kept {
    token: Arc<str>,
    refresh_at: Instant,
    ends_at: Instant,
}

/// Why there is no access token.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum TokenError {
    /// The account is refused: somebody must look at the credentials.
    #[error("the service account is refused: {0}")]
    Refused(String),
    /// No answer: later.
    #[error("the token endpoint did not answer: {0}")]
    Unavailable(String),
}

#[derive(Deserialize)]
struct Answer {
    access_token: String,
    expires_in: u64,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Refusal {
    error: String,
    error_description: String,
}

impl AccessTokens {
    pub(super) fn new(account: ServiceAccount, client: Client, timeout: Duration) -> Self {
        Self {
            account,
            client,
            timeout,
            kept: Mutex::default(),
            making: tokio::sync::Mutex::default(),
        }
    }

    /// Returns a token that is good for a while.
    pub(super) async fn current(&self) -> Result<Arc<str>, TokenError> {
        let kept = self.kept.lock().clone();
        let now = Instant::now();
        let Some(kept) = kept.filter(|kept| now < kept.ends_at) else {
            let _making = self.making.lock().await;
            // Whoever waited finds what the one before has made.
            let made = self.kept.lock().clone();
            return match made.filter(|made| Instant::now() < made.ends_at) {
                Some(made) => Ok(made.token),
                None => self.make().await,
            };
        };
        if now < kept.refresh_at {
            return Ok(kept.token);
        }
        let Ok(_making) = self.making.try_lock() else {
            return Ok(kept.token);
        };
        match self.make().await {
            Ok(token) => Ok(token),
            Err(error) => {
                tracing::warn!(%error, "access token cannot be made anew, the old one is still good");
                if let Some(kept) = &mut *self.kept.lock() {
                    kept.refresh_at = Instant::now() + RETRY_PAUSE;
                }
                Ok(kept.token)
            }
        }
    }

    /// Forgets a token that was refused, unless a newer one is kept already.
    pub(super) fn forget(&self, refused: &str) {
        let mut kept = self.kept.lock();
        if kept.as_ref().is_some_and(|kept| *kept.token == *refused) {
            *kept = None;
        }
    }

    async fn make(&self) -> Result<Arc<str>, TokenError> {
        let made = tokio::time::timeout(self.timeout, self.exchange()).await;
        let answer = made.unwrap_or_else(|_| {
            let seconds = self.timeout.as_secs_f32();
            Err(TokenError::Unavailable(format!("nothing in {seconds} s")))
        })?;
        let life = Duration::from_secs(answer.expires_in);
        let token: Arc<str> = answer.access_token.into();
        let now = Instant::now();
        *self.kept.lock() = Some(Kept {
            token: Arc::clone(&token),
            refresh_at: now + life.mul_f64(REFRESH_AT),
            ends_at: now + life.saturating_sub(life.mul_f64(RESERVE.0).min(RESERVE.1)),
        });
        Ok(token)
    }

    async fn exchange(&self) -> Result<Answer, TokenError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now_s = now.unwrap_or_default().as_secs();
        let assertion = self.account.assertion(now_s).map_err(TokenError::Refused)?;
        // Both values consist of letters that a form needs no escapes for, but for the colons.
        let form = format!(
            "grant_type={}&assertion={assertion}",
            GRANT.replace(':', "%3A")
        );
        let unavailable = |error: reqwest::Error| {
            TokenError::Unavailable(crate::push::with_sources(&error.without_url()))
        };
        let response = self
            .client
            .post(&self.account.token_uri)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form)
            .send()
            .await
            .map_err(unavailable)?;
        let status = response.status();
        let body = response.bytes().await.map_err(unavailable)?;
        if status.is_success() {
            return serde_json::from_slice(&body)
                .map_err(|_| TokenError::Unavailable("an answer that is no token".to_owned()));
        }
        let refusal: Refusal = serde_json::from_slice(&body).unwrap_or_default();
        let text = format!("{status} {} {}", refusal.error, refusal.error_description);
        let text = text.trim_end().to_owned();
        if status.is_client_error() && status.as_u16() != 429 {
            Err(TokenError::Refused(text))
        } else {
            Err(TokenError::Unavailable(text))
        }
    }
}
