//! `history` and `history_remove`.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use shared::protocol::command::Since;
use shared::protocol::reply::publications_json;
use shared::protocol::{ClientError, Publication};

use super::Api;
use super::router::{Answer, parse};
use crate::broker::HistoryRange;
use crate::session::call::client_error;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct HistoryParams {
    channel: String,
    limit: i32,
    since: Option<Since>,
    reverse: bool,
}

impl Api {
    pub(super) async fn history(&self, body: &[u8]) -> Answer {
        let params: HistoryParams = parse(body)?;
        let (channel, namespace) = self.services.rules.channels.resolve(&params.channel)?;
        let policy = namespace
            .history
            .as_ref()
            .ok_or(ClientError::NOT_AVAILABLE)?;
        let is_nowhere = params.since.as_ref().is_some_and(|since| since.offset == 0);
        if params.reverse && is_nowhere {
            return Err(ClientError::BAD_REQUEST);
        }
        let range = HistoryRange {
            since: params.since.map(Into::into),
            // Negative: all that is kept.
            limit: usize::try_from(params.limit).ok(),
            reverse: params.reverse,
        };
        let page = self.services.broker.history(&channel, policy, range).await;
        let page = page.map_err(|error| client_error(&error))?;
        Ok(json!({
            "publications": publications(&page.publications)?,
            "epoch": page.top.epoch.as_str(),
            "offset": page.top.offset,
        }))
    }

    pub(super) async fn history_remove(&self, body: &[u8]) -> Answer {
        let params: HistoryParams = parse(body)?;
        let (channel, namespace) = self.services.rules.channels.resolve(&params.channel)?;
        if namespace.history.is_none() {
            return Err(ClientError::NOT_AVAILABLE);
        }
        let removed = self.services.broker.history_remove(&channel).await;
        removed.map_err(|error| client_error(&error))?;
        Ok(json!({}))
    }
}

/// Writes publications as clients get them, and puts the text into the answer as it is.
fn publications(list: &[Arc<Publication>]) -> Result<Value, ClientError> {
    let mut text = Vec::new();
    publications_json(&mut text, list);
    raw(&text)
}

/// Reads JSON that this server wrote into an answer's tree.
pub(super) fn raw(json: &[u8]) -> Result<Value, ClientError> {
    serde_json::from_slice::<&RawValue>(json)
        .and_then(|raw| serde_json::from_str(raw.get()))
        .map_err(|error| {
            tracing::error!(%error, "stored data is not JSON");
            ClientError::INTERNAL
        })
}
