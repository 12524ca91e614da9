//! Channel names and namespaces: which options a channel has, and who may do what on it.
//!
//! Everything here is decided from the configuration, the name and who asks; nothing waits.
//! The order of the rules is the reference server's (client protocol §7.5).

use std::collections::HashMap;
use std::sync::Arc;

use shared::config::{Authorize, Config, NamespaceOptions};
use shared::ids::{ChannelName, UserId};
use shared::protocol::ClientError;

use crate::broker::HistoryPolicy;

/// Marks a channel that needs a subscription token.
const PRIVATE_PREFIX: char = '$';
/// Begins the list of users a channel is limited to.
const USER_BOUNDARY: char = '#';
const USER_SEPARATOR: char = ',';

/// The channels of one namespace: its options, ready to use.
#[derive(Debug)]
pub struct Namespace {
    /// The part before the `:`; empty for channels without one. A metric label.
    pub name: String,
    /// What the configuration says.
    pub options: NamespaceOptions,
    /// How much is kept; `None` without history.
    pub history: Option<HistoryPolicy>,
}

impl Namespace {
    fn new(name: &str, options: &NamespaceOptions) -> Arc<Self> {
        let history = options.has_history().then_some(HistoryPolicy {
            size: options.history_size,
            ttl: options.history_ttl,
            meta_ttl: options.history_meta_ttl,
            durable: options.durable,
        });
        Arc::new(Self {
            name: name.to_owned(),
            options: options.clone(),
            history,
        })
    }

    /// True when its channels have members.
    pub fn has_members(&self) -> bool {
        self.options.authorize == Authorize::Membership
    }
}

/// The rules of all channels.
#[derive(Debug)]
pub struct Channels {
    without_namespace: Option<Arc<Namespace>>,
    namespaces: HashMap<String, Arc<Namespace>>,
    insecure: bool,
}

/// Something a client wants to do on a channel, apart from subscribing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Publish into it.
    Publish,
    /// Read who is on it.
    Presence,
    /// Read its history.
    History,
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// The user; empty for an anonymous client.
    pub user: &'a UserId,
    /// True when the client is subscribed to the channel.
    pub is_subscribed: bool,
}

impl Channels {
    /// Takes the namespaces from a checked configuration.
    pub fn new(config: &Config) -> Self {
        let namespaces = config.namespaces.iter();
        Self {
            without_namespace: config
                .without_namespace
                .as_ref()
                .map(|options| Namespace::new("", options)),
            namespaces: namespaces
                .map(|(name, options)| (name.clone(), Namespace::new(name, options)))
                .collect(),
            insecure: config.client.insecure,
        }
    }

    /// Iterates over all namespaces.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Namespace>> {
        self.without_namespace
            .iter()
            .chain(self.namespaces.values())
    }

    /// Checks a name that a client sent and finds its namespace.
    ///
    /// # Errors
    /// 107 for a name that no channel can have, 102 for a namespace that is not configured.
    pub fn resolve(&self, name: &str) -> Result<(ChannelName, Arc<Namespace>), ClientError> {
        if !name.is_ascii() {
            return Err(ClientError::BAD_REQUEST);
        }
        let channel = ChannelName::new(name).map_err(|_| ClientError::BAD_REQUEST)?;
        let namespace = self
            .namespace(&channel)
            .ok_or(ClientError::UNKNOWN_CHANNEL)?;
        Ok((channel, Arc::clone(namespace)))
    }

    fn namespace(&self, channel: &ChannelName) -> Option<&Arc<Namespace>> {
        match channel.namespace() {
            Some(name) => self.namespaces.get(name),
            None => self.without_namespace.as_ref(),
        }
    }

    /// True when nobody may be on the namespace's channels who is no member: what the rules
    /// below allow holds for members only, and whoever asks them asks for the membership, too.
    pub fn needs_membership(&self, namespace: &Namespace) -> bool {
        namespace.has_members() && !self.insecure
    }

    /// Decides whether a client may subscribe without a subscription token.
    ///
    /// # Errors
    /// 103 when no rule lets it in.
    pub fn may_subscribe(
        &self,
        channel: &ChannelName,
        namespace: &Namespace,
        user: &UserId,
    ) -> Result<(), ClientError> {
        let options = &namespace.options;
        if self.insecure {
            return Ok(());
        }
        if channel.as_str().starts_with(PRIVATE_PREFIX) {
            return Err(ClientError::PERMISSION_DENIED);
        }
        if namespace.has_members() {
            return grant(!user.is_anonymous());
        }
        if options.allow_user_limited_channels && channel.as_str().contains(USER_BOUNDARY) {
            return grant(is_in_user_list(channel, user));
        }
        let is_open = options.allow_subscribe_for_client || options.authorize == Authorize::Public;
        let is_known = !user.is_anonymous() || options.allow_subscribe_for_anonymous;
        grant(is_open && is_known)
    }

    /// Decides whether a client may do something else on a channel.
    ///
    /// # Errors
    /// 108 when the namespace does not have the feature, 103 when no rule allows it.
    pub fn may(
        &self,
        action: Action,
        namespace: &Namespace,
        asker: Asker<'_>,
    ) -> Result<(), ClientError> {
        let options = &namespace.options;
        let (is_on, for_client, for_subscriber, for_anonymous) = match action {
            Action::Publish => (
                true,
                options.allow_publish_for_client,
                options.allow_publish_for_subscriber,
                options.allow_publish_for_anonymous,
            ),
            Action::Presence => (
                options.presence,
                options.allow_presence_for_client,
                options.allow_presence_for_subscriber,
                options.allow_presence_for_anonymous,
            ),
            Action::History => (
                options.has_history(),
                options.allow_history_for_client,
                options.allow_history_for_subscriber,
                options.allow_history_for_anonymous,
            ),
        };
        if !is_on {
            return Err(ClientError::NOT_AVAILABLE);
        }
        // A member may do over REST what it may do on a subscription.
        let is_subscriber = asker.is_subscribed || namespace.has_members();
        let is_allowed = for_client || (for_subscriber && is_subscriber);
        let is_known = !asker.user.is_anonymous() || for_anonymous;
        grant(self.insecure || (is_allowed && is_known))
    }
}

fn grant(is_allowed: bool) -> Result<(), ClientError> {
    if is_allowed {
        Ok(())
    } else {
        Err(ClientError::PERMISSION_DENIED)
    }
}

/// True when the part after the last `#` names the user.
fn is_in_user_list(channel: &ChannelName, user: &UserId) -> bool {
    let list = channel.as_str().rsplit_once(USER_BOUNDARY);
    !user.is_anonymous()
        && list.is_some_and(|(_, users)| users.split(USER_SEPARATOR).any(|u| u == user.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channels(change: impl FnOnce(&mut NamespaceOptions)) -> Channels {
        let mut options = NamespaceOptions::default();
        change(&mut options);
        let mut config = Config::default();
        config.namespaces.insert("chat".to_owned(), options);
        Channels::new(&config)
    }

    fn subscribe(channels: &Channels, name: &str, user: &str) -> Result<(), u32> {
        let (channel, namespace) = channels.resolve(name).map_err(|error| error.code)?;
        channels
            .may_subscribe(&channel, &namespace, &user.into())
            .map_err(|error| error.code)
    }

    #[test]
    fn unknown_namespaces_are_refused() {
        let channels = channels(|_| {});
        for name in [
            "other:1", "nocolon", ":1", "Chat:1", "chat", "$other:1", "cha%74:1",
        ] {
            assert_eq!(subscribe(&channels, name, "u"), Err(102), "{name}");
        }
        for name in [
            "",
            "chat:é",
            "chat:\n",
            &format!("chat:{}", "x".repeat(251)),
        ] {
            assert_eq!(subscribe(&channels, name, "u"), Err(107), "{name}");
        }
    }

    #[test]
    fn nothing_is_allowed_by_default() {
        assert_eq!(subscribe(&channels(|_| {}), "chat:1", "u"), Err(103));
    }

    #[test]
    fn private_channels_need_a_token_even_where_all_may_subscribe() {
        let channels = channels(|options| options.authorize = Authorize::Public);
        assert_eq!(subscribe(&channels, "chat:1", "u"), Ok(()));
        assert_eq!(subscribe(&channels, "chat:1", ""), Err(103));
        assert_eq!(subscribe(&channels, "$chat:1", "u"), Err(103));
    }

    #[test]
    fn user_limited_channels_follow_their_list_only() {
        let channels = channels(|options| {
            options.allow_user_limited_channels = true;
            options.authorize = Authorize::Public;
        });
        assert_eq!(subscribe(&channels, "chat:d#42,43", "43"), Ok(()));
        assert_eq!(subscribe(&channels, "chat:d#42,43", "4"), Err(103));
        assert_eq!(subscribe(&channels, "chat:d#42#43", "42"), Err(103));
        assert_eq!(subscribe(&channels, "chat:d#", ""), Err(103));
    }

    #[test]
    fn actions_need_feature_and_right() {
        let channels = channels(|options| {
            options.presence = true;
            options.allow_presence_for_subscriber = true;
            options.allow_history_for_client = true;
        });
        let (_, namespace) = channels.resolve("chat:1").unwrap();
        let user = UserId::from("u");
        let code = |action, is_subscribed| {
            let asker = Asker {
                user: &user,
                is_subscribed,
            };
            channels
                .may(action, &namespace, asker)
                .map_err(|error| error.code)
        };
        assert_eq!(code(Action::Presence, false), Err(103));
        assert_eq!(code(Action::Presence, true), Ok(()));
        assert_eq!(code(Action::History, true), Err(108));
        assert_eq!(code(Action::Publish, true), Err(103));
    }
}
