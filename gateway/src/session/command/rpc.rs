//! `rpc`: the methods of the chat part.
//!
//! `message.send` is a publish with an idempotency key and an answer; `message.edit` and
//! `message.delete` are publications about a message; `message.list` pages through the archive.
//! Any other method is error 108, as of a server without an RPC handler.

use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};
use shared::events::{
    DeletedData, EditedData, MESSAGE_DELETED, MESSAGE_EDITED, PublicationKind, change_tags,
};
use shared::ids::MessageId;
use shared::protocol::ClientError;
use shared::protocol::command::RpcRequest;
use store::archive::MessageQuery;

use crate::channel::Action;
use crate::session::call::{Answer, Call, Change};
use crate::session::state::{Effect, SessionState};

/// Messages that one `message.list` answers when it does not say how many, and at most.
const LIST_LIMIT: usize = 50;
const LIST_LIMIT_MAX: usize = 300;

/// `message.send`.
#[derive(Debug, Deserialize)]
struct SendParams {
    channel: String,
    data: Box<RawValue>,
    /// Names the message for good: sent again with the same key, it is published once.
    #[serde(default)]
    idempotency_key: String,
}

/// `message.edit` and, without `data`, `message.delete`.
#[derive(Debug, Deserialize)]
struct ChangeParams {
    channel: String,
    /// The message.
    id: MessageId,
    data: Option<Box<RawValue>>,
    #[serde(default)]
    idempotency_key: String,
}

/// `message.list`: the first messages after a place or a time, else the last ones before.
#[derive(Debug, Deserialize)]
struct ListParams {
    channel: String,
    after: Option<u64>,
    before: Option<u64>,
    /// Unix milliseconds, as `time` in the answer.
    after_time: Option<u64>,
    before_time: Option<u64>,
    limit: Option<usize>,
    /// Newest first; else oldest first.
    #[serde(default)]
    reverse: bool,
}

impl SessionState {
    pub(in crate::session) fn rpc(
        &mut self,
        id: u32,
        request: &RpcRequest,
        effects: &mut Vec<Effect>,
    ) -> Result<(), ClientError> {
        match request.method.as_str() {
            "message.send" => self.message_send(id, request, effects),
            "message.edit" => self.message_change(id, PublicationKind::Edited, request, effects),
            "message.delete" => self.message_change(id, PublicationKind::Deleted, request, effects),
            "message.list" => self.message_list(id, request, effects),
            _ => Err(ClientError::NOT_AVAILABLE),
        }
    }

    fn message_send(
        &mut self,
        id: u32,
        request: &RpcRequest,
        effects: &mut Vec<Effect>,
    ) -> Result<(), ClientError> {
        let params: SendParams = parse(request)?;
        let publication =
            self.publication(&params.channel, Some(&params.data), &params.idempotency_key)?;
        let answer = Answer::Position;
        self.call(
            Call::Publish {
                id,
                publication,
                answer,
            },
            effects,
        );
        Ok(())
    }

    fn message_change(
        &mut self,
        id: u32,
        kind: PublicationKind,
        request: &RpcRequest,
        effects: &mut Vec<Effect>,
    ) -> Result<(), ClientError> {
        let params: ChangeParams = parse(request)?;
        let data = change_data(kind, &params)?;
        let mut publication =
            self.publication(&params.channel, Some(&data), &params.idempotency_key)?;
        if !publication.durable {
            // Nothing keeps whose message it is.
            return Err(ClientError::NOT_AVAILABLE);
        }
        let user = self.info.as_ref().ok_or(ClientError::UNAUTHORIZED)?;
        publication.tags = change_tags(kind, params.id);
        let change = Box::new(Change {
            user: user.user.clone(),
            kind,
            target: params.id,
            publication,
        });
        self.call(Call::Change { id, change }, effects);
        Ok(())
    }

    fn message_list(
        &mut self,
        id: u32,
        request: &RpcRequest,
        effects: &mut Vec<Effect>,
    ) -> Result<(), ClientError> {
        let params: ListParams = parse(request)?;
        let (channel, namespace) = self.rules.channels.resolve(&params.channel)?;
        let asker = self.asker(&channel).ok_or(ClientError::UNAUTHORIZED)?;
        self.rules
            .channels
            .may(Action::History, &namespace, asker)?;
        if !namespace.options.durable {
            return Err(ClientError::NOT_AVAILABLE);
        }
        let query = MessageQuery {
            after: params.after,
            before: params.before,
            after_time_ms: params.after_time,
            before_time_ms: params.before_time,
            limit: params.limit.unwrap_or(LIST_LIMIT).min(LIST_LIMIT_MAX),
            // Without a place to begin at, the newest are wanted.
            reverse: params.after.is_none() && params.after_time.is_none(),
        };
        let newest_first = params.reverse;
        self.call(
            Call::List {
                id,
                channel,
                query,
                newest_first,
            },
            effects,
        );
        Ok(())
    }
}

/// Makes the data of an edit or a deletion, as subscribers get it.
fn change_data(kind: PublicationKind, params: &ChangeParams) -> Result<Box<RawValue>, ClientError> {
    let data = match kind {
        PublicationKind::Edited => to_raw_value(&EditedData {
            event: MESSAGE_EDITED.into(),
            id: params.id,
            data: params.data.as_deref().ok_or(ClientError::BAD_REQUEST)?,
        }),
        PublicationKind::Message | PublicationKind::Deleted => to_raw_value(&DeletedData {
            event: MESSAGE_DELETED.into(),
            id: params.id,
        }),
    };
    data.map_err(|_| ClientError::BAD_REQUEST)
}

fn parse<'a, T: Deserialize<'a>>(request: &'a RpcRequest) -> Result<T, ClientError> {
    let data = request.data.as_ref().ok_or(ClientError::BAD_REQUEST)?;
    serde_json::from_str(data.get()).map_err(|_| ClientError::BAD_REQUEST)
}
