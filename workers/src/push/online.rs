//! The seam to who is online.

use std::collections::HashSet;

use async_trait::async_trait;
use shared::ids::ChannelName;

/// Knows who looks at a channel now. The gateway's presence implements it; the binary joins both.
#[async_trait]
pub trait Online: Send + Sync + 'static {
    /// Returns who of `users` is subscribed to the channel, on any node.
    ///
    /// # Errors
    /// In plain words, when it cannot be known now: nobody is pushed then, until it can.
    async fn online(
        &self,
        channel: &ChannelName,
        users: &[String],
    ) -> Result<HashSet<String>, String>;
}
