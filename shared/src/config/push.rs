//! Pushes to people who are away.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Secret, duration};

/// Pushes to people who are away: section `[push]`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PushConfig {
    /// Who brings pushes to devices: `fcm`, or `console` (nobody: the operator console shows the
    /// last ones); absent: `fcm` when there are credentials.
    pub provider: Option<PushProviderKind>,
    /// JSON of a Google service account that may use the Firebase Cloud Messaging API, or the
    /// path of its file. Environment: `FCM_CREDENTIALS`.
    pub fcm_credentials: Option<Secret>,
    /// Where FCM is; another address is for stand-ins.
    pub fcm_base_url: String,
    /// Pushes a minute that one worker sends at most. Google's quota of a project is 600000; with
    /// several workers, divide.
    pub messages_per_minute_max: u32,
    /// HTTP/2 connections that calls are spread over; FCM takes about 100 calls on one.
    pub connections: usize,
    /// Calls under way at most.
    pub in_flight_max: usize,
    /// How long one call may take.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub request_timeout: Duration,
    /// How old a message is before anybody is pushed: time to see it without.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub delay: Duration,
    /// Messages of a channel inside this time become one push.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub burst_window: Duration,
    /// How old a message may get before it is pushed to nobody any more.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub ttl: Duration,
    /// Pushes show what was written (`text` of the message's data); else only that something was.
    pub show_text: bool,
    /// The app's icon shows how many messages the user has not read; costs a query for each of the
    /// user's channels (the first 50).
    pub badge: bool,
    /// Devices that did not register again for so long are forgotten; FCM does so at 270 days.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub device_age_max: Duration,
    /// Pushes that the operator console keeps.
    pub console_pushes_max: usize,
}

/// Who brings pushes to devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PushProviderKind {
    /// Firebase Cloud Messaging, HTTP v1.
    Fcm,
    /// Nobody: the operator console shows them.
    Console,
}

impl Default for PushConfig {
    fn default() -> Self {
        Self {
            provider: None,
            fcm_credentials: None,
            fcm_base_url: "https://fcm.googleapis.com".to_owned(),
            messages_per_minute_max: 480_000,
            connections: 4,
            in_flight_max: 400,
            request_timeout: Duration::from_secs(10),
            delay: Duration::from_secs(3),
            burst_window: Duration::from_secs(1),
            ttl: Duration::from_secs(24 * 3600),
            show_text: true,
            badge: true,
            device_age_max: Duration::from_secs(270 * 24 * 3600),
            console_pushes_max: 200,
        }
    }
}

impl PushConfig {
    /// Returns who is meant when nobody is named.
    pub fn provider(&self) -> PushProviderKind {
        self.provider.unwrap_or(match self.fcm_credentials {
            Some(_) => PushProviderKind::Fcm,
            None => PushProviderKind::Console,
        })
    }
}
