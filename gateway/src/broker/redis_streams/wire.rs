//! What is stored in Redis and rung with bells: a version byte, then Protobuf; `docs/wire.md`
//! describes it. Unknown fields are skipped, so that a node reads what the next version writes.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use shared::ids::{ChannelName, ClientId, Epoch, MessageId, StreamPosition, UserId};
use shared::protocol::{ClientInfo, Publication};
use uuid::Uuid;

use crate::broker::{BrokerError, Delivery, NewPublication, OutboxEntry, Signal};

/// Version of everything below; every value begins with it.
pub(crate) const VERSION: u8 = 1;

const KIND_PUBLICATION: u32 = 0;
const KIND_JOIN: u32 = 1;
const KIND_LEAVE: u32 = 2;

/// One thing that happened in a channel: an entry of streams and outboxes, a bell.
///
/// The script writes fields 1 to 3 in front of what the gateway encoded.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Item {
    #[prost(fixed64, tag = "1")]
    pub(crate) offset: u64,
    /// Unix milliseconds.
    #[prost(fixed64, tag = "2")]
    pub(crate) published_at_ms: u64,
    /// Empty in channels without history.
    #[prost(string, tag = "3")]
    pub(crate) epoch: String,
    #[prost(bytes = "bytes", tag = "4")]
    pub(super) data: Bytes,
    #[prost(message, optional, tag = "5")]
    pub(super) info: Option<Member>,
    #[prost(btree_map = "string, string", tag = "6")]
    pub(super) tags: BTreeMap<String, String>,
    /// The message id: 16 bytes.
    #[prost(bytes = "bytes", tag = "7")]
    pub(super) id: Bytes,
    /// 0 publication, 1 join, 2 leave.
    #[prost(uint32, tag = "8")]
    pub(super) kind: u32,
}

/// A client, inside items and as a value of presence.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Member {
    /// First, so that a script finds it.
    #[prost(string, tag = "1")]
    user: String,
    /// The connection's id: 16 bytes.
    #[prost(bytes = "bytes", tag = "2")]
    client: Bytes,
    #[prost(bytes = "bytes", optional, tag = "3")]
    conn_info: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "4")]
    chan_info: Option<Bytes>,
}

/// What an idempotency key came to. The script writes fields 1, 2, 5 and 6.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct KnownResult {
    #[prost(string, tag = "1")]
    pub(crate) outbox_id: String,
    #[prost(string, tag = "2")]
    pub(crate) epoch: String,
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) payload: Bytes,
    #[prost(bytes = "bytes", tag = "4")]
    id: Bytes,
    #[prost(fixed64, tag = "5")]
    pub(crate) offset: u64,
    #[prost(fixed64, tag = "6")]
    pub(crate) published_at_ms: u64,
}

impl Item {
    /// Writes what the gateway knows of a publication: no version, no fields 1 to 3.
    pub(crate) fn tail(publication: &NewPublication) -> Vec<u8> {
        let item = Self {
            data: publication.data.clone(),
            info: publication.info.as_deref().map(Member::from),
            tags: publication.tags.clone(),
            id: Bytes::copy_from_slice(publication.id.as_uuid().as_bytes()),
            ..Self::default()
        };
        item.encode_to_vec()
    }

    /// Writes a join or a leave.
    pub(crate) fn signal(signal: &Signal) -> Vec<u8> {
        let (kind, info) = match signal {
            Signal::Join(info) => (KIND_JOIN, info),
            Signal::Leave(info) => (KIND_LEAVE, info),
        };
        let info = Some(Member::from(&**info));
        versioned(&Self {
            kind,
            info,
            ..Self::default()
        })
    }

    pub(crate) fn read(value: Bytes) -> Result<Self, BrokerError> {
        read(value)
    }

    /// Returns the item as subscribers' nodes deliver it; `None` for a kind of a later version.
    pub(crate) fn into_delivery(self) -> Result<Option<Delivery>, BrokerError> {
        let signal = match self.kind {
            KIND_PUBLICATION => {
                let epoch = (!self.epoch.is_empty()).then(|| Epoch::from(self.epoch.as_str()));
                let publication = Arc::new(self.into_publication()?);
                return Ok(Some(Delivery::Publication { publication, epoch }));
            }
            KIND_JOIN => Signal::Join,
            KIND_LEAVE => Signal::Leave,
            _ => return Ok(None),
        };
        let member = self
            .info
            .ok_or_else(|| corrupt("a signal without a client"))?;
        Ok(Some(Delivery::Signal(signal(Arc::new(member.try_into()?)))))
    }

    pub(crate) fn into_publication(self) -> Result<Publication, BrokerError> {
        let info = self.info.map(ClientInfo::try_from).transpose()?;
        Ok(Publication {
            offset: self.offset,
            data: self.data,
            info: info.map(Arc::new),
            tags: self.tags,
            id: message_id(&self.id)?,
            published_at_ms: self.published_at_ms,
        })
    }

    pub(crate) fn into_outbox_entry(
        self,
        entry_id: String,
        partition: u16,
        channel: ChannelName,
    ) -> Result<OutboxEntry, BrokerError> {
        let epoch = Epoch::from(self.epoch.as_str());
        let publication = Arc::new(self.into_publication()?);
        Ok(OutboxEntry {
            entry_id,
            partition,
            epoch,
            channel,
            publication,
        })
    }
}

impl KnownResult {
    /// Writes what the gateway knows of a result: no version, no fields of the script.
    pub(crate) fn tail(payload: [u8; 16], id: MessageId) -> Vec<u8> {
        let result = Self {
            payload: Bytes::copy_from_slice(&payload),
            id: Bytes::copy_from_slice(id.as_uuid().as_bytes()),
            ..Self::default()
        };
        result.encode_to_vec()
    }

    pub(crate) fn read(value: Bytes) -> Result<Self, BrokerError> {
        read(value)
    }

    pub(crate) fn id(&self) -> Result<MessageId, BrokerError> {
        message_id(&self.id)?.ok_or_else(|| corrupt("a result without a message id"))
    }

    pub(crate) fn position(&self) -> Option<StreamPosition> {
        let epoch = Epoch::from(self.epoch.as_str());
        (!self.epoch.is_empty()).then_some(StreamPosition {
            offset: self.offset,
            epoch,
        })
    }
}

impl Member {
    pub(crate) fn value(info: &ClientInfo) -> Vec<u8> {
        versioned(&Self::from(info))
    }

    pub(crate) fn read(value: Bytes) -> Result<ClientInfo, BrokerError> {
        read::<Self>(value)?.try_into()
    }
}

impl From<&ClientInfo> for Member {
    fn from(info: &ClientInfo) -> Self {
        Self {
            user: info.user.as_str().to_owned(),
            client: Bytes::copy_from_slice(info.client.as_uuid().as_bytes()),
            conn_info: info.conn_info.clone(),
            chan_info: info.chan_info.clone(),
        }
    }
}

impl TryFrom<Member> for ClientInfo {
    type Error = BrokerError;

    fn try_from(member: Member) -> Result<Self, BrokerError> {
        let client = Uuid::from_slice(&member.client).map_err(|_| corrupt("a client id"))?;
        Ok(Self {
            user: UserId::from(member.user),
            client: ClientId::from_u128(client.as_u128()),
            conn_info: member.conn_info,
            chan_info: member.chan_info,
        })
    }
}

fn message_id(bytes: &[u8]) -> Result<Option<MessageId>, BrokerError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let id = Uuid::from_slice(bytes).map_err(|_| corrupt("a message id"))?;
    Ok(Some(MessageId::from(id)))
}

fn versioned(message: &impl Message) -> Vec<u8> {
    let mut value = Vec::with_capacity(1 + message.encoded_len());
    value.push(VERSION);
    message.encode_raw(&mut value);
    value
}

fn read<M: Message + Default>(mut value: Bytes) -> Result<M, BrokerError> {
    if value.is_empty() {
        return Err(corrupt("an empty value"));
    }
    let version = value.split_to(1)[0];
    if version != VERSION {
        return Err(BrokerError::Corrupt(format!(
            "a value of version {version}"
        )));
    }
    M::decode(value).map_err(|error| BrokerError::Corrupt(error.to_string()))
}

fn corrupt(what: &str) -> BrokerError {
    BrokerError::Corrupt(what.to_owned())
}

/// What nodes tell each other beside the channels: JSON of `ControlCommand` or `NodeInfo`, whose
/// types the server API shares.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Note {
    #[prost(string, tag = "1")]
    pub(crate) json: String,
}

impl Note {
    pub(crate) fn value(content: &impl serde::Serialize) -> Result<Vec<u8>, BrokerError> {
        let json = serde_json::to_string(content)
            .map_err(|error| BrokerError::Corrupt(error.to_string()))?;
        Ok(versioned(&Self { json }))
    }

    pub(crate) fn read<T: serde::de::DeserializeOwned>(value: Bytes) -> Result<T, BrokerError> {
        let note: Self = read(value)?;
        serde_json::from_str(&note.json).map_err(|error| BrokerError::Corrupt(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn info() -> ClientInfo {
        ClientInfo {
            user: "ann".into(),
            client: ClientId::random(),
            conn_info: Some(Bytes::from_static(b"{\"a\":1}")),
            chan_info: None,
        }
    }

    fn new_publication() -> NewPublication {
        NewPublication {
            channel: ChannelName::new("c").unwrap(),
            data: Bytes::from_static("\"gr\u{fc}n\"".as_bytes()),
            info: Some(Arc::new(info())),
            tags: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
            id: MessageId::now(),
            history: None,
            durable: false,
            idempotency: None,
        }
    }

    #[test]
    fn an_item_put_together_as_the_script_does_is_read_back() {
        let new = new_publication();
        let mut value = vec![VERSION, 9];
        value.extend(7u64.to_le_bytes());
        value.push(17);
        value.extend(1_700_000_000_123u64.to_le_bytes());
        value.extend([26, 8]);
        value.extend(b"abcdefgh");
        value.extend(Item::tail(&new));
        let item = Item::read(value.into()).unwrap();
        assert_eq!(item.epoch, "abcdefgh");
        let publication = item.into_publication().unwrap();
        assert_eq!(publication.offset, 7);
        assert_eq!(publication.published_at_ms, 1_700_000_000_123);
        assert_eq!(publication.data, new.data);
        assert_eq!(publication.info, new.info);
        assert_eq!(publication.tags, new.tags);
        assert_eq!(publication.id, Some(new.id));
    }

    #[test]
    fn signals_are_read_back() {
        let info = Arc::new(info());
        let value = Item::signal(&Signal::Leave(Arc::clone(&info)));
        let delivery = Item::read(value.into()).unwrap().into_delivery().unwrap();
        let Some(Delivery::Signal(Signal::Leave(read))) = delivery else {
            panic!("{delivery:?}");
        };
        assert_eq!(read, info);
    }

    #[test]
    fn a_later_version_is_an_error_and_an_unknown_field_is_none() {
        assert!(matches!(
            Item::read(vec![2, 0].into()),
            Err(BrokerError::Corrupt(_))
        ));
        assert!(Item::read(Bytes::new()).is_err());
        let mut value = Item::signal(&Signal::Join(Arc::new(info())));
        value.extend([0xfa, 0x01, 0x01, b'x']);
        assert!(
            Item::read(value.into())
                .unwrap()
                .into_delivery()
                .unwrap()
                .is_some()
        );
    }
}
