//! A session's `rpc`: one operation of the chat part.

use std::sync::Arc;

use bytes::Bytes;
use shared::protocol::reply::{Reply, ReplyBody};

use super::{Answer, Begun, Outcome};
use crate::chat::Caller;
use crate::chat::error::ChatError;
use crate::chat::operation::{Operation, Run};
use crate::session::Services;
use crate::session::state::error_reply;

impl Services {
    pub(super) async fn rpc(
        &self,
        id: u32,
        operation: &'static Operation,
        caller: Caller,
        request: Bytes,
    ) -> (Outcome, Option<Begun>) {
        let chat = Arc::clone(&self.chat);
        let refused = |error: &ChatError| {
            tracing::debug!(method = operation.method, %error, "refused");
            (
                Outcome::Replied(error_reply(id, error.client_error())),
                None,
            )
        };
        match operation.run {
            Run::Ask(run) => match run(chat, caller, request).await {
                Ok(answer) => {
                    let body = ReplyBody::Rpc(answer);
                    (Outcome::Replied(Reply { id, body }), None)
                }
                Err(error) => refused(&error),
            },
            Run::Publish(run) => match run(chat, caller, request).await {
                Ok(publication) => self.publish(id, publication, Answer::Position).await,
                Err(error) => refused(&error),
            },
        }
    }
}
