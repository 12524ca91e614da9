//! What a replay came to, for people and for programs.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::Stage;
use super::ledger::Counts;
use crate::latency::{Latencies, LatencySummary};

/// The result of a replay.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What was replayed.
    pub conversation: String,
    /// Messages in it.
    pub messages: usize,
    /// Clients, one a person.
    pub clients: usize,
    /// Rooms, one a channel.
    pub rooms: usize,
    /// Gateways that the clients were spread over.
    pub gateways: usize,
    /// Gateways that were asked for the archive; 0: it was not checked.
    pub archives_read: usize,
    /// From the first message to the last acknowledgement.
    pub seconds: f64,
    /// Everything that was counted.
    #[serde(flatten)]
    pub counts: Counts,
    /// Deliveries of a run in which nothing is lost.
    pub deliveries_expected: usize,
    /// Connections that were opened after a loss.
    pub reconnects: usize,
    /// Messages that were sent again with the same key.
    pub retries: usize,
    /// From the first sending to each live delivery.
    pub latency_ms: LatencySummary,
    /// Examples of what is wrong.
    pub findings: Vec<String>,
}

impl Report {
    pub(crate) fn new(stage: Stage, said_in: Duration, archives_read: usize) -> Self {
        let mut counts = Counts::default();
        let mut latency = Latencies::default();
        let mut findings = Vec::new();
        for room in stage.rooms {
            let (room_counts, room_latency, room_findings) = room.into_inner().finish();
            counts.add(&room_counts);
            latency.merge(&room_latency);
            findings.extend(room_findings);
        }
        Self {
            conversation: stage.conversation.origin.to_string(),
            messages: stage.conversation.lines.len(),
            clients: stage.conversation.people.len(),
            rooms: stage.conversation.rooms.len(),
            gateways: stage.options.endpoints.len(),
            archives_read,
            seconds: said_in.as_secs_f64(),
            counts,
            deliveries_expected: stage.conversation.deliveries(),
            reconnects: stage.progress.reconnects(),
            retries: stage.progress.retries(),
            latency_ms: latency.summary(),
            findings,
        }
    }

    /// True when nothing was lost, doubled, out of order or untrue.
    pub fn is_clean(&self) -> bool {
        self.counts.is_clean()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &self.counts;
        writeln!(f, "{}", self.conversation)?;
        writeln!(
            f,
            "{} messages of {} clients in {} rooms over {} gateways in {:.1} s",
            self.messages, self.clients, self.rooms, self.gateways, self.seconds
        )?;
        writeln!(
            f,
            "deliveries {} of {} ({} by recovery), {:.0} a second",
            counts.deliveries,
            self.deliveries_expected,
            counts.recovered_deliveries,
            rate(counts.deliveries, self.seconds)
        )?;
        writeln!(f, "latency {}", self.latency_ms)?;
        writeln!(
            f,
            "reconnects {}, retries {}, archives read {}",
            self.reconnects, self.retries, self.archives_read
        )?;
        for (name, count) in [
            ("lost", counts.lost),
            ("lost in the archive", counts.lost_archived),
            ("duplicates", counts.duplicates),
            ("duplicates in the archive", counts.duplicates_archived),
            ("order differences", counts.order_differences),
            ("gaps", counts.gaps),
            ("false recovered", counts.false_recovered),
            ("phantoms", counts.phantoms),
            ("refused", counts.refused),
            ("unacknowledged", counts.unacknowledged),
        ] {
            writeln!(f, "{name:>26} {count}")?;
        }
        if counts.unrecovered > 0 {
            writeln!(
                f,
                "warning: {} times told recovered: false, {} messages left to the archive",
                counts.unrecovered, counts.unrecovered_messages
            )?;
        }
        for finding in &self.findings {
            writeln!(f, "  {finding}")?;
        }
        write!(
            f,
            "{}",
            if self.is_clean() {
                "clean"
            } else {
                "NOT CLEAN"
            }
        )
    }
}

#[allow(
    clippy::cast_precision_loss,
    reason = "a rate for people, from counts far below 2^52"
)]
fn rate(count: usize, seconds: f64) -> f64 {
    count as f64 / seconds.max(1e-9)
}
