//! One client's session: from its connection to its end.
//!
//! `state` decides and waits for nothing: frames, outcomes and times go in, effects come out.
//! `task` does all the waiting: one task a session, which owns the state and carries out its
//! effects. `command/` has a file per command, `send_queue` is what others may put in front of
//! a client, `ticks` is the one clock of all sessions.

pub(crate) mod call;
mod command;
pub(crate) mod recovery;
pub(crate) mod send_queue;
pub(crate) mod state;
pub(crate) mod task;
pub(crate) mod ticks;

pub(crate) use command::identify;

use std::sync::Arc;
use std::time::Duration;

use shared::config::ClientConfig;
use tokio::time::Instant;

use crate::auth::Verifier;
use crate::channel::Channels;
use crate::chat::Chat;
use crate::hub::Hub;
use crate::metrics::Metrics;
use crate::outbox::Publisher;
use crate::presence::Presence;

/// Name and version, as `connect` and `info` tell them.
pub(crate) const VERSION: &str = concat!("wyd ", env!("CARGO_PKG_VERSION"));

/// What all sessions of a node share and only read.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) client: ClientConfig,
    pub(crate) channels: Channels,
    pub(crate) verifier: Verifier,
}

/// What sessions call.
pub(crate) struct Services {
    pub(crate) rules: Arc<Rules>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) broker: Arc<dyn crate::broker::Broker>,
    pub(crate) publisher: Arc<Publisher>,
    pub(crate) presence: Arc<dyn Presence>,
    pub(crate) chat: Arc<Chat>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) ticks: ticks::Ticks,
}

impl std::fmt::Debug for Services {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Services").finish_non_exhaustive()
    }
}

/// The time, as a session is told it: it never asks a clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    /// For durations; never jumps.
    pub(crate) instant: Instant,
    /// For what tokens say; Unix seconds.
    pub(crate) unix: u64,
}

impl Now {
    /// Reads both clocks.
    pub(crate) fn read() -> Self {
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self {
            instant: Instant::now(),
            unix: since_epoch.unwrap_or(Duration::ZERO).as_secs(),
        }
    }

    /// Returns when a Unix second comes, on the clock that never jumps.
    pub(crate) fn instant_of(self, unix: u64) -> Instant {
        self.instant + Duration::from_secs(unix.saturating_sub(self.unix))
    }
}
