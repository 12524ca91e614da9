//! `disconnect`, `unsubscribe` and `info`: what concerns all nodes.

use serde::Deserialize;
use serde_json::json;
use shared::protocol::{ClientError, Disconnect};

use super::Api;
use super::router::{Answer, parse};
use crate::control::ControlCommand;
use crate::session::call::client_error;

/// Longest reason that fits into a close frame, in bytes.
const REASON_BYTES_MAX: usize = 123;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DisconnectParams {
    user: String,
    client: String,
    whitelist: Vec<String>,
    disconnect: Option<DisconnectWith>,
}

#[derive(Debug, Deserialize)]
struct DisconnectWith {
    code: u16,
    #[serde(default)]
    reason: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct UnsubscribeParams {
    user: String,
    channel: String,
    client: String,
}

impl Api {
    pub(super) async fn disconnect(&self, body: &[u8]) -> Answer {
        let params: DisconnectParams = parse(body)?;
        if params.user.is_empty() {
            return Err(ClientError::BAD_REQUEST);
        }
        let (code, reason) = match params.disconnect {
            None => {
                let default = Disconnect::FORCE_DISCONNECT;
                (default.code, default.reason.into_owned())
            }
            // Codes below are WebSocket's own; a close frame cannot carry a longer reason.
            Some(with) if (3000..5000).contains(&with.code) => {
                if with.reason.len() > REASON_BYTES_MAX {
                    return Err(ClientError::BAD_REQUEST);
                }
                (with.code, with.reason)
            }
            Some(_) => return Err(ClientError::BAD_REQUEST),
        };
        self.broadcast_command(ControlCommand::Disconnect {
            user: params.user,
            client: some(params.client),
            whitelist: params.whitelist,
            code,
            reason,
        })
        .await
    }

    pub(super) async fn unsubscribe(&self, body: &[u8]) -> Answer {
        let params: UnsubscribeParams = parse(body)?;
        if params.user.is_empty() {
            return Err(ClientError::BAD_REQUEST);
        }
        if !params.channel.is_empty() {
            self.services.rules.channels.resolve(&params.channel)?;
        }
        self.broadcast_command(ControlCommand::Unsubscribe {
            user: params.user,
            channel: params.channel,
            client: some(params.client),
        })
        .await
    }

    pub(super) async fn info(&self) -> Answer {
        let nodes = self.control.nodes().await;
        let nodes = nodes.map_err(|error| client_error(&error))?;
        Ok(json!({ "nodes": nodes }))
    }

    async fn broadcast_command(&self, command: ControlCommand) -> Answer {
        let sent = self.control.broadcast(command).await;
        sent.map_err(|error| client_error(&error))?;
        Ok(json!({}))
    }
}

fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}
