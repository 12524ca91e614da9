//! The gateway's metrics: names and help texts once, here. Labels are small closed sets.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Upper bounds in seconds, from half a millisecond to ten seconds.
const SECONDS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Label: how bytes move and how they are encoded.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TransportLabel {
    /// `websocket`.
    pub transport: &'static str,
    /// `json`.
    pub protocol: &'static str,
}

/// Label: how something ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResultLabel {
    /// `ok`, or a word for what went wrong.
    pub result: &'static str,
}

/// Label: a public disconnect code.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CodeLabel {
    /// The number.
    pub code: u32,
}

/// Label: a command of the protocol.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CommandLabel {
    /// Its name.
    pub command: &'static str,
}

/// Label: a configured namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct NamespaceLabel {
    /// Its name; empty for channels without one.
    pub namespace: String,
}

/// Label: what a recovery came to, and where its publications came from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RecoveryLabel {
    /// `recovered` or `unrecovered`.
    pub result: &'static str,
    /// `history`.
    pub source: &'static str,
}

type MakeHistogram = fn() -> Histogram;

/// All counters of a gateway.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Open connections.
    pub connections: Family<TransportLabel, Gauge>,
    /// Connects by result.
    pub connects: Family<ResultLabel, Counter>,
    /// Ended connections by code.
    pub disconnects: Family<CodeLabel, Counter>,
    /// Subscriptions on this node.
    pub subscriptions: Gauge,
    /// Channels with a subscriber on this node.
    pub channels: Gauge,
    /// Commands received.
    pub messages_received: Family<CommandLabel, Counter>,
    /// Publications handed to subscribers' send queues.
    pub deliveries: Family<NamespaceLabel, Counter>,
    /// From the broker's time of a publication to its last write attempt on this node.
    pub fanout_seconds: Histogram,
    /// From a publish command to its acknowledgement.
    pub publish_seconds: Family<NamespaceLabel, Histogram, MakeHistogram>,
    /// Bytes that wait to be written, over all clients.
    pub send_queue_bytes: Gauge,
    /// Clients let go because they read too slowly.
    pub slow_consumers: Counter,
    /// Subscriptions told that they missed something.
    pub insufficient_state: Counter,
    /// Recoveries.
    pub recoveries: Family<RecoveryLabel, Counter>,
    /// 1 while the node drains.
    pub draining: Gauge,
}

impl Metrics {
    /// Makes the metrics and registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let histogram: MakeHistogram = || Histogram::new(SECONDS);
        let metrics = Self {
            connections: Family::default(),
            connects: Family::default(),
            disconnects: Family::default(),
            subscriptions: Gauge::default(),
            channels: Gauge::default(),
            messages_received: Family::default(),
            deliveries: Family::default(),
            fanout_seconds: histogram(),
            publish_seconds: Family::new_with_constructor(histogram),
            send_queue_bytes: Gauge::default(),
            slow_consumers: Counter::default(),
            insufficient_state: Counter::default(),
            recoveries: Family::default(),
            draining: Gauge::default(),
        };
        metrics.register(registry);
        metrics
    }

    // The library appends `_total` to the names of counters.
    fn register(&self, r: &mut Registry) {
        let m = self.clone();
        r.register("wyd_connections", "Open connections", m.connections);
        r.register("wyd_connects", "Connects by result", m.connects);
        r.register(
            "wyd_disconnects",
            "Ended connections by code",
            m.disconnects,
        );
        r.register(
            "wyd_subscriptions",
            "Subscriptions on this node",
            m.subscriptions,
        );
        r.register(
            "wyd_channels",
            "Channels with a subscriber on this node",
            m.channels,
        );
        r.register(
            "wyd_messages_received",
            "Commands received",
            m.messages_received,
        );
        r.register(
            "wyd_deliveries",
            "Publications handed to subscribers",
            m.deliveries,
        );
        r.register(
            "wyd_fanout_seconds",
            "From the broker's time of a publication to its write to the subscribers' sockets",
            m.fanout_seconds,
        );
        r.register(
            "wyd_publish_seconds",
            "From a publish to its acknowledgement",
            m.publish_seconds,
        );
        r.register(
            "wyd_send_queue_bytes",
            "Bytes that wait to be written, over all clients",
            m.send_queue_bytes,
        );
        r.register(
            "wyd_slow_consumers",
            "Clients let go as too slow",
            m.slow_consumers,
        );
        r.register(
            "wyd_insufficient_state",
            "Subscriptions told that they missed something",
            m.insufficient_state,
        );
        r.register(
            "wyd_recoveries",
            "Recoveries by result and source",
            m.recoveries,
        );
        r.register("wyd_draining", "1 while the node drains", m.draining);
    }

    /// Counts a command.
    pub fn count_command(&self, command: &'static str) {
        self.messages_received
            .get_or_create(&CommandLabel { command })
            .inc();
    }
}
