//! How a node stops without losing anything: no more traffic, then goodbye in an even stream.

use std::time::Duration;

use shared::config::DrainConfig;
use tokio_util::task::TaskTracker;

use crate::hub::{Client, Hub};
use crate::session::send_queue::Signal;

/// Pause between two waves of closes.
const WAVE: Duration = Duration::from_millis(50);

/// Ends every session within `config.duration`, evenly, after it finished what it accepted.
///
/// Returns how many were told. Sessions that open meanwhile are told as they come.
pub(crate) async fn close_sessions(hub: &Hub, config: &DrainConfig) -> usize {
    let clients = hub.clients.begin_drain();
    let waves = (config.duration.as_millis() / WAVE.as_millis()).max(1);
    let per_wave = clients
        .len()
        .div_ceil(usize::try_from(waves).unwrap_or(usize::MAX))
        .max(1);
    let mut told = 0;
    for wave in clients.chunks(per_wave) {
        for client in wave {
            told += 1;
            tell(client);
        }
        if told < clients.len() {
            tokio::time::sleep(WAVE).await;
        }
    }
    told
}

fn tell(client: &Client) {
    client.queue.signal(Signal::Drain);
}

/// Waits until every connection has ended, its goodbye included; false when some are left after
/// `timeout`.
pub(crate) async fn wait_until_ended(connections: &TaskTracker, timeout: Duration) -> bool {
    connections.close();
    tokio::time::timeout(timeout, connections.wait())
        .await
        .is_ok()
}
