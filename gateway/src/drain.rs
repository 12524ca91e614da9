//! How a node stops without losing anything: no more traffic, then goodbye in an even stream.

use std::sync::Arc;
use std::time::Duration;

use shared::config::DrainConfig;
use tokio::time::Instant;

use crate::hub::{Client, Hub};
use crate::session::send_queue::Signal;

/// Pause between two waves of closes.
const WAVE: Duration = Duration::from_millis(50);

/// Ends every session within `config.duration`, evenly, after it finished what it accepted.
///
/// Returns how many were told. Sessions that open meanwhile are told in a last round.
pub(crate) async fn close_sessions(hub: &Arc<Hub>, config: &DrainConfig) -> usize {
    let clients = hub.clients.all();
    let waves = (config.duration.as_millis() / WAVE.as_millis()).max(1);
    let per_wave = clients
        .len()
        .div_ceil(usize::try_from(waves).unwrap_or(usize::MAX))
        .max(1);
    let mut told = 0;
    for wave in clients.chunks(per_wave) {
        told += tell(wave);
        if told < clients.len() {
            tokio::time::sleep(WAVE).await;
        }
    }
    let late: Vec<Arc<Client>> = hub.clients.all();
    told + tell(&late)
}

/// Waits until no session is left; false when some are left after `timeout`.
pub(crate) async fn wait_until_empty(hub: &Arc<Hub>, timeout: Duration) -> bool {
    let deadline = Instant::now() + timeout;
    while hub.clients.count().0 > 0 {
        if Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(WAVE).await;
    }
    true
}

fn tell(clients: &[Arc<Client>]) -> usize {
    for client in clients {
        client.queue.signal(Signal::Drain);
    }
    clients.len()
}
