//! Newtypes for the identifiers that travel between processes, so that two strings cannot change
//! places.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Longest channel name, in bytes (the reference server's `channel.max_length`).
pub const CHANNEL_NAME_BYTES_MAX: usize = 255;

macro_rules! string_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Returns the text of the identifier.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text.into())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    };
}

string_id! {
    /// A user of the product, as the token's `sub` names them; empty means anonymous.
    UserId
}
string_id! {
    /// The identity of a channel's stream: positions of different epochs cannot be compared.
    Epoch
}
string_id! {
    /// One gateway process, from its start to its end.
    NodeId
}

impl UserId {
    /// True for a connection without a user (no token, or a token without `sub`).
    pub fn is_anonymous(&self) -> bool {
        self.0.is_empty()
    }
}

impl Epoch {
    /// Makes an epoch tag: eight ASCII letters, as the reference server's are.
    pub fn random() -> Self {
        const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        let bytes = Uuid::new_v4().into_bytes();
        bytes
            .iter()
            .take(8)
            .map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()]))
            .collect::<String>()
            .into()
    }
}

impl NodeId {
    /// Makes the id of a node that is starting.
    pub fn random() -> Self {
        Uuid::new_v4().to_string().into()
    }
}

/// One connection: a UUID v4 the server gives at connect.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClientId(Uuid);

impl ClientId {
    /// Makes the id of a new connection.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// Reads an id as clients and the server API write it.
    pub fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().map(Self)
    }

    /// Makes an id from its number; 0 is below every other.
    pub fn from_u128(number: u128) -> Self {
        Self(Uuid::from_u128(number))
    }

    /// Returns the id as a UUID.
    pub fn as_uuid(&self) -> &Uuid {
        &self.0
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One message for good: UUID v7, or UUID v5 of (scope, channel, key) with an idempotency key, so
/// that a retry after a failover finds its own message.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MessageId(Uuid);

impl MessageId {
    /// Makes the id of a message that has no idempotency key.
    pub fn now() -> Self {
        Self(Uuid::now_v7())
    }

    /// Derives the id from an idempotency key; `scope` is the user or the API key.
    pub fn of_key(scope: &str, channel: &ChannelName, key: &str) -> Self {
        // Length prefixes keep ("a", "bc") and ("ab", "c") apart.
        let name = format!(
            "{}:{scope}{}:{channel}{key}",
            scope.len(),
            channel.as_str().len()
        );
        Self(Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()))
    }

    /// Reads an id from its text.
    pub fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().map(Self)
    }

    /// Returns the id as a UUID.
    pub fn as_uuid(&self) -> &Uuid {
        &self.0
    }
}

impl From<Uuid> for MessageId {
    fn from(id: Uuid) -> Self {
        Self(id)
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One medium for good: UUID v7, or UUID v5 of (user, key) with an idempotency key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MediaId(Uuid);

impl MediaId {
    /// Makes the id of a medium that has no idempotency key.
    pub fn now() -> Self {
        Self(Uuid::now_v7())
    }

    /// Derives the id from a user's idempotency key.
    pub fn of_key(user: &str, key: &str) -> Self {
        // The length keeps ("a", "bc") and ("ab", "c") apart.
        let name = format!("media:{}:{user}{key}", user.len());
        Self(Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()))
    }

    /// Reads an id from its text.
    pub fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().map(Self)
    }
}

impl fmt::Display for MediaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for MediaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The checked name of a channel: 1 to 255 bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ChannelName(Arc<str>);

impl ChannelName {
    /// Checks a name that a peer sent.
    ///
    /// # Errors
    /// [`InvalidChannelName`] when the name is empty, too long, or holds a control character.
    pub fn new(name: &str) -> Result<Self, InvalidChannelName> {
        let is_valid = !name.is_empty()
            && name.len() <= CHANNEL_NAME_BYTES_MAX
            && !name.chars().any(char::is_control);
        if is_valid {
            Ok(Self(name.into()))
        } else {
            Err(InvalidChannelName)
        }
    }

    /// Returns the name's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the name of its namespace: what is before the `:`, without a private channel's `$`.
    pub fn namespace(&self) -> Option<&str> {
        let name = self.0.strip_prefix('$').unwrap_or(&self.0);
        name.split_once(':').map(|(namespace, _)| namespace)
    }
}

impl<'de> Deserialize<'de> for ChannelName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::new(&name).map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// A name that cannot be a channel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a channel name has 1 to {CHANNEL_NAME_BYTES_MAX} bytes and no control characters")]
pub struct InvalidChannelName;

/// A place in a channel's stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamPosition {
    /// Number of the last publication seen; 0 before the first.
    pub offset: u64,
    /// The stream's identity.
    pub epoch: Epoch,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_ids_keep_scope_channel_and_key_apart() {
        let channel = |name| ChannelName::new(name).unwrap();
        let first = MessageId::of_key("a", &channel("bc"), "d");
        assert_eq!(first, MessageId::of_key("a", &channel("bc"), "d"));
        assert_ne!(first, MessageId::of_key("ab", &channel("c"), "d"));
        assert_ne!(first, MessageId::of_key("a", &channel("b"), "cd"));
    }

    #[test]
    fn channel_names_have_limits() {
        assert!(ChannelName::new("").is_err());
        assert!(ChannelName::new(&"x".repeat(256)).is_err());
        assert!(ChannelName::new("a\nb").is_err());
        assert!(ChannelName::new("chat:42").is_ok());
    }
}
