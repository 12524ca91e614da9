//! Many lean clients: each connects, subscribes, and then only reads.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use crate::client::{
    Closed, Connection, Endpoint, OpenOptions, SubscribeRequest, TokenSigner, WireRequest,
    parse_reply,
};

/// Connections from one local address: below the 28,000 ports that Linux hands out.
const CONNECTIONS_PER_ADDRESS: usize = 20_000;
/// How long a connection may take to open and subscribe.
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);
/// Validity of the clients' tokens: longer than any measurement.
const TOKEN_TTL: Duration = Duration::from_secs(86_400);

/// Sees every message that reaches a member, and how many frames a read brought.
pub(crate) trait Watch: Send + Sync + 'static {
    fn message(&self, message: &[u8]);
    fn frames(&self, count: usize);
}

/// For clients that are only there.
pub(crate) struct Idle;

impl Watch for Idle {
    fn message(&self, _message: &[u8]) {}
    fn frames(&self, _count: usize) {}
}

/// How a crowd is made.
pub(crate) struct CrowdOptions {
    pub(crate) endpoint: Endpoint,
    pub(crate) signer: TokenSigner,
    pub(crate) size: usize,
    /// Members that connect at a time.
    pub(crate) connects_max: usize,
    /// Channels of the member with a number.
    pub(crate) channels: Box<dyn Fn(usize) -> Vec<String> + Send + Sync>,
}

/// Clients that are connected and subscribed.
pub(crate) struct Crowd {
    counts: Arc<CrowdCounts>,
    /// Ends the members when it is let go.
    members: JoinSet<()>,
}

#[derive(Default)]
struct CrowdCounts {
    ready: AtomicUsize,
    lost: AtomicUsize,
    /// Why the first that failed did.
    first_failure: Mutex<Option<String>>,
}

impl Crowd {
    /// Brings a crowd together; fails when not everybody gets in.
    pub(crate) async fn gather<W: Watch>(
        options: CrowdOptions,
        watch: Arc<W>,
    ) -> anyhow::Result<Self> {
        let size = options.size;
        let options = Arc::new(options);
        let door = Arc::new(Semaphore::new(options.connects_max));
        let counts = Arc::new(CrowdCounts::default());
        let mut members = JoinSet::new();
        for number in 0..size {
            let member = attend(
                Arc::clone(&options),
                number,
                Arc::clone(&door),
                Arc::clone(&counts),
                Arc::clone(&watch),
            );
            members.spawn(member);
        }
        let crowd = Self { counts, members };
        while crowd.counts.ready.load(Ordering::Relaxed) < size {
            if let Some(failure) = crowd.counts.first_failure.lock().await.take() {
                anyhow::bail!("a client failed: {failure}");
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(crowd)
    }

    /// Members whose connection ended.
    pub(crate) fn lost(&self) -> usize {
        self.counts.lost.load(Ordering::Relaxed)
    }

    /// Closes everything.
    pub(crate) async fn leave(mut self) {
        self.members.shutdown().await;
    }
}

async fn attend<W: Watch>(
    options: Arc<CrowdOptions>,
    number: usize,
    door: Arc<Semaphore>,
    counts: Arc<CrowdCounts>,
    watch: Arc<W>,
) {
    let ended = match enter(&options, number, &door).await {
        Ok(connection) => {
            counts.ready.fetch_add(1, Ordering::Relaxed);
            drop((options, door));
            listen(connection, &*watch).await.to_string()
        }
        Err(error) => format!("{error:#}"),
    };
    counts.lost.fetch_add(1, Ordering::Relaxed);
    counts.first_failure.lock().await.get_or_insert(ended);
}

async fn enter(
    options: &CrowdOptions,
    number: usize,
    door: &Semaphore,
) -> anyhow::Result<Connection> {
    let _permit = door.acquire().await?;
    let open = OpenOptions {
        token: options.signer.sign(&format!("user-{number}"), TOKEN_TTL)?,
        name: "loadtest",
        timeout: OPEN_TIMEOUT,
        from: local_address(options.size, number),
    };
    let mut connection = Connection::open(&options.endpoint, &open).await?;
    let channels = (options.channels)(number);
    let mut waiting = 0;
    for channel in &channels {
        connection.send(WireRequest::Subscribe(SubscribeRequest::plain(channel)))?;
        waiting += 1;
    }
    let deadline = Instant::now() + OPEN_TIMEOUT;
    while waiting > 0 {
        connection.take_messages(|message| {
            let reply = parse_reply(message)?;
            if let Some(error) = reply.error {
                return Err(Closed::lost(error));
            }
            waiting -= usize::from(reply.subscribe.is_some());
            Ok(())
        })?;
        if waiting > 0 {
            timeout_at(deadline, connection.wait()).await??;
        }
    }
    Ok(connection)
}

async fn listen(mut connection: Connection, watch: &impl Watch) -> Closed {
    loop {
        let taken = connection.take_messages(|message| {
            watch.message(message);
            Ok(())
        });
        match taken {
            Ok(frames) => watch.frames(frames),
            Err(closed) => return closed,
        }
        if let Err(closed) = connection.wait().await {
            return closed;
        }
    }
}

/// One address has not enough ports for more connections than this: further ones of the loopback
/// network help. A small crowd leaves the choice to the system.
fn local_address(size: usize, number: usize) -> Option<IpAddr> {
    if size <= CONNECTIONS_PER_ADDRESS {
        return None;
    }
    let host = u8::try_from(number / CONNECTIONS_PER_ADDRESS).unwrap_or(u8::MAX - 2);
    Some(IpAddr::V4(Ipv4Addr::new(127, 0, 0, host + 1)))
}
