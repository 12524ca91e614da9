//! `message.edit` and `message.delete`: a publication of its own, if the message is the user's.

use shared::events::{PublicationKind, TAG_ID};
use shared::ids::{ChannelName, MessageId, UserId};
use shared::protocol::ClientError;

use super::{Answer, Begun, Outcome, client_error};
use crate::broker::{HistoryPolicy, HistoryRange, NewPublication};
use crate::session::Services;
use crate::session::state::error_reply;

/// Newest publications that are searched for a message that the archive does not have yet.
const RECENT_MAX: usize = 300;

/// An edit or a deletion that waits for its permission.
#[derive(Debug)]
pub(crate) struct Change {
    /// Who wants it.
    pub(crate) user: UserId,
    /// Edited or deleted.
    pub(crate) kind: PublicationKind,
    /// The message.
    pub(crate) target: MessageId,
    /// What is published when it is allowed.
    pub(crate) publication: NewPublication,
}

/// What of a message decides who may change it.
struct Target {
    /// Who wrote it; empty for the server API, and after an erasure.
    author: String,
    is_deleted: bool,
}

impl Services {
    pub(super) async fn change(&self, id: u32, change: Change) -> (Outcome, Option<Begun>) {
        match self.may_change(&change).await {
            Ok(()) => self.publish(id, change.publication, Answer::Position).await,
            Err(error) => (Outcome::Replied(error_reply(id, error)), None),
        }
    }

    /// Decides whether a user may change a message.
    ///
    /// # Errors
    /// 103 when the channel has no such message of the user's: whose it is stays unsaid.
    pub(crate) async fn may_change(&self, change: &Change) -> Result<(), ClientError> {
        let publication = &change.publication;
        let target = self.target(publication, change.target).await?;
        let target = target.ok_or(ClientError::PERMISSION_DENIED)?;
        // The anonymous user is everybody, and nobody's messages are the server API's.
        let is_author = !change.user.is_anonymous() && target.author == change.user.as_str();
        // With a key it may be an edit from before the deletion that is sent again: the broker
        // knows. An edit of a deleted message changes nothing in any case.
        let is_too_late = change.kind == PublicationKind::Edited
            && target.is_deleted
            && publication.idempotency.is_none();
        if is_author && !is_too_late {
            Ok(())
        } else {
            Err(ClientError::PERMISSION_DENIED)
        }
    }

    /// Finds a message: in the archive, else among the newest of the history.
    async fn target(
        &self,
        publication: &NewPublication,
        id: MessageId,
    ) -> Result<Option<Target>, ClientError> {
        let channel = &publication.channel;
        if let Some(archive) = &self.archive {
            let found = archive.message(channel, id).await;
            let found = found.map_err(|error| {
                tracing::warn!(%channel, %error, "archive could not be read");
                ClientError::INTERNAL
            })?;
            if let Some(message) = found {
                return Ok(Some(Target {
                    author: message.user,
                    is_deleted: message.deleted_at_ms.is_some(),
                }));
            }
        }
        match &publication.history {
            Some(policy) => self.recent(channel, policy, id).await,
            None => Ok(None),
        }
    }

    async fn recent(
        &self,
        channel: &ChannelName,
        policy: &HistoryPolicy,
        id: MessageId,
    ) -> Result<Option<Target>, ClientError> {
        let range = HistoryRange {
            since: None,
            limit: Some(RECENT_MAX),
            reverse: true,
        };
        let page = self.broker.history(channel, policy, range).await;
        let page = page.map_err(|error| client_error(&error))?;
        let id = id.to_string();
        let found = page.publications.iter().find(|publication| {
            let is_message =
                PublicationKind::of_tags(&publication.tags) == PublicationKind::Message;
            is_message && publication.tags.get(TAG_ID) == Some(&id)
        });
        Ok(found.map(|publication| Target {
            author: publication
                .info
                .as_ref()
                .map_or_else(String::new, |info| info.user.as_str().to_owned()),
            is_deleted: false,
        }))
    }
}
