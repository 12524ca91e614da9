//! The names of keys: all of a channel's, and its partition's, in one hash slot.

use shared::ids::ChannelName;
use xxhash_rust::xxh3::xxh3_64;

/// Holds the partition count that all names were made with.
pub(crate) const PARTITIONS: &str = "wyd:partitions";

/// Makes names.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keys {
    partitions: u16,
}

impl Keys {
    pub(crate) fn new(partitions: u16) -> Self {
        assert!(partitions > 0, "a checked configuration has partitions");
        Self { partitions }
    }

    pub(crate) fn partitions(self) -> u16 {
        self.partitions
    }

    pub(crate) fn partition(self, channel: &ChannelName) -> u16 {
        let partition = xxh3_64(channel.as_str().as_bytes()) % u64::from(self.partitions);
        u16::try_from(partition).expect("a remainder is below its divisor")
    }

    pub(crate) fn stream(self, channel: &ChannelName) -> String {
        format!("wyd:{{{}}}:s:{channel}", self.partition(channel))
    }

    pub(crate) fn meta(self, channel: &ChannelName) -> String {
        format!("wyd:{{{}}}:m:{channel}", self.partition(channel))
    }

    pub(crate) fn bell(self, channel: &ChannelName) -> String {
        format!("wyd:{{{}}}:b:{channel}", self.partition(channel))
    }

    pub(crate) fn idempotency(self, channel: &ChannelName, scope: &str, key: &str) -> String {
        let (p, bytes) = (self.partition(channel), channel.as_str().len());
        format!("wyd:{{{p}}}:i:{scope}:{bytes}:{channel}:{key}")
    }

    /// Clients on a channel, by id.
    pub(crate) fn members(self, channel: &ChannelName) -> String {
        format!("wyd:{{{}}}:pr:m:{channel}", self.partition(channel))
    }

    /// How many connections each user has on a channel.
    pub(crate) fn users(self, channel: &ChannelName) -> String {
        format!("wyd:{{{}}}:pr:u:{channel}", self.partition(channel))
    }
}

pub(crate) fn outbox(partition: u16) -> String {
    format!("wyd:{{{partition}}}:outbox")
}

pub(crate) fn lease(partition: u16) -> String {
    format!("wyd:{{{partition}}}:lease")
}

/// The nodes with members in a partition, by the end of their lease.
pub(crate) fn presence_leases(partition: u16) -> String {
    format!("wyd:{{{partition}}}:pr:leases")
}

/// The members that a node owns in a partition.
pub(crate) fn presence_owned(partition: u16, node: &str) -> String {
    format!("wyd:{{{partition}}}:pr:o:{node}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_a_channel_share_a_slot() {
        let keys = Keys::new(256);
        let channel = ChannelName::new("chat:{42}").unwrap();
        let tag = format!("wyd:{{{}}}:", keys.partition(&channel));
        let names = [
            keys.stream(&channel),
            keys.meta(&channel),
            keys.bell(&channel),
            keys.idempotency(&channel, "user:7", "k"),
            keys.members(&channel),
            keys.users(&channel),
            outbox(keys.partition(&channel)),
            lease(keys.partition(&channel)),
        ];
        assert!(names.iter().all(|name| name.starts_with(&tag)), "{names:?}");
    }

    #[test]
    fn idempotency_names_keep_channel_and_key_apart() {
        let keys = Keys::new(1);
        let channel = |name| ChannelName::new(name).unwrap();
        assert_ne!(
            keys.idempotency(&channel("a"), "s", "b:c"),
            keys.idempotency(&channel("a:b"), "s", "c")
        );
    }
}
