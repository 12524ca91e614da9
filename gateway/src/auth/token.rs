//! What a token claims.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use shared::protocol::payload;

/// Longest lifetime that is believed: expiry is capped at now + 365 days.
const LIFETIME_SECONDS_MAX: u64 = 365 * 24 * 3600;

/// A checked connection token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionToken {
    /// `sub`; empty: anonymous.
    pub user: String,
    /// When the connection must have been refreshed, Unix seconds; `None`: never.
    pub expire_at: Option<u64>,
    /// `info` or `b64info`: one JSON value for others to see.
    pub info: Option<Bytes>,
    /// `channels` and the keys of `subs`: server-side subscriptions.
    pub channels: Vec<String>,
}

/// A checked subscription token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionToken {
    /// `sub`: the user it is for.
    pub user: String,
    /// The channel it is for.
    pub channel: String,
    /// The connection it is for, when bound to one.
    pub client: Option<String>,
    /// When the subscription must have been refreshed, Unix seconds; `None`: never.
    pub expire_at: Option<u64>,
    /// `info` or `b64info`: one JSON value for others on the channel to see.
    pub info: Option<Bytes>,
}

/// Why a token was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// `exp` has passed or `nbf` has not come: the client fetches a new one (109).
    #[error("token expired")]
    Expired,
    /// Anything else: malformed, wrong signature, wrong audience, wrong kind.
    #[error("token is not valid")]
    Invalid,
}

/// The claims of both kinds; unknown ones are ignored.
#[derive(Debug, Deserialize)]
pub(super) struct Claims {
    #[serde(default)]
    sub: String,
    exp: Option<u64>,
    nbf: Option<u64>,
    expire_at: Option<i64>,
    info: Option<Box<RawValue>>,
    b64info: Option<String>,
    #[serde(default)]
    channels: Vec<String>,
    #[serde(default)]
    subs: BTreeMap<String, serde::de::IgnoredAny>,
    channel: Option<String>,
    client: Option<String>,
}

impl Claims {
    /// Reads the claims as a connection token's.
    pub(super) fn into_connection(
        self,
        now: u64,
        leeway: u64,
    ) -> Result<ConnectionToken, TokenError> {
        // A subscription token must not open a connection.
        if self.channel.is_some() {
            return Err(TokenError::Invalid);
        }
        // No database keeps it: a message of this user could be accepted and never archived.
        if self.sub.contains('\0') {
            return Err(TokenError::Invalid);
        }
        self.check_times(now, leeway)?;
        let channels = if self.subs.is_empty() {
            self.channels.clone()
        } else {
            self.subs.keys().cloned().collect()
        };
        Ok(ConnectionToken {
            expire_at: self.expiry(now),
            info: self.info()?,
            user: self.sub,
            channels,
        })
    }

    /// Reads the claims as a subscription token's.
    pub(super) fn into_subscription(
        self,
        now: u64,
        leeway: u64,
    ) -> Result<SubscriptionToken, TokenError> {
        self.check_times(now, leeway)?;
        let info = self.info()?;
        let expire_at = self.expiry(now);
        Ok(SubscriptionToken {
            user: self.sub,
            channel: self.channel.ok_or(TokenError::Invalid)?,
            client: self.client.filter(|client| !client.is_empty()),
            expire_at,
            info,
        })
    }

    fn check_times(&self, now: u64, leeway: u64) -> Result<(), TokenError> {
        let is_over = self
            .exp
            .is_some_and(|exp| exp.saturating_add(leeway) <= now);
        let is_early = self.nbf.is_some_and(|nbf| nbf > now.saturating_add(leeway));
        if is_over || is_early {
            return Err(TokenError::Expired);
        }
        Ok(())
    }

    /// `expire_at` overrides `exp`; zero and below mean never.
    fn expiry(&self, now: u64) -> Option<u64> {
        let at = match self.expire_at {
            Some(at) => u64::try_from(at).ok().filter(|at| *at > 0),
            None => self.exp,
        };
        at.map(|at| at.min(now.saturating_add(LIFETIME_SECONDS_MAX)))
    }

    fn info(&self) -> Result<Option<Bytes>, TokenError> {
        if let Some(encoded) = self.b64info.as_ref().filter(|text| !text.is_empty()) {
            let decoded = STANDARD.decode(encoded).map_err(|_| TokenError::Invalid)?;
            let info = payload::json(&decoded).map_err(|_| TokenError::Invalid)?;
            return Ok(Some(info));
        }
        Ok(self.info.as_deref().map(payload::from_raw))
    }
}
