//! Decides who gets a push: from messages to one push a user.
//!
//! A message waits until it is old enough that whoever looks at the channel has seen it. Members
//! who then are neither online nor past it get one push for all of the batch's messages of a
//! channel. A batch that is planned again makes pushes with the same ids.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use shared::config::Config;
use shared::events::{PublicationEvent, PublicationKind, PushEvent, TAG_MEDIA};
use shared::ids::ChannelName;
use store::job_log::{JobLog, ReceivedJob, publication_event, push_job};
use store::records::{PushTarget, Records};

use super::online::Online;
use super::summary::{Style, summarize};
use super::{now_ms, temporary};
use crate::consumer::{BatchOutcome, Handler, Retry};

/// Members that are looked at in one go.
const PAGE: usize = 1_000;
/// Channels planned at once, and jobs appended at once.
const CHANNELS_AT_ONCE: usize = 4;
const APPENDS_AT_ONCE: usize = 256;

/// Makes pushes of messages.
pub(crate) struct Planner {
    pub(crate) config: Arc<Config>,
    pub(crate) records: Records,
    pub(crate) online: Arc<dyn Online>,
    pub(crate) job_log: Arc<dyn JobLog>,
}

#[async_trait]
impl Handler for Planner {
    fn role(&self) -> &'static str {
        "push_planner"
    }

    async fn handle(
        &self,
        batch: &[ReceivedJob],
        _next: &BTreeMap<i32, i64>,
    ) -> Result<BatchOutcome, Retry> {
        let mut outcome = BatchOutcome::default();
        let mut channels: BTreeMap<ChannelName, Vec<PublicationEvent>> = BTreeMap::new();
        for job in batch {
            // What cannot be understood is the persist worker's to put aside.
            match publication_event(job) {
                Ok(event) if self.is_pushed(&event) => {
                    outcome.event_times_ms.push(event.published_at_ms);
                    let messages = channels.entry(event.channel.clone()).or_default();
                    messages.push(event);
                }
                _ => outcome.already_done += 1,
            }
        }
        let newest = outcome.event_times_ms.iter().max();
        tokio::time::sleep(newest.map_or(Duration::ZERO, |at| self.time_left(*at))).await;
        outcome.done = outcome.event_times_ms.len();
        let planned = channels
            .into_iter()
            .map(|(channel, messages)| async move { self.plan(&channel, messages).await });
        stream::iter(planned)
            .buffer_unordered(CHANNELS_AT_ONCE)
            .try_collect::<Vec<()>>()
            .await?;
        Ok(outcome)
    }
}

impl Planner {
    fn is_pushed(&self, event: &PublicationEvent) -> bool {
        let options = self.config.options_of(&event.channel);
        let is_wanted = options.is_some_and(|options| options.push);
        let ttl_ms = millis(self.config.push.ttl);
        let is_fresh = event.published_at_ms.saturating_add(ttl_ms) > now_ms();
        is_wanted && is_fresh && event.kind == PublicationKind::Message && !is_notice(event)
    }

    /// Returns how long a message of that time has to wait; no longer than the delay, whatever
    /// the clocks say.
    fn time_left(&self, published_at_ms: u64) -> Duration {
        let age = Duration::from_millis(now_ms().saturating_sub(published_at_ms));
        self.config.push.delay.saturating_sub(age)
    }

    async fn plan(
        &self,
        channel: &ChannelName,
        mut messages: Vec<PublicationEvent>,
    ) -> Result<(), Retry> {
        messages.sort_by_key(|message| message.offset);
        messages.dedup_by_key(|message| message.id);
        let Some(newest) = messages.last().map(|message| message.offset) else {
            return Ok(());
        };
        let title = self.records.channel_title(channel).await;
        let title = title.map_err(|error| temporary(&error))?;
        let mut after = String::new();
        loop {
            let targets = self
                .records
                .push_targets(channel, newest, &after, now_ms(), PAGE)
                .await
                .map_err(|error| temporary(&error))?;
            let Some(last) = targets.last() else {
                return Ok(());
            };
            after.clone_from(&last.user);
            let is_last_page = targets.len() < PAGE;
            self.plan_page(channel, &title, &messages, targets).await?;
            if is_last_page {
                return Ok(());
            }
        }
    }

    async fn plan_page(
        &self,
        channel: &ChannelName,
        title: &str,
        messages: &[PublicationEvent],
        targets: Vec<PushTarget>,
    ) -> Result<(), Retry> {
        let users: Vec<String> = targets.iter().map(|target| target.user.clone()).collect();
        let online = self.online.online(channel, &users).await.map_err(Retry)?;
        let authors: HashSet<&String> = messages.iter().map(|message| &message.user).collect();
        let authors: Vec<String> = authors.into_iter().cloned().collect();
        let blocks = self.records.blocks_between(&users, &authors).await;
        let blocks = blocks.map_err(|error| temporary(&error))?;
        let style = Style {
            title,
            show_text: self.config.push.show_text,
            ttl_ms: millis(self.config.push.ttl),
            now_ms: now_ms(),
        };
        let is_for = |message: &PublicationEvent, target: &PushTarget| {
            let pair = (target.user.clone(), message.user.clone());
            message.user != target.user
                && message.offset > target.read_offset.max(target.joined_offset)
                && !blocks.contains(&pair)
        };
        let away = targets
            .iter()
            .filter(|target| !online.contains(&target.user));
        let events: Vec<PushEvent> = away
            .filter_map(|target| {
                let unread = messages.iter().filter(|message| is_for(message, target));
                summarize(&target.user, &unread.collect::<Vec<_>>(), &style)
            })
            .collect();
        let appends = events.into_iter().map(|event| self.append(event));
        stream::iter(appends)
            .buffer_unordered(APPENDS_AT_ONCE)
            .try_collect::<Vec<()>>()
            .await?;
        Ok(())
    }

    async fn append(&self, event: PushEvent) -> Result<(), Retry> {
        let job = push_job(&event, "/wyd/push").map_err(|error| Retry(error.to_string()))?;
        let appended = self.job_log.append(job).await;
        appended.map(drop).map_err(|error| temporary(&error))
    }
}

/// True for what the server tells a channel's members about media: nobody said anything.
fn is_notice(event: &PublicationEvent) -> bool {
    event.tags.contains_key(TAG_MEDIA)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
