//! A small world with people, channels and devices, and a push worker on real Kafka and
//! PostgreSQL that sends to the stand-in.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use serde_json::value::RawValue;
use shared::config::{Config, KafkaConfig, NamespaceOptions};
use shared::events::{PublicationEvent, PushEvent, TOPIC_PUSHES};
use shared::ids::ChannelName;
use sqlx::postgres::PgPool;
use store::job_log::{JobLog, KafkaJobLog, ensure_topics, publication_job, push_event, push_job};
use store::records::Records;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use workers::push::PushParts;
use workers::push::fcm::{Fcm, FcmSettings, ServiceAccount};
use workers::push::metrics::PushMetrics;
use workers::push::online::Online;
use workers::push::provider::PushProvider;

use super::fcm;
use super::support::{self, Fixture};

pub const PATIENCE: Duration = Duration::from_secs(90);

/// Who is online: what the test says.
#[derive(Debug, Default)]
pub struct Present(pub Mutex<HashSet<(String, String)>>);

#[async_trait]
impl Online for Present {
    async fn online(
        &self,
        channel: &ChannelName,
        users: &[String],
    ) -> Result<HashSet<String>, String> {
        let there = self.0.lock();
        let is_there = |user: &&String| there.contains(&(channel.to_string(), (*user).clone()));
        Ok(users.iter().filter(is_there).cloned().collect())
    }
}

pub struct Garden {
    pub fcm: fcm::Fcm,
    pub present: Arc<Present>,
    pub config: Config,
    pub job_log: Arc<dyn JobLog>,
    pub pool: PgPool,
    pub in_flight_max: usize,
    /// Makes names of users and devices this test's own: the topics are shared.
    mark: String,
    records: Records,
    _fixture: Fixture,
    _group: File,
}

/// A worker that can be stopped or killed.
pub struct Worker {
    running: JoinHandle<()>,
    cancel: CancellationToken,
    registry: Registry,
}

impl Worker {
    /// Ends it between any two of its lines.
    pub async fn kill(self) {
        self.running.abort();
        drop(self.running.await);
    }

    pub async fn stop(self) {
        self.cancel.cancel();
        self.running.await.unwrap();
    }

    /// Reads a counter.
    pub fn counted(&self, line: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let found = text.lines().find_map(|found| found.strip_prefix(line));
        found.map_or(0, |count| count.trim().parse().unwrap())
    }
}

impl Garden {
    pub async fn plant() -> Self {
        let kafka = KafkaConfig {
            brokers: support::service("WYD_TEST_KAFKA_BROKERS"),
            partitions: 4,
            replication: 1,
            min_insync_replicas: 1,
            append_timeout: Duration::from_secs(20),
            ..KafkaConfig::default()
        };
        let group = lock_consumer_group(&kafka.brokers).await;
        ensure_topics(&kafka).await.unwrap();
        let fixture = support::postgres().await;
        let mut config = fixture.config.clone();
        let mark = support::unique("g");
        let options = NamespaceOptions {
            push: true,
            durable: true,
            ..NamespaceOptions::default()
        };
        config.namespaces.insert(mark.clone(), options);
        config.push.delay = Duration::from_millis(500);
        config.push.burst_window = Duration::from_millis(500);
        let url = config.database.url.clone().unwrap();
        Self {
            fcm: fcm::Fcm::start().await,
            present: Arc::default(),
            job_log: Arc::new(KafkaJobLog::connect(&kafka).unwrap()),
            pool: PgPool::connect(url.expose()).await.unwrap(),
            in_flight_max: 64,
            records: Records::open(&config.database).await.unwrap().unwrap(),
            mark,
            config,
            _fixture: fixture,
            _group: group,
        }
    }

    pub fn provider(&self) -> Arc<Fcm> {
        let settings = FcmSettings {
            base_url: self.fcm.base_url(),
            timeout: Duration::from_secs(30),
            connections: 4,
            in_flight_max: self.in_flight_max,
            messages_per_minute_max: NonZeroU32::new(6_000_000).unwrap(),
        };
        let account = ServiceAccount::read(&self.fcm.credentials()).unwrap();
        Arc::new(Fcm::new(&settings, account, PushMetrics::default()).unwrap())
    }

    pub async fn worker(&self) -> Worker {
        self.worker_with(self.provider()).await
    }

    pub async fn worker_with(&self, provider: Arc<dyn PushProvider>) -> Worker {
        let mut registry = Registry::default();
        let cancel = CancellationToken::new();
        let mut config = self.config.clone();
        config.push.in_flight_max = self.in_flight_max;
        let parts = PushParts {
            config: Arc::new(config),
            job_log: Arc::clone(&self.job_log),
            records: self.records.clone(),
            archive: None,
            online: Arc::clone(&self.present) as Arc<dyn Online>,
            provider,
            metrics: workers::Metrics::new(&mut registry),
            push_metrics: PushMetrics::new(&mut registry),
        };
        let running = workers::push::start(parts, cancel.clone()).await.unwrap();
        Worker {
            running: tokio::spawn(running),
            cancel,
            registry,
        }
    }

    pub fn channel(&self, name: &str) -> ChannelName {
        ChannelName::new(&format!("{}:{name}", self.mark)).unwrap()
    }

    /// This test's own name of a user or device.
    pub fn own(&self, name: &str) -> String {
        format!("{name}-{}", self.mark)
    }

    /// A name as the test wrote it.
    pub fn plain(&self, own: &str) -> String {
        let end = format!("-{}", self.mark);
        own.strip_suffix(&end).unwrap_or(own).to_owned()
    }

    pub async fn add_member(&self, channel: &ChannelName, user: &str, joined_offset: i64) {
        self.insert(
            "INSERT INTO channel_members
             (channel, user_id, role, muted_until_ms, joined_at_ms, joined_offset)
             VALUES ($1, $2, 'member', 0, 0, $3::bigint)",
            &[channel.as_str(), &self.own(user)],
            joined_offset,
        )
        .await;
    }

    pub async fn add_device(&self, user: &str, token: &str) {
        self.insert(
            "INSERT INTO devices
             (token, user_id, platform, app_version, created_at_ms, updated_at_ms)
             VALUES ($1, $2, 'android', '1', $3::bigint, $3::bigint)",
            &[&self.own(token), &self.own(user)],
            i64::try_from(now_ms()).unwrap(),
        )
        .await;
    }

    pub async fn mute(&self, channel: &ChannelName, user: &str) {
        self.insert(
            "UPDATE channel_members SET muted_until_ms = $3::bigint
             WHERE channel = $1 AND user_id = $2",
            &[channel.as_str(), &self.own(user)],
            i64::MAX,
        )
        .await;
    }

    pub async fn block(&self, user: &str, blocked: &str) {
        self.insert(
            "INSERT INTO user_blocks (user_id, blocked_user_id, created_at_ms)
             VALUES ($1, $2, $3::bigint)",
            &[&self.own(user), &self.own(blocked)],
            0,
        )
        .await;
    }

    pub async fn read(&self, channel: &ChannelName, user: &str, offset: i64) {
        self.insert(
            "INSERT INTO read_positions (channel, user_id, \"offset\", updated_at_ms)
             VALUES ($1, $2, $3::bigint, 0)
             ON CONFLICT (user_id, channel) DO UPDATE SET \"offset\" = excluded.\"offset\"",
            &[channel.as_str(), &self.own(user)],
            offset,
        )
        .await;
    }

    pub async fn name_channel(&self, channel: &ChannelName, name: &str) {
        self.insert(
            "INSERT INTO channels
             (channel, kind, name, picture, created_by, created_at_ms, updated_at_ms)
             VALUES ($1, 'group', $2, '', '', $3::bigint, 0)",
            &[channel.as_str(), name],
            0,
        )
        .await;
    }

    async fn insert(&self, sql: &'static str, texts: &[&str], number: i64) {
        let mut query = sqlx::query(sql);
        for text in texts {
            query = query.bind(*text);
        }
        query.bind(number).execute(&self.pool).await.unwrap();
    }

    pub fn set_online(&self, channel: &ChannelName, user: &str) {
        let pair = (channel.to_string(), self.own(user));
        self.present.0.lock().insert(pair);
    }

    pub fn message(
        &self,
        channel: &ChannelName,
        author: &str,
        offset: u64,
        text: &str,
    ) -> PublicationEvent {
        let data = serde_json::json!({ "text": text }).to_string();
        PublicationEvent {
            user: self.own(author),
            info: None,
            data: RawValue::from_string(data).unwrap(),
            published_at_ms: now_ms(),
            ..support::event(channel.as_str(), "e", offset)
        }
    }

    /// Says something; resolves when Kafka has it.
    pub async fn say(&self, message: &PublicationEvent) {
        let job = publication_job(message).unwrap();
        self.job_log.append(job).await.unwrap();
    }

    /// Asks for a push without a channel.
    pub async fn push(&self, user: &str) -> PushEvent {
        let event = PushEvent {
            id: uuid::Uuid::now_v7(),
            user: self.own(user),
            about: None,
            notification: Some(shared::events::PushNotification {
                title: "hello".to_owned(),
                body: user.to_owned(),
            }),
            data: BTreeMap::new(),
            collapse_key: "news".to_owned(),
            requested_at_ms: now_ms(),
            expires_at_ms: now_ms() + 600_000,
        };
        let job = push_job(&event, "/wyd/test").unwrap();
        self.job_log.append(job).await.unwrap();
        event
    }

    /// Lists what was asked for about this test's channels.
    pub async fn planned(&self) -> Vec<PushEvent> {
        let mut scan = self.job_log.scan(TOPIC_PUSHES).await.unwrap();
        let mut planned = Vec::new();
        loop {
            let jobs = scan.next().await.unwrap();
            if jobs.is_empty() {
                return planned;
            }
            let events = jobs.iter().filter_map(|job| push_event(job).ok());
            let is_own = |event: &PushEvent| event.user.ends_with(&self.mark);
            planned.extend(events.filter(is_own));
        }
    }

    /// Lists the ledger: how many rows are in each state.
    pub async fn ledger(&self) -> BTreeMap<String, i64> {
        let rows: Vec<(String, i64)> =
            sqlx::query_as("SELECT state, count(*) FROM push_log GROUP BY state")
                .fetch_all(&self.pool)
                .await
                .unwrap();
        rows.into_iter().collect()
    }

    pub async fn devices(&self) -> Vec<String> {
        let rows: Vec<(String,)> = sqlx::query_as("SELECT token FROM devices ORDER BY token")
            .fetch_all(&self.pool)
            .await
            .unwrap();
        rows.iter().map(|(token,)| self.plain(token)).collect()
    }

    /// Waits until the ledger has so many rows in that state.
    pub async fn until(&self, state: &str, rows: i64) {
        let settled = async {
            while self.ledger().await.get(state).copied().unwrap_or(0) < rows {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, settled).await.is_err() {
            panic!(
                "{rows} rows {state} did not come: {:?}",
                self.ledger().await
            );
        }
    }

    /// Devices of the pushes that were taken, in the order of their names.
    pub fn pushed(&self) -> Vec<String> {
        let calls = self.fcm.taken();
        let mut tokens: Vec<_> = calls.iter().map(|call| self.plain(&call.token)).collect();
        tokens.sort();
        tokens
    }
}

pub fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap()
}

/// Waits until no other test works for the consumer group on this Kafka: its name is fixed.
async fn lock_consumer_group(brokers: &str) -> File {
    let name: String = brokers
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let path = std::env::temp_dir().join(format!("wyd-test-push-{name}.lock"));
    let lock = move || {
        let mut options = File::options();
        let file = options.create(true).append(true).open(path).unwrap();
        file.lock().unwrap();
        file
    };
    tokio::task::spawn_blocking(lock).await.unwrap()
}
