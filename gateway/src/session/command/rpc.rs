//! `rpc`: the methods of the chat part.
//!
//! `message.send` is a publish with an idempotency key and an answer; `message.list` pages
//! through the archive. Any other method is error 108, as of a server without an RPC handler.

use serde::Deserialize;
use serde_json::value::RawValue;
use shared::protocol::ClientError;
use shared::protocol::command::RpcRequest;
use store::archive::PageQuery;

use crate::channel::Action;
use crate::session::call::{Answer, Call};
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

/// `message.list`: the first messages after `after`, else the last ones before `before`.
#[derive(Debug, Deserialize)]
struct ListParams {
    channel: String,
    after: Option<u64>,
    before: Option<u64>,
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
        let query = PageQuery {
            after: params.after,
            before: params.before,
            epoch: None,
            limit: params.limit.unwrap_or(LIST_LIMIT).min(LIST_LIMIT_MAX),
            // Without a place to begin at, the newest are wanted.
            reverse: params.after.is_none(),
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

fn parse<'a, T: Deserialize<'a>>(request: &'a RpcRequest) -> Result<T, ClientError> {
    let data = request.data.as_ref().ok_or(ClientError::BAD_REQUEST)?;
    serde_json::from_str(data.get()).map_err(|_| ClientError::BAD_REQUEST)
}
