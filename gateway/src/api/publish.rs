//! `publish` and `broadcast`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use shared::events::RESERVED_TAGS;
use shared::ids::StreamPosition;
use shared::protocol::{ClientError, Tags, payload};

use super::Api;
use super::router::{Answer, parse};
use crate::broker::NewPublication;
use crate::session::call::client_error;
use crate::session::identify;

/// Channels of one broadcast that are published to at once.
const BROADCAST_PARALLEL: usize = 1024;

/// Where to; read apart from the message, because serde's `flatten` cannot keep raw text.
#[derive(Debug, Deserialize)]
struct Targets {
    #[serde(default)]
    channel: String,
    #[serde(default)]
    channels: Vec<String>,
}

/// What is published; `b64data` wins over `data`.
#[derive(Debug, Deserialize)]
struct Message {
    data: Option<Box<RawValue>>,
    b64data: Option<String>,
    #[serde(default)]
    skip_history: bool,
    #[serde(default)]
    tags: Tags,
    #[serde(default)]
    idempotency_key: String,
}

impl Api {
    pub(super) async fn publish(&self, key_name: &str, body: &[u8]) -> Answer {
        let targets: Targets = parse(body)?;
        let message: Message = parse(body)?;
        let data = message.payload()?;
        self.publish_one(key_name, &targets.channel, data, &message)
            .await
    }

    pub(super) async fn broadcast(&self, key_name: &str, body: &[u8]) -> Answer {
        let targets: Targets = parse(body)?;
        let message: Message = parse(body)?;
        if targets.channels.is_empty() {
            return Err(ClientError::BAD_REQUEST);
        }
        let data = message.payload()?;
        let publishes = targets
            .channels
            .into_iter()
            .map(|channel| self.broadcast_one(key_name, channel, data.clone(), &message));
        let responses: Vec<Value> = stream::iter(publishes)
            .buffered(BROADCAST_PARALLEL)
            .collect()
            .await;
        Ok(json!({ "responses": responses }))
    }

    /// Publishes to one channel of a broadcast: an error there is no error of the others.
    async fn broadcast_one(
        &self,
        key_name: &str,
        channel: String,
        data: Bytes,
        message: &Message,
    ) -> Value {
        match self.publish_one(key_name, &channel, data, message).await {
            Ok(result) => json!({ "result": result }),
            Err(error) => json!({ "error": { "code": error.code, "message": error.message } }),
        }
    }

    async fn publish_one(
        &self,
        key_name: &str,
        channel: &str,
        data: Bytes,
        message: &Message,
    ) -> Answer {
        let (channel, namespace) = self.services.rules.channels.resolve(channel)?;
        let is_durable = namespace.options.durable;
        if message
            .tags
            .keys()
            .any(|tag| tag.starts_with(RESERVED_TAGS))
        {
            return Err(ClientError::BAD_REQUEST);
        }
        if message.skip_history && is_durable {
            // Durable means that history and archive have it: the two wishes contradict.
            return Err(ClientError::BAD_REQUEST);
        }
        let scope = format!("api:{key_name}");
        let (id, idempotency) = identify(&scope, &channel, &namespace, &message.idempotency_key)?;
        let publication = NewPublication {
            channel,
            data,
            info: None,
            tags: message.tags.clone(),
            id,
            history: namespace.history.clone().filter(|_| !message.skip_history),
            durable: is_durable,
            idempotency,
        };
        let published = self.services.publisher.publish(publication).await;
        let published = published.map_err(|error| client_error(&error))?;
        Ok(position_json(published.position.as_ref()))
    }
}

impl Message {
    fn payload(&self) -> Result<Bytes, ClientError> {
        let data = match (&self.b64data, &self.data) {
            (Some(encoded), _) if !encoded.is_empty() => STANDARD
                .decode(encoded)
                .map_err(|_| ClientError::BAD_REQUEST)?,
            (_, Some(data)) => return Ok(payload::from_raw(data)),
            (_, None) => return Err(ClientError::BAD_REQUEST),
        };
        payload::json(&data).map_err(|_| ClientError::BAD_REQUEST)
    }
}

/// Writes a position with zero values left out.
fn position_json(position: Option<&StreamPosition>) -> Value {
    match position {
        Some(position) => json!({ "offset": position.offset, "epoch": position.epoch.as_str() }),
        None => json!({}),
    }
}
