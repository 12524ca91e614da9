//! `members_add`, `members_remove`, `members_set_role`: who is in a channel.

use serde::Deserialize;
use serde_json::json;
use shared::protocol::ClientError;
use store::records::Role;

use super::Api;
use super::router::{Answer, parse};
use crate::chat::error::ChatError;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct MembersParams {
    channel: String,
    user: String,
    users: Vec<String>,
    role: String,
}

impl MembersParams {
    /// Takes one user as a list of one.
    fn users(&self) -> Vec<String> {
        let one = Some(&self.user).filter(|user| !user.is_empty());
        self.users.iter().chain(one).cloned().collect()
    }

    fn role(&self) -> Result<Role, ClientError> {
        Role::parse(&self.role).ok_or(ClientError::BAD_REQUEST)
    }
}

impl Api {
    pub(super) async fn members_add(&self, body: &[u8]) -> Answer {
        let params: MembersParams = parse(body)?;
        let role = match params.role.as_str() {
            "" => Role::Member,
            _ => params.role()?,
        };
        let chat = &self.services.chat;
        let users = params.users();
        let added = chat.members_add(&params.channel, &users, role).await;
        let added = added.map_err(|error| logged(&error))?;
        Ok(json!({ "added": added }))
    }

    pub(super) async fn members_remove(&self, body: &[u8]) -> Answer {
        let params: MembersParams = parse(body)?;
        let chat = &self.services.chat;
        let removed = chat.members_remove(&params.channel, &params.users()).await;
        removed.map_err(|error| logged(&error))?;
        Ok(json!({}))
    }

    pub(super) async fn members_set_role(&self, body: &[u8]) -> Answer {
        let params: MembersParams = parse(body)?;
        let role = params.role()?;
        let chat = &self.services.chat;
        let set = chat
            .members_set_role(&params.channel, &params.user, role)
            .await;
        set.map_err(|error| logged(&error))?;
        Ok(json!({}))
    }
}

fn logged(error: &ChatError) -> ClientError {
    tracing::debug!(%error, "API request was refused");
    error.client_error()
}
