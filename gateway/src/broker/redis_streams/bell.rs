//! The connection that hears bells: made again for ever, read as fast as it can be.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{PushInfo, PushKind, Value};
use tokio::sync::{Notify, mpsc};

use super::link::{Backoff, Connector, ping};

/// Bells that may wait for the reader, by number and by bytes. What comes on top is dropped: the
/// reader is told, and finds it in the streams.
const QUEUE: usize = 65_536;
const QUEUE_BYTES: usize = 64 << 20;
/// Time between two pings: a connection that died without a word is noticed after one and its
/// timeout.
const PING_EVERY: Duration = Duration::from_secs(1);

/// One bell that was heard.
pub(super) struct Bell {
    /// Name of the bell: the channel's.
    pub(super) name: Vec<u8>,
    pub(super) item: Bytes,
}

/// What happens to the connection.
pub(super) enum BellEvent {
    /// There is one: everything must be subscribed again.
    Up {
        generation: u64,
        connection: MultiplexedConnection,
    },
    /// It is gone.
    Down,
}

/// Where bells wait for the reader.
pub(super) struct Bells {
    queue: mpsc::Receiver<Bell>,
    shared: Arc<Shared>,
}

struct Shared {
    bytes: AtomicUsize,
    has_dropped: AtomicBool,
}

impl Bells {
    /// Waits for bells and takes what is there, up to `limit`; 0 when the connection's keeper has
    /// ended. Cancel safe.
    pub(super) async fn hear(&mut self, heard: &mut Vec<Bell>, limit: usize) -> usize {
        let count = self.queue.recv_many(heard, limit).await;
        let start = heard.len() - count;
        let bytes: usize = heard[start..].iter().map(|bell| bell.item.len()).sum();
        self.shared.bytes.fetch_sub(bytes, Ordering::Relaxed);
        count
    }

    /// True, once, when bells were dropped because the queue was full.
    pub(super) fn has_dropped(&self) -> bool {
        self.shared.has_dropped.swap(false, Ordering::Relaxed)
    }
}

/// Keeps the connection.
pub(super) struct BellKeeper {
    connector: Connector,
    sender: mpsc::Sender<Bell>,
    shared: Arc<Shared>,
    events: mpsc::Sender<BellEvent>,
    /// Rings when the reader could not use the connection.
    broken: Arc<Notify>,
}

impl BellKeeper {
    pub(super) fn new(
        connector: Connector,
        events: mpsc::Sender<BellEvent>,
        broken: Arc<Notify>,
    ) -> (Self, Bells) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let shared = Arc::new(Shared {
            bytes: AtomicUsize::new(0),
            has_dropped: AtomicBool::new(false),
        });
        let bells = Bells {
            queue,
            shared: Arc::clone(&shared),
        };
        (
            Self {
                connector,
                sender,
                shared,
                events,
                broken,
            },
            bells,
        )
    }

    /// Connects, watches, connects again; ends when the reader has.
    pub(super) async fn run(self) {
        let mut backoff = Backoff::default();
        let mut generation = 0;
        while !self.events.is_closed() {
            let gone = Arc::new(Notify::new());
            let sender = self.push_sender(Arc::clone(&gone));
            let connection = match self.connector.open_with_pushes("bell", sender).await {
                Ok(connection) => connection,
                Err(error) => {
                    backoff.log("bell", &error);
                    backoff.wait().await;
                    continue;
                }
            };
            backoff = Backoff::default();
            generation += 1;
            tracing::debug!(generation, "bell connection made");
            let up = BellEvent::Up {
                generation,
                connection: connection.clone(),
            };
            if self.events.send(up).await.is_err() {
                return;
            }
            self.watch(connection, &gone).await;
            tracing::warn!("bell connection lost");
            if self.events.send(BellEvent::Down).await.is_err() {
                return;
            }
        }
    }

    async fn watch(&self, mut connection: MultiplexedConnection, gone: &Notify) {
        loop {
            tokio::select! {
                () = gone.notified() => return,
                () = self.broken.notified() => return,
                () = tokio::time::sleep(PING_EVERY) => {
                    if ping(&mut connection).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Makes what the driver calls for every push; it must not wait.
    fn push_sender(
        &self,
        gone: Arc<Notify>,
    ) -> impl Fn(PushInfo) -> Result<(), redis::aio::SendError> + Send + Sync + 'static {
        let sender = self.sender.clone();
        let shared = Arc::clone(&self.shared);
        move |push| {
            match push.kind {
                PushKind::SMessage => {
                    if let Some(bell) = bell_of(push.data) {
                        shared.queue(&sender, bell);
                    }
                }
                PushKind::Disconnection => gone.notify_one(),
                _ => {}
            }
            Ok(())
        }
    }
}

impl Shared {
    fn queue(&self, sender: &mpsc::Sender<Bell>, bell: Bell) {
        let bytes = bell.item.len();
        let waiting = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if waiting > QUEUE_BYTES || sender.try_send(bell).is_err() {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.has_dropped.store(true, Ordering::Relaxed);
        }
    }
}

fn bell_of(data: Vec<Value>) -> Option<Bell> {
    let mut data = data.into_iter();
    match (data.next()?, data.next()?) {
        (Value::BulkString(name), Value::BulkString(item)) => Some(Bell {
            name,
            item: item.into(),
        }),
        _ => None,
    }
}
