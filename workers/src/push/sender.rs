//! Sends pushes: from one push a user to each of the user's devices, each once.
//!
//! What was decided when the push was asked for is looked at again: it may have waited. A ledger
//! row is claimed before a device is sent to and settled at once after it; a worker that dies
//! between the two leaves a claim that is sent again, in the same place on the screen.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, stream};
use shared::events::PushEvent;
use shared::ids::ChannelName;
use store::job_log::{ReceivedJob, push_event};
use store::records::{LedgerEntry, LedgerState, Records};

use super::badge::Badges;
use super::metrics::PushMetrics;
use super::online::Online;
use super::provider::{Notification, Push, PushProvider, SendError};
use super::{now_ms, temporary};
use crate::consumer::{BatchOutcome, Handler, Later, Retry};

/// Collapse keys that FCM keeps for a device at once.
const COLLAPSE_KEYS_MAX: usize = 4;
/// Outcomes noted in one statement at most; those that are there at once, without waiting.
const SETTLED_MAX: usize = 128;
/// How often noting them is tried again, and the pause between.
const SETTLE_TRIES: u32 = 20;
const SETTLE_PAUSE: Duration = Duration::from_millis(250);

/// Sends what was asked for.
pub(crate) struct Sender {
    pub(crate) records: Records,
    pub(crate) online: Arc<dyn Online>,
    pub(crate) provider: Arc<dyn PushProvider>,
    pub(crate) badges: Badges,
    pub(crate) metrics: PushMetrics,
    pub(crate) in_flight_max: usize,
    /// How long a push may wait at the provider, and with it its collapse key.
    pub(crate) ttl: Duration,
}

/// One push to one device.
struct Delivery {
    /// The job's place in the batch.
    place: usize,
    entry: LedgerEntry,
    push: Push,
}

#[async_trait]
impl Handler for Sender {
    fn role(&self) -> &'static str {
        "push"
    }

    async fn handle(
        &self,
        batch: &[ReceivedJob],
        _next: &BTreeMap<i32, i64>,
    ) -> Result<BatchOutcome, Retry> {
        let mut outcome = BatchOutcome::default();
        let mut events = Vec::new();
        for (place, job) in batch.iter().enumerate() {
            match push_event(job) {
                Ok(event) => {
                    outcome.event_times_ms.push(event.requested_at_ms);
                    events.push((place, event));
                }
                Err(error) => outcome.poison.push((place, error)),
            }
        }
        let asked = events.len();
        let wanted = self.still_wanted(events).await?;
        let mut deliveries = self.claimed(self.deliveries(wanted).await?).await?;
        self.badges.fill(&mut deliveries).await;
        let sent = self.send_all(deliveries, &mut outcome).await?;
        outcome.done = sent.len();
        outcome.already_done = asked.saturating_sub(sent.len() + outcome.later.len());
        Ok(outcome)
    }
}

impl Badges {
    /// Puts the badge on each push.
    async fn fill(&self, deliveries: &mut [Delivery]) {
        let users: HashSet<&String> = deliveries.iter().map(|d| &d.entry.user).collect();
        let users: Vec<String> = users.into_iter().cloned().collect();
        let badges = self.of(&users).await;
        for delivery in deliveries {
            delivery.push.badge = badges.get(&delivery.entry.user).copied();
        }
    }
}

impl Sender {
    /// Leaves out who has seen it meanwhile, or must not get it any more.
    async fn still_wanted(
        &self,
        events: Vec<(usize, PushEvent)>,
    ) -> Result<Vec<(usize, PushEvent)>, Retry> {
        let mut pairs = HashSet::new();
        let mut users_of: BTreeMap<ChannelName, Vec<String>> = BTreeMap::new();
        for (_, event) in &events {
            let Some(about) = &event.about else { continue };
            if pairs.insert((event.user.clone(), about.channel.clone())) {
                let users = users_of.entry(about.channel.clone()).or_default();
                users.push(event.user.clone());
            }
        }
        let pairs: Vec<_> = pairs.into_iter().collect();
        let standings = self.records.push_standings(&pairs).await;
        let standings = standings.map_err(|error| temporary(&error))?;
        let mut online = HashMap::new();
        for (channel, users) in users_of {
            let there = self.online.online(&channel, &users).await.map_err(Retry)?;
            online.insert(channel, there);
        }
        let now_ms = now_ms();
        let unwanted = |event: &PushEvent| -> Option<&'static str> {
            if event.expires_at_ms <= now_ms {
                return Some("expired");
            }
            let about = event.about.as_ref()?;
            let pair = (event.user.clone(), about.channel.clone());
            let Some(standing) = standings.get(&pair) else {
                return Some("left");
            };
            let there = online.get(&about.channel);
            if standing.muted_until_ms > now_ms {
                Some("muted")
            } else if standing.read_offset >= about.offset {
                Some("read")
            } else if there.is_some_and(|there| there.contains(&event.user)) {
                Some("online")
            } else {
                None
            }
        };
        let mut wanted = Vec::with_capacity(events.len());
        for (place, event) in events {
            match unwanted(&event) {
                Some(result) => self.metrics.count(result),
                None => wanted.push((place, event)),
            }
        }
        Ok(wanted)
    }

    /// Makes a push for each device.
    async fn deliveries(&self, wanted: Vec<(usize, PushEvent)>) -> Result<Vec<Delivery>, Retry> {
        let users: HashSet<String> = wanted.iter().map(|(_, event)| event.user.clone()).collect();
        let users: Vec<String> = users.into_iter().collect();
        let tokens = self.records.push_tokens(&users).await;
        let tokens = tokens.map_err(|error| temporary(&error))?;
        let all: Vec<String> = tokens.values().flatten().cloned().collect();
        let now_ms = now_ms();
        let since_ms = now_ms.saturating_sub(u64::try_from(self.ttl.as_millis()).unwrap_or(0));
        let keys = self.records.collapse_keys(&all, since_ms).await;
        let mut keys = keys.map_err(|error| temporary(&error))?;
        let mut deliveries = Vec::with_capacity(all.len());
        for (place, event) in wanted {
            let Some(tokens) = tokens.get(&event.user) else {
                self.metrics.count("no_device");
                continue;
            };
            for token in tokens {
                let used = keys.entry(token.clone()).or_default();
                let is_collapsible = may_collapse(used, &event.collapse_key);
                deliveries.push(delivery(place, &event, token, is_collapsible, now_ms));
            }
        }
        Ok(deliveries)
    }

    /// Claims the ledger's rows; leaves out what was sent before.
    async fn claimed(&self, mut deliveries: Vec<Delivery>) -> Result<Vec<Delivery>, Retry> {
        // A job may be in a batch twice; a statement must not touch a row twice.
        let mut seen = HashSet::new();
        deliveries.retain(|delivery| seen.insert(key(&delivery.entry)));
        let entries: Vec<LedgerEntry> = deliveries.iter().map(|d| d.entry.clone()).collect();
        let claimed = self.records.claim_pushes(&entries, now_ms()).await;
        let claimed = claimed.map_err(|error| temporary(&error))?;
        deliveries.retain(|delivery| {
            let is_claimed = claimed.contains(&key(&delivery.entry));
            if !is_claimed {
                self.metrics.count("sent_before");
            }
            is_claimed
        });
        Ok(deliveries)
    }

    /// Sends; notes each outcome as soon as it is there. Returns the jobs that had an effect.
    async fn send_all(
        &self,
        deliveries: Vec<Delivery>,
        outcome: &mut BatchOutcome,
    ) -> Result<HashSet<usize>, Retry> {
        let sends = deliveries.into_iter().map(|delivery| async move {
            let result = self.provider.send(&delivery.push).await;
            (delivery, result)
        });
        // No more than are under way: an answer that is there at once lets the next push begin, and
        // a chunk without this bound would hold all of them unnoted.
        let mut results = stream::iter(sends)
            .buffer_unordered(self.in_flight_max)
            .ready_chunks(SETTLED_MAX.min(self.in_flight_max));
        let mut sent = HashSet::new();
        let mut later: BTreeMap<usize, Later> = BTreeMap::new();
        let mut failed = None;
        while let Some(ended) = results.next().await {
            let mut settled = Vec::with_capacity(ended.len());
            for (delivery, result) in ended {
                let state = self.judge(&delivery, result, &mut later);
                if state == Some(LedgerState::Sent) {
                    sent.insert(delivery.place);
                }
                settled.extend(state.map(|state| (delivery.entry, state)));
            }
            // The rest goes on: a call that is given up half way may have been carried out.
            failed = self.settle(&settled).await.err().or(failed);
        }
        if let Some(error) = failed {
            return Err(error);
        }
        sent.retain(|place| !later.contains_key(place));
        outcome.later.extend(later);
        Ok(sent)
    }

    /// Notes outcomes, and tries for a while to: what is not noted will be sent again.
    async fn settle(&self, settled: &[(LedgerEntry, LedgerState)]) -> Result<(), Retry> {
        let mut tries = 0;
        loop {
            let noted = self.records.settle_pushes(settled, now_ms()).await;
            match noted {
                Ok(()) => return Ok(()),
                Err(error) if tries == SETTLE_TRIES => return Err(temporary(&error)),
                Err(_) => tries += 1,
            }
            tokio::time::sleep(SETTLE_PAUSE).await;
        }
    }

    /// Returns what is noted of a push; `None` when it is to be tried again.
    fn judge(
        &self,
        delivery: &Delivery,
        result: Result<(), SendError>,
        later: &mut BTreeMap<usize, Later>,
    ) -> Option<LedgerState> {
        let error = match result {
            Ok(()) => {
                self.metrics.count("sent");
                return Some(LedgerState::Sent);
            }
            Err(error) => error,
        };
        self.metrics.count(error.result());
        match error {
            SendError::TokenGone => Some(LedgerState::TokenGone),
            SendError::Refused(error) => {
                tracing::warn!(push = %delivery.entry.message_id, error, "push is dropped");
                Some(LedgerState::Dropped)
            }
            SendError::Later { error, after } => {
                let after = Some(after);
                let known = later.entry(delivery.place);
                let known = known.or_insert_with(|| Later { error, after });
                // The longest pause counts: an earlier try would meet it again.
                known.after = known.after.max(after);
                None
            }
        }
    }
}

fn key(entry: &LedgerEntry) -> (uuid::Uuid, String) {
    (entry.message_id, entry.token.clone())
}

/// True when the device may have this key; a fifth one would push out another.
fn may_collapse(used: &mut HashSet<String>, key: &str) -> bool {
    if key.is_empty() {
        return false;
    }
    if !used.contains(key) && used.len() >= COLLAPSE_KEYS_MAX {
        return false;
    }
    used.insert(key.to_owned());
    true
}

fn delivery(
    place: usize,
    event: &PushEvent,
    token: &str,
    is_collapsible: bool,
    now_ms: u64,
) -> Delivery {
    let message_id = event
        .about
        .as_ref()
        .map(|about| *about.message_id.as_uuid());
    let notification = event.notification.as_ref().map(|shown| Notification {
        title: shown.title.clone(),
        body: shown.body.clone(),
    });
    Delivery {
        place,
        entry: LedgerEntry {
            message_id: message_id.unwrap_or(event.id),
            token: token.to_owned(),
            user: event.user.clone(),
            collapse_key: match is_collapsible {
                true => event.collapse_key.clone(),
                false => String::new(),
            },
        },
        push: Push {
            token: token.to_owned(),
            notification,
            data: event.data.clone(),
            thread: event.collapse_key.clone(),
            is_collapsible,
            badge: None,
            ttl: Duration::from_millis(event.expires_at_ms.saturating_sub(now_ms)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_four_collapse_keys_at_most() {
        let mut used = HashSet::new();
        for key in ["a", "b", "c", "d"] {
            assert!(may_collapse(&mut used, key));
        }
        assert!(!may_collapse(&mut used, "e"));
        assert!(may_collapse(&mut used, "a"));
        assert!(!may_collapse(&mut used, ""));
    }
}
