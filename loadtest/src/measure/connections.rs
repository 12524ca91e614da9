//! Memory of idle connections: opens them, lets the server settle, divides.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::crowd::{Crowd, CrowdOptions, Idle};
use super::server::Server;
use super::{check_open_files, process};
use crate::client::TokenSigner;

/// Memory counts as settled when it moved by less than this in [`SETTLE_STEP`].
const SETTLED_BYTES: u64 = 256 * 1024;
const SETTLE_STEP: Duration = Duration::from_secs(1);
const SETTLE_TIMEOUT: Duration = Duration::from_secs(15);
/// Members of one channel, when the connections subscribe.
const CHANNEL_MEMBERS: usize = 100;

/// How many connections, and how they are opened.
#[derive(Debug, Clone)]
pub struct ConnectionsOptions {
    /// Connections to open.
    pub connections: usize,
    /// Channels that each subscribes to.
    pub channels: usize,
    /// Connections that open at a time.
    pub connects_max: usize,
    /// How long they are held before the memory is read; longer than the ping interval, it counts
    /// what pings leave behind.
    pub hold: Duration,
}

/// What idle connections cost.
#[derive(Debug, Clone, Serialize)]
pub struct ConnectionsReport {
    /// The machine.
    pub machine: String,
    /// Connections that were open.
    pub connections: usize,
    /// Channels that each was subscribed to.
    pub channels: usize,
    /// How long it took to open them all.
    pub open_seconds: f64,
    /// CPU time of the server for it.
    pub open_cpu_seconds: f64,
    /// Resident memory of the server before the first.
    pub resident_bytes_before: u64,
    /// And with all of them, settled.
    pub resident_bytes_after: u64,
    /// The difference for one.
    pub bytes_per_connection: f64,
    /// Connections that the server closed meanwhile; must be 0.
    pub lost: usize,
}

/// Opens idle connections and reads the server's memory before and after.
///
/// # Errors
/// When a connection cannot be opened, or the server's process cannot be read.
#[allow(
    clippy::cast_precision_loss,
    reason = "counts of bytes and connections are far below 2^52"
)]
pub async fn run(
    server: &Server,
    options: &ConnectionsOptions,
) -> anyhow::Result<ConnectionsReport> {
    check_open_files(options.connections)?;
    let before = settled_bytes(server.pid).await?;
    let cpu_before = process::cpu_time(server.pid)?;
    let start = Instant::now();
    let crowd = Crowd::gather(crowd_options(server, options), Arc::new(Idle)).await?;
    let open_seconds = start.elapsed().as_secs_f64();
    let open_cpu = process::cpu_time(server.pid)? - cpu_before;
    sleep(options.hold).await;
    let after = settled_bytes(server.pid).await?;
    let lost = crowd.lost();
    crowd.leave().await;
    Ok(ConnectionsReport {
        machine: process::machine(),
        connections: options.connections,
        channels: options.channels,
        open_seconds,
        open_cpu_seconds: open_cpu.as_secs_f64(),
        resident_bytes_before: before,
        resident_bytes_after: after,
        bytes_per_connection: (after as f64 - before as f64) / options.connections.max(1) as f64,
        lost,
    })
}

fn crowd_options(server: &Server, options: &ConnectionsOptions) -> CrowdOptions {
    let namespace = server.namespace.clone();
    let channels = options.channels;
    CrowdOptions {
        endpoint: server.endpoint.websocket(),
        signer: TokenSigner::new(&server.secret),
        size: options.connections,
        connects_max: options.connects_max,
        channels: Box::new(move |number| {
            let group = number / CHANNEL_MEMBERS;
            (0..channels)
                .map(|channel| format!("{namespace}:idle-{group}-{channel}"))
                .collect()
        }),
    }
}

/// Reads the resident memory once it moves no more.
async fn settled_bytes(pid: u32) -> anyhow::Result<u64> {
    let deadline = Instant::now() + SETTLE_TIMEOUT;
    let mut last = process::resident_bytes(pid)?;
    loop {
        sleep(SETTLE_STEP).await;
        let now = process::resident_bytes(pid)?;
        if now.abs_diff(last) < SETTLED_BYTES || Instant::now() >= deadline {
            return Ok(now);
        }
        last = now;
    }
}

impl fmt::Display for ConnectionsReport {
    #[allow(
        clippy::cast_precision_loss,
        reason = "counts of bytes are far below 2^52"
    )]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        writeln!(f, "{}", self.machine)?;
        writeln!(
            f,
            "{} connections with {} channels each, opened in {:.1} s ({:.1} s of server CPU), {} lost",
            self.connections, self.channels, self.open_seconds, self.open_cpu_seconds, self.lost
        )?;
        writeln!(
            f,
            "resident memory {:.1} MiB before, {:.1} MiB after",
            mib(self.resident_bytes_before),
            mib(self.resident_bytes_after)
        )?;
        write!(
            f,
            "{:.0} bytes of resident memory per idle connection",
            self.bytes_per_connection
        )
    }
}
