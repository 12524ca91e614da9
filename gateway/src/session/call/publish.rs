//! A session's publish: begun at once, answered when it is safe.

use shared::ids::ChannelName;
use shared::protocol::reply::{Reply, ReplyBody};

use super::{Outcome, client_error};
use crate::broker::{NewPublication, Published};
use crate::chat::messages::SentMessage;
use crate::chat::operation::json;
use crate::outbox::PendingPublish;
use crate::session::state::error_reply;
use crate::session::{Rules, Services};

/// How a publish is answered.
#[derive(Debug)]
pub(crate) enum Answer {
    /// By this reply.
    Fixed(Reply),
    /// By an RPC result that says where the message is.
    Position,
}

/// A publish that has its place in the stream and waits to be safe.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) id: u32,
    pub(crate) namespace: String,
    pub(crate) pending: PendingPublish,
    pub(crate) answer: Answer,
}

impl Begun {
    /// Waits until the publication is safe; the reply for its command.
    pub(crate) async fn finish(self) -> Reply {
        match self.pending.finish().await {
            Ok(published) => self.answer.reply(self.id, &published),
            Err(error) => error_reply(self.id, client_error(&error)),
        }
    }
}

impl Answer {
    fn reply(self, id: u32, published: &Published) -> Reply {
        match self {
            Self::Fixed(reply) => reply,
            Self::Position => {
                let body = match json(&SentMessage::from(published)) {
                    Ok(json) => ReplyBody::Rpc(json),
                    Err(error) => ReplyBody::Error(error.client_error()),
                };
                Reply { id, body }
            }
        }
    }
}

impl Services {
    pub(super) async fn publish(
        &self,
        id: u32,
        publication: NewPublication,
        answer: Answer,
    ) -> (Outcome, Option<Begun>) {
        let namespace = namespace_of(&self.rules, &publication.channel);
        match self.publisher.begin(publication).await {
            Ok(pending) => {
                let begun = Begun {
                    id,
                    namespace,
                    pending,
                    answer,
                };
                (Outcome::PublishBegun, Some(begun))
            }
            Err(error) => (
                Outcome::Replied(error_reply(id, client_error(&error))),
                None,
            ),
        }
    }
}

fn namespace_of(rules: &Rules, channel: &ChannelName) -> String {
    let found = rules.channels.resolve(channel.as_str());
    found.map_or_else(|_| String::new(), |(_, namespace)| namespace.name.clone())
}
