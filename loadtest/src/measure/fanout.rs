//! CPU of deliveries: publishes through the server API to channels with many subscribers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::ensure;
use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::crowd::{Crowd, CrowdOptions, Watch};
use super::http::HttpConnection;
use super::server::Server;
use super::{check_open_files, process};
use crate::client::TokenSigner;
use crate::latency::{Latencies, LatencySummary};

/// How long the last deliveries of a window may take.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// One message of so many has its latency taken: reading the time out of all would cost the
/// server its CPU on the same machine.
const LATENCY_SAMPLE: usize = 16;
/// Time before the window, for allocator and caches.
const WARM_UP: Duration = Duration::from_secs(2);

/// How many connections, and what is published to them.
#[derive(Debug, Clone)]
pub struct FanoutOptions {
    /// Connections to open.
    pub connections: usize,
    /// Subscribers of one channel.
    pub subscribers: usize,
    /// Publications a second over all channels; 0: each as soon as the one before has arrived
    /// everywhere.
    pub rate: f64,
    /// Bytes of filling in each publication's data.
    pub payload_bytes: usize,
    /// How long is measured.
    pub duration: Duration,
    /// Connections that open at a time.
    pub connects_max: usize,
}

/// What deliveries cost.
#[derive(Debug, Clone, Serialize)]
pub struct FanoutReport {
    /// The machine.
    pub machine: String,
    /// Connections that were open.
    pub connections: usize,
    /// Channels they were spread over.
    pub channels: usize,
    /// Publications in the window.
    pub publications: usize,
    /// Deliveries of them.
    pub deliveries: usize,
    /// Publications that did not reach a subscriber; must be 0.
    pub missing: usize,
    /// Frames that held the deliveries: 1 means that none were merged.
    pub messages_per_frame: f64,
    /// Length of the window.
    pub seconds: f64,
    /// CPU time of the server in it.
    pub server_cpu_seconds: f64,
    /// Deliveries for one second of it.
    pub deliveries_per_cpu_second: f64,
    /// From the call of the API to the client.
    pub latency_ms: LatencySummary,
    /// Connections that the server closed meanwhile; must be 0.
    pub lost: usize,
}

/// Counts deliveries as they arrive.
struct Tally {
    start: Instant,
    messages: AtomicUsize,
    frames: AtomicUsize,
    /// Count of messages that somebody waits for.
    target: AtomicUsize,
    reached: Notify,
    latency: Mutex<Latencies>,
}

impl Tally {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            messages: AtomicUsize::new(0),
            frames: AtomicUsize::new(0),
            target: AtomicUsize::new(usize::MAX),
            reached: Notify::new(),
            latency: Mutex::default(),
        }
    }

    fn messages(&self) -> usize {
        self.messages.load(Ordering::Acquire)
    }

    fn micros(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Waits until so many messages have arrived; false when they do not in time.
    async fn reach(&self, target: usize) -> bool {
        self.target.store(target, Ordering::SeqCst);
        let reached = async {
            while self.messages() < target {
                self.reached.notified().await;
            }
        };
        timeout(DRAIN_TIMEOUT, reached).await.is_ok()
    }
}

impl Watch for Tally {
    fn message(&self, message: &[u8]) {
        if !message.starts_with(b"{\"push\"") {
            return;
        }
        let count = self.messages.fetch_add(1, Ordering::SeqCst) + 1;
        if count.is_multiple_of(LATENCY_SAMPLE)
            && let Some(sent) = sent_micros(message)
        {
            let latency = self.micros().saturating_sub(sent);
            self.latency.lock().record(Duration::from_micros(latency));
        }
        if count >= self.target.load(Ordering::SeqCst) {
            self.reached.notify_one();
        }
    }

    fn frames(&self, count: usize) {
        self.frames.fetch_add(count, Ordering::Relaxed);
    }
}

/// Reads the time of publishing out of a push without parsing it.
fn sent_micros(message: &[u8]) -> Option<u64> {
    const MARK: &[u8] = b"\"sent\":";
    let at = message.windows(MARK.len()).position(|part| part == MARK)?;
    let digits = message.get(at + MARK.len()..)?;
    let end = digits.iter().position(|byte| !byte.is_ascii_digit())?;
    std::str::from_utf8(digits.get(..end)?).ok()?.parse().ok()
}

/// Opens connections, publishes to them, and measures the server's CPU time meanwhile.
///
/// # Errors
/// When a connection cannot be opened, a publish fails, or the server's process cannot be read.
#[allow(
    clippy::cast_precision_loss,
    reason = "counts of deliveries are far below 2^52"
)]
pub async fn run(server: &Server, options: &FanoutOptions) -> anyhow::Result<FanoutReport> {
    ensure!(
        options.subscribers > 0 && options.connections >= options.subscribers,
        "there must be at least as many connections as subscribers of a channel, and one"
    );
    check_open_files(options.connections)?;
    // The last channel takes the rest, so that every connection is in one.
    let channels = options.connections / options.subscribers;
    let tally = Arc::new(Tally::new());
    let crowd = Crowd::gather(crowd_options(server, options, channels), Arc::clone(&tally)).await?;
    let mut publisher = Publisher::new(server, options, channels, Arc::clone(&tally)).await?;

    publisher.publish_for(WARM_UP).await?;
    tally.latency.lock().clear();
    let before = Mark::read(server.pid, &tally, &publisher)?;
    let start = Instant::now();
    publisher.publish_for(options.duration).await?;
    let seconds = start.elapsed().as_secs_f64();
    let after = Mark::read(server.pid, &tally, &publisher)?;

    let deliveries = after.messages - before.messages;
    let expected = after.expected - before.expected;
    let cpu = (after.cpu - before.cpu).as_secs_f64();
    let latency_ms = tally.latency.lock().summary();
    let lost = crowd.lost();
    crowd.leave().await;
    Ok(FanoutReport {
        machine: process::machine(),
        connections: options.connections,
        channels,
        publications: after.publications - before.publications,
        deliveries,
        missing: expected.saturating_sub(deliveries),
        messages_per_frame: deliveries as f64 / (after.frames - before.frames).max(1) as f64,
        seconds,
        server_cpu_seconds: cpu,
        deliveries_per_cpu_second: deliveries as f64 / cpu.max(1e-9),
        latency_ms,
        lost,
    })
}

/// Everything that grows, at one moment.
struct Mark {
    cpu: Duration,
    messages: usize,
    frames: usize,
    publications: usize,
    expected: usize,
}

impl Mark {
    fn read(pid: u32, tally: &Tally, publisher: &Publisher) -> anyhow::Result<Self> {
        Ok(Self {
            cpu: process::cpu_time(pid)?,
            messages: tally.messages(),
            frames: tally.frames.load(Ordering::Acquire),
            publications: publisher.publications,
            expected: publisher.expected,
        })
    }
}

fn channel_of(namespace: &str, number: usize, subscribers: usize, channels: usize) -> String {
    let channel = (number / subscribers).min(channels - 1);
    format!("{namespace}:fanout-{channel}")
}

fn crowd_options(server: &Server, options: &FanoutOptions, channels: usize) -> CrowdOptions {
    let namespace = server.namespace.clone();
    let subscribers = options.subscribers;
    CrowdOptions {
        endpoint: server.endpoint.websocket(),
        signer: TokenSigner::new(&server.secret),
        size: options.connections,
        connects_max: options.connects_max,
        channels: Box::new(move |number| {
            vec![channel_of(&namespace, number, subscribers, channels)]
        }),
    }
}

/// Publishes to the channels in turn.
struct Publisher {
    api: HttpConnection,
    api_key: String,
    namespace: String,
    filling: String,
    rate: f64,
    /// Subscribers of each channel.
    sizes: Vec<usize>,
    tally: Arc<Tally>,
    publications: usize,
    /// Deliveries of all publications so far.
    expected: usize,
}

impl Publisher {
    async fn new(
        server: &Server,
        options: &FanoutOptions,
        channels: usize,
        tally: Arc<Tally>,
    ) -> anyhow::Result<Self> {
        let mut sizes = vec![options.subscribers; channels];
        if let Some(last) = sizes.last_mut() {
            *last += options.connections - channels * options.subscribers;
        }
        Ok(Self {
            api: HttpConnection::open(&server.endpoint).await?,
            api_key: server.api_key.clone(),
            namespace: server.namespace.clone(),
            filling: "x".repeat(options.payload_bytes),
            rate: options.rate,
            sizes,
            tally,
            publications: 0,
            expected: 0,
        })
    }

    /// Publishes for a time, and waits until everything has arrived.
    async fn publish_for(&mut self, duration: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + duration;
        if self.rate > 0.0 {
            let mut ticks = interval(Duration::from_secs_f64(1.0 / self.rate));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while Instant::now() < end {
                ticks.tick().await;
                self.publish().await?;
            }
        } else {
            while Instant::now() < end {
                self.publish().await?;
                if !self.tally.reach(self.expected).await {
                    break;
                }
            }
        }
        if !self.tally.reach(self.expected).await {
            tracing::warn!("not everything arrived in time");
        }
        // Frames are counted after their messages.
        sleep(Duration::from_millis(50)).await;
        Ok(())
    }

    async fn publish(&mut self) -> anyhow::Result<()> {
        let channel = self.publications % self.sizes.len();
        let body = format!(
            "{{\"channel\":\"{}:fanout-{channel}\",\"data\":{{\"sent\":{},\"text\":\"{}\"}}}}",
            self.namespace,
            self.tally.micros(),
            self.filling
        );
        self.api
            .api("publish", &self.api_key, Bytes::from(body))
            .await?;
        self.publications += 1;
        self.expected += self.sizes[channel];
        Ok(())
    }
}

impl fmt::Display for FanoutReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.machine)?;
        writeln!(
            f,
            "{} connections in {} channels, {} lost",
            self.connections, self.channels, self.lost
        )?;
        writeln!(
            f,
            "{} publications, {} deliveries ({} missing) in {:.1} s, {:.2} messages a frame",
            self.publications, self.deliveries, self.missing, self.seconds, self.messages_per_frame
        )?;
        writeln!(f, "latency {}", self.latency_ms)?;
        write!(
            f,
            "{:.0} deliveries per second of server CPU ({:.2} s used)",
            self.deliveries_per_cpu_second, self.server_cpu_seconds
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_publishing_is_found_in_a_push() {
        let push =
            br#"{"push":{"channel":"bench:fanout-0","pub":{"data":{"sent":1234,"text":"x"}}}}"#;
        assert_eq!(sent_micros(push), Some(1234));
        assert_eq!(sent_micros(b"{}"), None);
    }

    #[test]
    fn every_connection_is_in_a_channel() {
        let channels: Vec<String> = (0..25).map(|n| channel_of("b", n, 10, 2)).collect();
        assert_eq!(channels[9], "b:fanout-0");
        assert_eq!(channels[10], "b:fanout-1");
        assert_eq!(channels[24], "b:fanout-1");
    }
}
