//! The provider that brings pushes nowhere: the operator console shows the last ones.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use parking_lot::Mutex;
use serde::Serialize;

use super::provider::{Notification, Push, PushProvider, SendError};

/// Letters of a token that are shown: enough to tell devices apart, too few to push with.
const TOKEN_CHARS_SHOWN: usize = 12;

/// Keeps the last pushes; clones share them.
#[derive(Debug, Clone)]
pub struct ConsolePushes {
    /// Bounded: the oldest goes when it is full.
    kept: Arc<Mutex<VecDeque<ShownPush>>>,
    kept_max: usize,
}

/// A push as the console shows it.
#[derive(Debug, Clone, Serialize)]
pub struct ShownPush {
    /// Unix milliseconds.
    pub at_ms: u64,
    /// The beginning of the device's token.
    pub device: String,
    /// What the phone would show; absent for a silent push.
    pub notification: Option<Notification>,
    /// What it belongs to.
    pub thread: String,
    /// What the app's icon would show.
    pub badge: Option<u32>,
    /// What the app would read.
    pub data: std::collections::BTreeMap<String, String>,
}

impl ConsolePushes {
    /// Makes a place for so many pushes.
    pub fn new(kept_max: usize) -> Self {
        Self {
            kept: Arc::default(),
            kept_max,
        }
    }

    /// Returns the kept pushes, the newest first.
    pub fn last(&self) -> Vec<ShownPush> {
        self.kept.lock().iter().rev().cloned().collect()
    }
}

#[async_trait]
impl PushProvider for ConsolePushes {
    async fn send(&self, push: &Push) -> Result<(), SendError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let at_ms = now.unwrap_or_default().as_millis();
        let shown = ShownPush {
            at_ms: u64::try_from(at_ms).unwrap_or(u64::MAX),
            device: push.token.chars().take(TOKEN_CHARS_SHOWN).collect(),
            notification: push.notification.clone(),
            thread: push.thread.clone(),
            badge: push.badge,
            data: push.data.clone(),
        };
        let mut kept = self.kept.lock();
        if kept.len() >= self.kept_max {
            kept.pop_front();
        }
        kept.push_back(shown);
        Ok(())
    }
}
