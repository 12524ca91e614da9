//! The chat part: devices, channels and their members, messages, read positions.
//!
//! `operation` holds the one table of what clients may ask; `rest` serves it under `/v1`, the
//! session's `rpc` command serves the same table, `openapi` describes it. A file per subject
//! (`devices`, `channels`, `members`, …) has the request types and what each does. `memberships`
//! is who may be on a channel. Nothing here knows a socket.
//!
//! To add an operation: a request type that implements [`operation::Ask`] (or
//! [`operation::Publish`]) and one line in [`operation::OPERATIONS`].

mod blocks;
mod changes;
mod channels;
mod cursor;
mod devices;
mod direct;
pub(crate) mod error;
mod invitations;
pub(crate) mod media;
mod members;
pub(crate) mod memberships;
pub(crate) mod messages;
mod openapi;
pub(crate) mod operation;
mod reads;
pub(crate) mod rest;
pub(crate) mod roster;
mod validate;
mod views;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use shared::config::ChatConfig;
use shared::ids::{ChannelName, UserId};
use shared::protocol::{ClientError, ClientInfo};
use store::archive::MessageArchive;
use store::records::{MemberLimits, Records};

use crate::broker::{Broker, HistoryRange};
use crate::channel::{Asker, Namespace};
use crate::control::{Control, ControlCommand};
use crate::metrics::Metrics;
use crate::outbox::Publisher;
use crate::session::Rules;
use crate::session::call::client_error;
use error::ChatError;
use memberships::Memberships;

/// What the operations work on.
pub(crate) struct Chat {
    pub(crate) rules: Arc<Rules>,
    pub(crate) config: ChatConfig,
    /// Largest message, in bytes: what a client could send over its connection, too.
    pub(crate) data_bytes_max: usize,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) publisher: Arc<Publisher>,
    pub(crate) control: Arc<dyn Control>,
    pub(crate) archive: Option<Arc<dyn MessageArchive>>,
    pub(crate) records: Option<Records>,
    /// What media need; without it nothing can be uploaded.
    pub(crate) media: Option<media::Media>,
    pub(crate) memberships: Arc<Memberships>,
    pub(crate) metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Chat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chat").finish_non_exhaustive()
    }
}

/// Who asks.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// The client as others see it; over REST its connection's id is nil.
    pub(crate) info: Arc<ClientInfo>,
    /// The subscription that the caller has to the channel it asks about, over a connection.
    pub(crate) subscription: Option<(ChannelName, Arc<ClientInfo>)>,
}

impl Caller {
    /// Returns the user.
    pub(crate) fn user(&self) -> &UserId {
        &self.info.user
    }

    /// Returns who asks for something on a channel.
    pub(crate) fn asker(&self, channel: &ChannelName) -> Asker<'_> {
        Asker {
            user: self.user(),
            is_subscribed: self.subscribed(channel).is_some(),
        }
    }

    /// Returns the caller as others on the channel see it.
    pub(crate) fn info_on(&self, channel: &ChannelName) -> Arc<ClientInfo> {
        Arc::clone(self.subscribed(channel).unwrap_or(&self.info))
    }

    /// Returns the user, who must be somebody.
    ///
    /// # Errors
    /// [`ChatError::Unauthenticated`] for the anonymous user.
    pub(crate) fn known_user(&self) -> Result<&UserId, ChatError> {
        if self.user().is_anonymous() {
            return Err(ChatError::Unauthenticated("the token names no user"));
        }
        Ok(self.user())
    }

    fn subscribed(&self, channel: &ChannelName) -> Option<&Arc<ClientInfo>> {
        let (on, info) = self.subscription.as_ref()?;
        (on == channel).then_some(info)
    }
}

impl Chat {
    /// Returns the records.
    ///
    /// # Errors
    /// 108 without a database.
    pub(crate) fn records(&self) -> Result<&Records, ChatError> {
        let records = self.records.as_ref();
        records.ok_or(ChatError::Protocol(ClientError::NOT_AVAILABLE))
    }

    /// Checks a channel's name, and that members are kept of it.
    ///
    /// # Errors
    /// 102 or 107 for a name that no channel has, 108 when its namespace has no members.
    pub(crate) fn with_members(
        &self,
        name: &str,
    ) -> Result<(ChannelName, Arc<Namespace>), ChatError> {
        let (channel, namespace) = self.rules.channels.resolve(name)?;
        if namespace.has_members() {
            Ok((channel, namespace))
        } else {
            Err(ChatError::Protocol(ClientError::NOT_AVAILABLE))
        }
    }

    pub(crate) fn limits(&self) -> MemberLimits {
        MemberLimits {
            channels_per_user: self.config.channels_per_user_max,
            members_per_channel: self.config.members_per_channel_max,
        }
    }

    /// Returns the channel's top offset: what a new member has not missed.
    pub(crate) async fn top_offset(
        &self,
        channel: &ChannelName,
        namespace: &Namespace,
    ) -> Result<i64, ChatError> {
        let Some(policy) = &namespace.history else {
            return Ok(0);
        };
        let range = HistoryRange {
            since: None,
            limit: Some(0),
            reverse: false,
        };
        let page = self.broker.history(channel, policy, range).await;
        let page = page.map_err(|error| client_error(&error))?;
        Ok(i64::try_from(page.top.offset).unwrap_or(i64::MAX))
    }

    /// Tells every node that a user's membership has changed; with `ended` the user is taken off
    /// the channel. An empty `channel` means all.
    ///
    /// # Errors
    /// 100 when it could not be told: the caller asks again, which tells it again.
    pub(crate) async fn tell(
        &self,
        user: &UserId,
        channel: &str,
        ended: bool,
    ) -> Result<(), ChatError> {
        let command = ControlCommand::Membership {
            user: user.as_str().to_owned(),
            channel: channel.to_owned(),
            ended,
        };
        let told = self.control.broadcast(command).await;
        Ok(told.map_err(|error| client_error(&error))?)
    }
}

/// Returns Unix milliseconds.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    i64::try_from(since.unwrap_or(Duration::ZERO).as_millis()).unwrap_or(i64::MAX)
}
