//! Step 7 of a message's life: one publication, encoded once, to each subscriber's send queue.
//!
//! A batch is pushed into all queues first and each touched queue is flushed once after: one
//! message a write when it is quiet, many messages a write when it is busy, without a timer.
//! Flushing happens outside the channel's lock, so subscribing never waits for system calls.
//! The step before is the broker's reader, the next is `session/send_queue.rs`.

use std::time::{SystemTime, UNIX_EPOCH};

use shared::ids::ChannelName;

use super::Hub;
use crate::broker::{Deliver, Delivery};

impl Deliver for Hub {
    fn deliver(&self, batch: Vec<(ChannelName, Delivery)>) {
        let mut dirty = Vec::new();
        let mut published_at_ms = Vec::new();
        for (name, delivery) in &batch {
            let Some(channel) = self.find(name) else {
                continue;
            };
            match delivery {
                Delivery::Publication { publication, epoch } => {
                    channel.publication(publication, epoch.as_ref(), &mut dirty);
                    published_at_ms.push(publication.published_at_ms);
                }
                Delivery::Signal(signal) => channel.signal(signal, &mut dirty),
                Delivery::Lost => {
                    self.metrics.insufficient_state.inc_by(channel.lost());
                }
            }
        }
        for client in dirty {
            client.queue.flush();
        }
        self.observe(&published_at_ms);
    }
}

impl Hub {
    fn observe(&self, published_at_ms: &[u64]) {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        for at in published_at_ms {
            // Two clocks are compared: a negative difference is their skew, not a duration.
            let age = now.saturating_sub(std::time::Duration::from_millis(*at));
            self.metrics.fanout_seconds.observe(age.as_secs_f64());
        }
    }
}
