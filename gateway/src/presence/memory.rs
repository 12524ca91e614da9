//! Presence of a node that is alone.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use shared::ids::{ChannelName, ClientId, UserId};
use shared::protocol::ClientInfo;

use super::{Presence, PresenceStats};
use crate::broker::BrokerError;

/// Who is on each channel of this process.
#[derive(Debug, Default)]
pub struct MemoryPresence {
    channels: Mutex<HashMap<ChannelName, HashMap<ClientId, Arc<ClientInfo>>>>,
}

#[async_trait]
impl Presence for MemoryPresence {
    async fn add(&self, channel: &ChannelName, info: Arc<ClientInfo>) -> Result<bool, BrokerError> {
        let mut channels = self.channels.lock();
        let members = channels.entry(channel.clone()).or_default();
        Ok(members.insert(info.client, info).is_none())
    }

    async fn remove(&self, channel: &ChannelName, client: ClientId) -> Result<bool, BrokerError> {
        let mut channels = self.channels.lock();
        let Some(members) = channels.get_mut(channel) else {
            return Ok(false);
        };
        let was_there = members.remove(&client).is_some();
        if members.is_empty() {
            channels.remove(channel);
        }
        Ok(was_there)
    }

    async fn members(&self, channel: &ChannelName) -> Result<Vec<Arc<ClientInfo>>, BrokerError> {
        let channels = self.channels.lock();
        let members = channels.get(channel);
        Ok(members
            .map(|members| members.values().cloned().collect())
            .unwrap_or_default())
    }

    async fn stats(&self, channel: &ChannelName) -> Result<PresenceStats, BrokerError> {
        let members = self.members(channel).await?;
        let users: HashSet<_> = members.iter().map(|info| &info.user).collect();
        Ok(PresenceStats {
            num_clients: u32::try_from(members.len()).unwrap_or(u32::MAX),
            num_users: u32::try_from(users.len()).unwrap_or(u32::MAX),
        })
    }

    async fn online(
        &self,
        channel: &ChannelName,
        users: &[UserId],
    ) -> Result<HashSet<UserId>, BrokerError> {
        let members = self.members(channel).await?;
        let there: HashSet<&UserId> = members.iter().map(|info| &info.user).collect();
        let online = users.iter().filter(|user| there.contains(user));
        Ok(online.cloned().collect())
    }
}
