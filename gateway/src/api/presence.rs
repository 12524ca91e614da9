//! `presence` and `presence_stats`.

use serde::Deserialize;
use serde_json::json;
use shared::ids::ChannelName;
use shared::protocol::ClientError;
use shared::protocol::reply::presence_json;

use super::Api;
use super::history::raw;
use super::router::{Answer, parse};
use crate::session::call::client_error;

#[derive(Debug, Deserialize)]
struct PresenceParams {
    #[serde(default)]
    channel: String,
}

impl Api {
    pub(super) async fn presence(&self, body: &[u8]) -> Answer {
        let channel = self.with_presence(body)?;
        let members = self.services.presence.members(&channel).await;
        let members = members.map_err(|error| client_error(&error))?;
        let mut text = Vec::new();
        presence_json(&mut text, &members);
        Ok(json!({ "presence": raw(&text)? }))
    }

    pub(super) async fn presence_stats(&self, body: &[u8]) -> Answer {
        let channel = self.with_presence(body)?;
        let stats = self.services.presence.stats(&channel).await;
        let stats = stats.map_err(|error| client_error(&error))?;
        Ok(json!({ "num_clients": stats.num_clients, "num_users": stats.num_users }))
    }

    fn with_presence(&self, body: &[u8]) -> Result<ChannelName, ClientError> {
        let params: PresenceParams = parse(body)?;
        let (channel, namespace) = self.services.rules.channels.resolve(&params.channel)?;
        if namespace.options.presence {
            Ok(channel)
        } else {
            Err(ClientError::NOT_AVAILABLE)
        }
    }
}
