//! The seam to whoever brings pushes to devices.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;

/// Brings pushes to devices.
#[async_trait]
pub trait PushProvider: Send + Sync + 'static {
    /// Sends one push; `Ok` means that the provider has taken it.
    ///
    /// Waits while the provider's rate limit or the bound of calls in flight is reached. A call
    /// that ended in [`SendError::Later`] may have been carried out: a second one shows in the
    /// first one's place, because both have one `thread`.
    ///
    /// # Errors
    /// See [`SendError`].
    async fn send(&self, push: &Push) -> Result<(), SendError>;
}

/// One push to one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    /// The device, as the provider knows it.
    pub token: String,
    /// What is shown; `None`: the app decides from `data`.
    pub notification: Option<Notification>,
    /// What the app reads.
    pub data: BTreeMap<String, String>,
    /// What belongs together on the screen, such as a channel; empty: nothing.
    pub thread: String,
    /// True when a waiting push of the same thread may be replaced before it reaches the device.
    /// A device has four such threads at most.
    pub is_collapsible: bool,
    /// What the app's icon shows.
    pub badge: Option<u32>,
    /// How long the provider keeps it for a device that it does not reach.
    pub ttl: Duration,
}

/// What is shown to the user.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Notification {
    /// First line.
    pub title: String,
    /// The rest; shortened when the provider cannot carry all of it.
    pub body: String,
}

/// Why a push was not taken; each variant says what the caller can do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The token leads nowhere any more, or never did: forget it.
    #[error("the token is not registered")]
    TokenGone,
    /// This push will never be taken; the token may be good.
    #[error("the push is refused: {0}")]
    Refused(String),
    /// It may be taken later.
    #[error("the push was not taken: {error}")]
    Later {
        /// In plain words.
        error: String,
        /// Not before so long.
        after: Duration,
    },
}

impl SendError {
    /// Returns its label in metrics.
    pub(crate) fn result(&self) -> &'static str {
        match self {
            Self::TokenGone => "token_gone",
            Self::Refused(_) => "refused",
            Self::Later { .. } => "later",
        }
    }
}
