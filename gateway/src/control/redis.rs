//! Control over Redis: one capped stream that every node reads, and a registry of nodes.
//!
//! A node reads from where the stream ended when it started. After a broken connection it goes on
//! after the last command it read, so nothing is missed that the stream still holds.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use redis::Value;
use redis::aio::MultiplexedConnection;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Control, ControlCommand, NodeInfo, Obeyer};
use crate::broker::BrokerError;
use crate::broker::redis_streams::link::{Backoff, Connector, Link, command};
use crate::broker::redis_streams::reply::{self, Fields};
use crate::broker::redis_streams::scripts::{HEARTBEAT, NODES};
use crate::broker::redis_streams::wire::Note;

const STREAM: &str = "wyd:control";
/// Commands that the stream keeps: what a node may be behind after a broken connection.
const STREAM_LENGTH: usize = 10_000;
const LIVE: &str = "wyd:{nodes}:live";
const INFO: &str = "wyd:{nodes}:info";
/// How long an entry of the registry lives: three heartbeats of three seconds, and a moment.
const ENTRY_TTL_MS: u64 = 10_000;
/// How long one read waits for a command.
const BLOCK_MS: u64 = 2000;
const BLOCK: Duration = Duration::from_millis(BLOCK_MS);
const BATCH: usize = 128;

/// Tells every node over one stream.
#[derive(Clone)]
pub struct RedisControl {
    link: Link,
}

impl std::fmt::Debug for RedisControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisControl").finish_non_exhaustive()
    }
}

impl RedisControl {
    /// Starts reading: what is sent from now on is obeyed on this node.
    pub(crate) async fn start(
        connector: Connector,
        link: Link,
        obeyer: Obeyer,
        tasks: &TaskTracker,
        cancel: &CancellationToken,
    ) -> Result<Arc<Self>, BrokerError> {
        let last = top(&link).await?;
        let reader = Reader {
            connector,
            link: link.clone(),
            obeyer,
            last,
        };
        let cancel = cancel.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = reader.run() => {}
            }
        });
        Ok(Arc::new(Self { link }))
    }
}

#[async_trait]
impl Control for RedisControl {
    async fn broadcast(&self, content: ControlCommand) -> Result<(), BrokerError> {
        let mut add = command("XADD");
        add.arg(STREAM)
            .arg("MAXLEN")
            .arg("~")
            .arg(STREAM_LENGTH)
            .arg("*");
        add.arg("p").arg(Note::value(&content)?);
        self.link.call(add.into()).await.map(drop)
    }

    async fn heartbeat(&self, info: &NodeInfo) -> Result<(), BrokerError> {
        let call = HEARTBEAT
            .call(&[LIVE.to_owned(), INFO.to_owned()])
            .arg(info.uid.as_str())
            .arg(Note::value(info)?)
            .arg(ENTRY_TTL_MS);
        self.link.call(call).await.map(drop)
    }

    async fn nodes(&self) -> Result<Vec<NodeInfo>, BrokerError> {
        let call = NODES.call(&[LIVE.to_owned(), INFO.to_owned()]);
        let values = Fields::of(self.link.ask(call).await?)?.rest();
        values
            .map(|value| Note::read(reply::bytes(value)?))
            .collect()
    }
}

/// An entry's place in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
struct EntryId {
    ms: u64,
    number: u64,
}

impl EntryId {
    fn parse(text: &str) -> Result<Self, BrokerError> {
        let parts = text.split_once('-').and_then(|(ms, number)| {
            Some(Self {
                ms: ms.parse().ok()?,
                number: number.parse().ok()?,
            })
        });
        parts.ok_or_else(|| BrokerError::Corrupt(format!("entry id {text:?}")))
    }
}

impl std::fmt::Display for EntryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.ms, self.number)
    }
}

/// Returns where the stream ends.
async fn top(link: &Link) -> Result<EntryId, BrokerError> {
    let mut newest = command("XREVRANGE");
    newest.arg(STREAM).arg("+").arg("-").arg("COUNT").arg(1);
    let mut entries = Fields::of(link.call(newest.into()).await?)?;
    if entries.is_empty() {
        return Ok(EntryId::default());
    }
    EntryId::parse(&Fields::of(entries.value()?)?.text()?)
}

struct Reader {
    connector: Connector,
    link: Link,
    obeyer: Obeyer,
    last: EntryId,
}

impl Reader {
    async fn run(mut self) {
        let mut backoff = Backoff::default();
        loop {
            match self.connector.open_blocking("control", BLOCK).await {
                Ok(connection) => {
                    backoff = Backoff::default();
                    if let Err(error) = self.read(connection).await {
                        tracing::warn!(%error, "control stream lost");
                    }
                }
                Err(error) => backoff.log("control", &error),
            }
            backoff.wait().await;
        }
    }

    async fn read(&mut self, mut connection: MultiplexedConnection) -> Result<(), BrokerError> {
        // A stream that ends before what was read is another one (a failover, an empty Redis
        // whose clock is behind): waiting for an id it will not reach would be deafness.
        self.last = self.last.min(top(&self.link).await?);
        loop {
            let mut read = command("XREAD");
            read.arg("COUNT").arg(BATCH).arg("BLOCK").arg(BLOCK_MS);
            read.arg("STREAMS").arg(STREAM).arg(self.last.to_string());
            let answer = connection
                .send_packed_command(&read)
                .await
                .map_err(|error| BrokerError::Unavailable(error.into()))?;
            for entry in entries(crate::broker::redis_streams::link::checked(answer)?)? {
                self.obey(entry)?;
            }
        }
    }

    fn obey(&mut self, entry: Value) -> Result<(), BrokerError> {
        let mut entry = Fields::of(entry)?;
        self.last = EntryId::parse(&entry.text()?)?;
        let mut fields = Fields::of(entry.value()?)?;
        fields.value()?;
        match Note::read::<ControlCommand>(fields.bytes()?) {
            Ok(command) => self.obeyer.obey(command),
            // A command of a later version: nodes of this one cannot carry it out.
            Err(error) => tracing::warn!(%error, "control command cannot be read"),
        }
        Ok(())
    }
}

/// Takes the entries out of the answer of `XREAD`: in RESP3 a map from stream to entries.
fn entries(answer: Value) -> Result<Vec<Value>, BrokerError> {
    match answer {
        Value::Nil => Ok(Vec::new()),
        Value::Map(streams) => match streams.into_iter().next() {
            Some((_, Value::Array(entries))) => Ok(entries),
            _ => Ok(Vec::new()),
        },
        other => Err(reply::unexpected(&other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_ids_are_ordered_as_numbers() {
        let id = |text| EntryId::parse(text).unwrap();
        assert!(id("9-2") < id("10-1"));
        assert!(id("10-2") < id("10-11"));
        assert_eq!(id("10-11").to_string(), "10-11");
        assert!(EntryId::parse("x").is_err());
    }
}
