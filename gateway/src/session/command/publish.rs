//! Step 4 of a message's life: a `publish` becomes a publication.
//!
//! The next step is `broker/redis_streams`: it gives epoch and offset.

use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;
use shared::ids::MessageId;
use shared::protocol::command::PublishRequest;
use shared::protocol::reply::{Reply, ReplyBody};
use shared::protocol::{ClientError, payload};

use crate::broker::{Idempotency, NewPublication};
use crate::channel::{Action, Namespace};
use crate::session::call::Call;
use crate::session::state::{Effect, SessionState};

/// How long a result is remembered under its key, on durable channels and on others.
const IDEMPOTENCY_TTL_DURABLE: Duration = Duration::from_secs(24 * 3600);
const IDEMPOTENCY_TTL: Duration = Duration::from_secs(5 * 60);
/// Longest idempotency key, in bytes.
const KEY_BYTES_MAX: usize = 255;

impl SessionState {
    pub(in crate::session) fn publish(
        &mut self,
        id: u32,
        request: PublishRequest,
        effects: &mut Vec<Effect>,
    ) -> Result<(), ClientError> {
        let publication = self.publication(&request.channel, request.data.as_deref())?;
        let reply = Reply {
            id,
            body: ReplyBody::Publish,
        };
        self.call(Call::Publish { publication, reply }, effects);
        Ok(())
    }

    /// Checks a publish and makes the publication.
    fn publication(
        &self,
        channel: &str,
        data: Option<&RawValue>,
    ) -> Result<NewPublication, ClientError> {
        let (channel, namespace) = self.rules.channels.resolve(channel)?;
        let asker = self.asker(&channel).ok_or(ClientError::UNAUTHORIZED)?;
        self.rules
            .channels
            .may(Action::Publish, &namespace, asker)?;
        let data = data
            .map(payload::from_raw)
            .ok_or(ClientError::BAD_REQUEST)?;
        let subscription = self.subscriptions.get(&channel);
        let info = subscription.map_or(self.info.clone(), |s| Some(Arc::clone(&s.info)));
        Ok(NewPublication {
            channel,
            data,
            info,
            tags: shared::protocol::Tags::new(),
            id: MessageId::now(),
            history: namespace.history.clone(),
            durable: namespace.options.durable,
            idempotency: None,
        })
    }
}

/// Gives a publication its id, and the record that finds it again.
///
/// # Errors
/// 107 for a key that is too long.
pub(crate) fn identify(
    scope: &str,
    channel: &shared::ids::ChannelName,
    namespace: &Namespace,
    key: &str,
) -> Result<(MessageId, Option<Idempotency>), ClientError> {
    if key.is_empty() {
        return Ok((MessageId::now(), None));
    }
    if key.len() > KEY_BYTES_MAX {
        return Err(ClientError::BAD_REQUEST);
    }
    let is_durable = namespace.options.durable;
    let idempotency = Idempotency {
        scope: scope.to_owned(),
        key: key.to_owned(),
        ttl: if is_durable {
            IDEMPOTENCY_TTL_DURABLE
        } else {
            IDEMPOTENCY_TTL
        },
    };
    Ok((MessageId::of_key(scope, channel, key), Some(idempotency)))
}
