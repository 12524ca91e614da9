//! The table of what clients may ask, and what an entry is.
//!
//! A request type says what is asked and does it; its entry here gives it a method name, a path
//! and a sentence. The `rpc` command, `/v1` and the OpenAPI document all come from the table.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::ChatError;
use super::messages::SentMessage;
use super::{Caller, Chat};
use super::{
    blocks, changes, channels, devices, direct, invitations, media, members, messages, reads,
};
use crate::broker::NewPublication;

/// A request that is answered from the stores.
pub(crate) trait Ask: DeserializeOwned + JsonSchema + Send + 'static {
    /// What it is answered with.
    type Answer: Serialize + JsonSchema;

    /// Checks what the caller may, and does it.
    ///
    /// # Errors
    /// See [`ChatError`].
    fn handle(
        self,
        chat: &Chat,
        caller: &Caller,
    ) -> impl Future<Output = Result<Self::Answer, ChatError>> + Send;
}

/// A request that becomes a publication; it is answered with where that is, once it is safe.
pub(crate) trait Publish: DeserializeOwned + JsonSchema + Send + 'static {
    /// Checks what the caller may, and makes the publication.
    ///
    /// # Errors
    /// See [`ChatError`].
    fn publication(
        self,
        chat: &Chat,
        caller: &Caller,
    ) -> impl Future<Output = Result<NewPublication, ChatError>> + Send;
}

/// The HTTP method of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Get,
    Post,
    Put,
    Patch,
    Delete,
}

/// One thing that clients may ask.
#[derive(Debug)]
pub(crate) struct Operation {
    /// Its name as an RPC method.
    pub(crate) method: &'static str,
    /// Its HTTP method.
    pub(crate) verb: Verb,
    /// Its path; what stands in braces is a field of the request.
    pub(crate) path: &'static str,
    /// What it does, for the OpenAPI document.
    pub(crate) summary: &'static str,
    /// How it is done.
    pub(crate) run: Run,
    /// The shape of the request.
    pub(crate) request: fn(&mut SchemaGenerator) -> Schema,
    /// The shape of the answer.
    pub(crate) answer: fn(&mut SchemaGenerator) -> Schema,
}

type Done<T> = BoxFuture<'static, Result<T, ChatError>>;

/// How an operation is done; the bytes are the request's JSON, and the answer's.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Run {
    /// It is answered.
    Ask(fn(Arc<Chat>, Caller, Bytes) -> Done<Bytes>),
    /// It becomes a publication.
    Publish(fn(Arc<Chat>, Caller, Bytes) -> Done<NewPublication>),
}

/// Everything that clients may ask.
pub(crate) static OPERATIONS: &[Operation] = &[
    ask::<devices::RegisterDevice>(
        "device.register",
        Verb::Put,
        "/v1/devices/{token}",
        "Registers a device for pushes",
    ),
    ask::<devices::RemoveDevice>(
        "device.remove",
        Verb::Delete,
        "/v1/devices/{token}",
        "Removes a device",
    ),
    ask::<channels::CreateChannel>(
        "channel.create",
        Verb::Post,
        "/v1/channels",
        "Makes a channel",
    ),
    ask::<channels::ListChannels>(
        "channel.list",
        Verb::Get,
        "/v1/channels",
        "Lists the user's channels",
    ),
    ask::<channels::GetChannel>(
        "channel.get",
        Verb::Get,
        "/v1/channels/{channel}",
        "Reads a channel",
    ),
    ask::<channels::UpdateChannel>(
        "channel.update",
        Verb::Patch,
        "/v1/channels/{channel}",
        "Changes name and picture",
    ),
    ask::<channels::MuteChannel>(
        "channel.mute",
        Verb::Put,
        "/v1/channels/{channel}/mute",
        "Keeps pushes away until a time",
    ),
    ask::<members::JoinChannel>(
        "channel.join",
        Verb::Post,
        "/v1/channels/{channel}/join",
        "Becomes a member",
    ),
    ask::<members::LeaveChannel>(
        "channel.leave",
        Verb::Post,
        "/v1/channels/{channel}/leave",
        "Ends the membership",
    ),
    ask::<members::ListMembers>(
        "channel.members",
        Verb::Get,
        "/v1/channels/{channel}/members",
        "Lists the members",
    ),
    ask::<members::KickMember>(
        "channel.kick",
        Verb::Delete,
        "/v1/channels/{channel}/members/{user}",
        "Removes a member",
    ),
    ask::<members::SetRole>(
        "channel.set_role",
        Verb::Put,
        "/v1/channels/{channel}/members/{user}/role",
        "Gives a member a role",
    ),
    ask::<invitations::Invite>(
        "channel.invite",
        Verb::Post,
        "/v1/channels/{channel}/invitations",
        "Makes an invitation",
    ),
    ask::<direct::OpenDirect>(
        "channel.direct",
        Verb::Post,
        "/v1/direct",
        "Opens the direct chat with a user",
    ),
    ask::<blocks::BlockUser>(
        "user.block",
        Verb::Put,
        "/v1/blocks/{user}",
        "Blocks a user",
    ),
    ask::<blocks::UnblockUser>(
        "user.unblock",
        Verb::Delete,
        "/v1/blocks/{user}",
        "Ends a block",
    ),
    ask::<blocks::ListBlocks>(
        "user.blocks",
        Verb::Get,
        "/v1/blocks",
        "Lists whom the user blocks",
    ),
    publish::<messages::SendMessage>(
        "message.send",
        Verb::Post,
        "/v1/channels/{channel}/messages",
        "Publishes a message",
    ),
    ask::<messages::ListMessages>(
        "message.list",
        Verb::Get,
        "/v1/channels/{channel}/messages",
        "Reads old messages",
    ),
    publish::<changes::EditMessage>(
        "message.edit",
        Verb::Patch,
        "/v1/channels/{channel}/messages/{id}",
        "Gives a message new data",
    ),
    publish::<changes::DeleteMessage>(
        "message.delete",
        Verb::Delete,
        "/v1/channels/{channel}/messages/{id}",
        "Deletes a message",
    ),
    ask::<reads::MarkRead>(
        "read.mark",
        Verb::Put,
        "/v1/channels/{channel}/read",
        "Moves the read position on",
    ),
    ask::<reads::Unread>(
        "read.unread",
        Verb::Get,
        "/v1/unread",
        "Counts what the user has not read",
    ),
    ask::<media::CreateMedia>(
        "media.create",
        Verb::Post,
        "/v1/media",
        "Announces a picture or a file",
    ),
    ask::<media::CompleteMedia>(
        "media.complete",
        Verb::Post,
        "/v1/media/{id}/complete",
        "Says that it was uploaded",
    ),
    ask::<media::GetMedia>(
        "media.get",
        Verb::Get,
        "/v1/media/{id}",
        "Reads a picture or a file",
    ),
];

/// Finds an operation by its RPC method.
pub(crate) fn find(method: &str) -> Option<&'static Operation> {
    OPERATIONS
        .iter()
        .find(|operation| operation.method == method)
}

const fn ask<R: Ask>(
    method: &'static str,
    verb: Verb,
    path: &'static str,
    summary: &'static str,
) -> Operation {
    Operation {
        method,
        verb,
        path,
        summary,
        run: Run::Ask(run_ask::<R>),
        request: schema::<R>,
        answer: schema::<R::Answer>,
    }
}

const fn publish<R: Publish>(
    method: &'static str,
    verb: Verb,
    path: &'static str,
    summary: &'static str,
) -> Operation {
    Operation {
        method,
        verb,
        path,
        summary,
        run: Run::Publish(run_publish::<R>),
        request: schema::<R>,
        answer: schema::<SentMessage>,
    }
}

fn run_ask<R: Ask>(chat: Arc<Chat>, caller: Caller, request: Bytes) -> Done<Bytes> {
    Box::pin(async move {
        let request: R = parse(&request)?;
        json(&request.handle(&chat, &caller).await?)
    })
}

fn run_publish<R: Publish>(
    chat: Arc<Chat>,
    caller: Caller,
    request: Bytes,
) -> Done<NewPublication> {
    Box::pin(async move {
        let request: R = parse(&request)?;
        request.publication(&chat, &caller).await
    })
}

fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

fn parse<T: DeserializeOwned>(request: &[u8]) -> Result<T, ChatError> {
    serde_json::from_slice(request).map_err(|error| ChatError::Invalid(error.to_string()))
}

/// Writes an answer.
pub(crate) fn json(answer: &impl Serialize) -> Result<Bytes, ChatError> {
    match serde_json::to_vec(answer) {
        Ok(json) => Ok(Bytes::from(json)),
        Err(error) => {
            tracing::error!(%error, "an answer could not be written");
            Err(ChatError::Unavailable("the answer could not be written"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn methods_and_paths_are_taken_once() {
        let methods: HashSet<_> = OPERATIONS.iter().map(|o| o.method).collect();
        assert_eq!(methods.len(), OPERATIONS.len());
        let paths: HashSet<_> = OPERATIONS
            .iter()
            .map(|o| format!("{:?} {}", o.verb, o.path))
            .collect();
        assert_eq!(paths.len(), OPERATIONS.len());
    }
}
