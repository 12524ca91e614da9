//! Reading a channel's stream: for clients' history and recovery, and for the reader's repairs.

use bytes::Bytes;
use shared::ids::{ChannelName, Epoch, StreamPosition};

use super::keys::Keys;
use super::publish::meta_ttl;
use super::reply::{self, Fields};
use super::scripts::{Call, HISTORY};
use super::wire::Item;
use crate::broker::{BrokerError, HistoryPolicy, HistoryRange};
use redis::Value;

/// A part of a stream, and where the stream is.
pub(super) struct Page {
    pub(super) epoch: Epoch,
    /// The epoch's first publication is one above.
    pub(super) base: u64,
    pub(super) top: u64,
    pub(super) items: Vec<Item>,
}

/// Makes the call that reads a part of a history, and makes an epoch where there is none.
pub(super) fn history_call(
    keys: Keys,
    channel: &ChannelName,
    policy: &HistoryPolicy,
    range: &HistoryRange,
) -> Call {
    let since: Option<&StreamPosition> = range.since.as_ref();
    let text = |number: u64| number.to_string();
    HISTORY
        .call(&[keys.meta(channel), keys.stream(channel)])
        .arg(Epoch::random().as_str())
        .arg(u8::from(policy.durable))
        .arg(policy.size)
        .arg(meta_ttl(policy))
        .arg(since.map_or("", |since| since.epoch.as_str()))
        .arg(since.map(|since| text(since.offset)).unwrap_or_default())
        .arg(
            range
                .limit
                .map(|limit| text(limit.min(policy.size) as u64))
                .unwrap_or_default(),
        )
        .arg(u8::from(range.reverse))
}

impl Page {
    pub(super) fn read(answer: Value) -> Result<Self, BrokerError> {
        let mut fields = Fields::of(answer)?;
        let epoch = Epoch::from(fields.text()?);
        let base = fields.number()?;
        let top = fields.number()?;
        let items = Fields::of(fields.value()?)?
            .rest()
            .map(|value| reply::bytes(value).and_then(|bytes: Bytes| Item::read(bytes)))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            epoch,
            base,
            top,
            items,
        })
    }
}
