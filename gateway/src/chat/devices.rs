//! `device.register`, `device.remove`: where a user's pushes go.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use store::records::{Device, Platform};

use super::error::ChatError;
use super::operation::Ask;
use super::views::Done;
use super::{Caller, Chat, now_ms, validate};

/// Longest token that is taken, in bytes: twice what push services give out today.
const TOKEN_BYTES_MAX: usize = 4096;
const VERSION_BYTES_MAX: usize = 64;

/// What kind of device.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum PlatformName {
    Android,
    Ios,
    Web,
}

/// Makes a push token the user's, whoever had it before.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct RegisterDevice {
    /// The device's push token.
    token: String,
    platform: PlatformName,
    /// Version of the app.
    #[serde(default)]
    app_version: String,
}

impl Ask for RegisterDevice {
    type Answer = Done;

    async fn handle(self, chat: &Chat, caller: &Caller) -> Result<Done, ChatError> {
        let user = caller.known_user()?;
        let is_good = !self.token.is_empty()
            && self.token.len() <= TOKEN_BYTES_MAX
            && self.token.chars().all(|c| c.is_ascii_graphic());
        validate::require(is_good, || {
            format!("token: 1 to {TOKEN_BYTES_MAX} visible ASCII characters")
        })?;
        let is_good = self.app_version.len() <= VERSION_BYTES_MAX
            && !self.app_version.chars().any(char::is_control);
        validate::require(is_good, || {
            format!("app_version: at most {VERSION_BYTES_MAX} bytes")
        })?;
        let device = Device {
            token: self.token,
            platform: match self.platform {
                PlatformName::Android => Platform::Android,
                PlatformName::Ios => Platform::Ios,
                PlatformName::Web => Platform::Web,
            },
            app_version: self.app_version,
            updated_at_ms: now_ms(),
        };
        let limit = chat.config.devices_per_user_max;
        chat.records()?
            .register_device(user, &device, limit)
            .await?;
        Ok(Done {})
    }
}

/// Removes a push token of the user.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct RemoveDevice {
    /// The device's push token.
    token: String,
}

/// What removing came to.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Removed {
    /// False when it was not there.
    pub(super) removed: bool,
}

impl Ask for RemoveDevice {
    type Answer = Removed;

    async fn handle(self, chat: &Chat, caller: &Caller) -> Result<Removed, ChatError> {
        let user = caller.known_user()?;
        let removed = chat.records()?.remove_device(user, &self.token).await?;
        Ok(Removed { removed })
    }
}
