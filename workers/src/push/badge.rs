//! The number on the app's icon: what a user has not read, over all channels.

use std::collections::HashMap;
use std::sync::Arc;

use futures::{StreamExt, stream};
use shared::ids::UserId;
use store::archive::MessageArchive;
use store::records::{JoinedChannel, Records};

/// Channels of a user that are counted: a badge is a hint, and each channel is a query.
const CHANNELS_MAX: u32 = 50;
/// Where counting stops: nobody reads a larger number.
const BADGE_MAX: u64 = 999;
/// Users that are counted at once.
const USERS_AT_ONCE: usize = 8;

/// Counts what users have not read.
pub(super) struct Badges {
    pub(super) records: Records,
    /// `None`: pushes come without a badge.
    pub(super) archive: Option<Arc<dyn MessageArchive>>,
}

impl Badges {
    /// Counts for each user; who could not be counted is left out: a push without a badge is
    /// better than none.
    pub(super) async fn of(&self, users: &[String]) -> HashMap<String, u32> {
        let Some(archive) = &self.archive else {
            return HashMap::new();
        };
        // Owned: a borrowed name's lifetime would not be general enough for the boxed future.
        let counts = users.iter().cloned().map(|user| async move {
            let badge = self.of_user(archive.as_ref(), &user).await;
            badge.map(|badge| (user, badge))
        });
        stream::iter(counts.collect::<Vec<_>>())
            .buffer_unordered(USERS_AT_ONCE)
            .filter_map(std::future::ready)
            .collect()
            .await
    }

    async fn of_user(&self, archive: &dyn MessageArchive, user: &str) -> Option<u32> {
        let id = UserId::from(user);
        let channels = self.records.channels_of(&id, "", CHANNELS_MAX).await;
        let mut unread = 0;
        for joined in channels.ok()? {
            let JoinedChannel {
                channel,
                read_offset,
                joined_offset,
                ..
            } = joined;
            let after = u64::try_from(read_offset.max(joined_offset)).unwrap_or_default();
            unread += archive.count(&channel.channel, after, user).await.ok()?;
            if unread >= BADGE_MAX {
                break;
            }
        }
        u32::try_from(unread.min(BADGE_MAX)).ok()
    }
}
