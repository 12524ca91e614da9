//! `push`: a push to users without a channel.
//!
//! It is not a client's command: whoever may push whom is the backend's business.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use serde_json::json;
use shared::events::{PushEvent, PushNotification};
use shared::protocol::ClientError;
use store::job_log::push_job;
use uuid::Uuid;

use super::Api;
use super::router::{Answer, parse};

/// Users of one call at most.
const USERS_MAX: usize = 1_000;
/// Longest texts, in bytes: what a phone shows is shorter.
const TITLE_BYTES_MAX: usize = 256;
const BODY_BYTES_MAX: usize = 4_096;
/// Most bytes of `data`: a push carries 4,096 in all.
const DATA_BYTES_MAX: usize = 2_048;
/// Longest names; a collapse key is a header of Apple's.
const NAME_BYTES_MAX: usize = 64;
const USER_BYTES_MAX: usize = 255;
/// As long as FCM keeps a push.
const TTL_MAX_S: u64 = 2_419_200;
/// Jobs appended at once.
const APPENDS_AT_ONCE: usize = 256;

#[derive(Debug, Deserialize)]
struct PushParams {
    #[serde(default)]
    users: Vec<String>,
    notification: Option<PushNotification>,
    #[serde(default)]
    data: BTreeMap<String, String>,
    /// Seconds.
    ttl: Option<u64>,
    #[serde(default)]
    collapse_key: String,
    #[serde(default)]
    idempotency_key: String,
}

impl Api {
    /// Appends one job for each user; they are pushed as soon as a worker takes them.
    pub(super) async fn push(&self, key_name: &str, body: &[u8]) -> Answer {
        let params: PushParams = parse(body)?;
        params.check()?;
        let Some(job_log) = &self.job_log else {
            return Err(ClientError::NOT_AVAILABLE);
        };
        let id = params.id(key_name);
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default();
        let ttl = params.ttl.map_or(self.push_ttl, Duration::from_secs);
        let jobs = params.users.iter().map(|user| {
            let event = PushEvent {
                id: Uuid::new_v5(&id, user.as_bytes()),
                user: user.clone(),
                about: None,
                notification: params.notification.clone(),
                data: params.data.clone(),
                collapse_key: params.collapse_key.clone(),
                requested_at_ms: millis(now),
                expires_at_ms: millis(now + ttl),
            };
            async move {
                let job = push_job(&event, "/wyd/gateway").map_err(|_| ClientError::INTERNAL)?;
                job_log.append(job).await.map(drop).map_err(|error| {
                    tracing::warn!(%error, "push cannot be appended");
                    ClientError::INTERNAL
                })
            }
        });
        let jobs: Vec<_> = jobs.collect();
        stream::iter(jobs)
            .buffer_unordered(APPENDS_AT_ONCE)
            .try_collect::<Vec<()>>()
            .await?;
        Ok(json!({ "id": id }))
    }
}

impl PushParams {
    /// # Errors
    /// 107 for what no push can have.
    fn check(&self) -> Result<(), ClientError> {
        let has_users = (1..=USERS_MAX).contains(&self.users.len());
        let is_user = |user: &String| (1..=USER_BYTES_MAX).contains(&user.len());
        let shows = self.notification.as_ref();
        let is_short = shows.is_none_or(|shown| {
            shown.title.len() <= TITLE_BYTES_MAX && shown.body.len() <= BODY_BYTES_MAX
        });
        let says_something = shows.is_some() || !self.data.is_empty();
        let data = self.data.iter();
        let data_bytes: usize = data.map(|(name, value)| name.len() + value.len()).sum();
        // FCM keeps these names for itself.
        let is_reserved = |name: &String| {
            matches!(name.as_str(), "from" | "message_type")
                || name.starts_with("gcm")
                || name.starts_with("google")
        };
        let is_right = has_users
            && self.users.iter().all(is_user)
            && is_short
            && says_something
            && data_bytes <= DATA_BYTES_MAX
            && !self.data.keys().any(is_reserved)
            && self.collapse_key.len() <= NAME_BYTES_MAX
            && self.idempotency_key.len() <= NAME_BYTES_MAX
            && self.ttl.is_none_or(|ttl| (1..=TTL_MAX_S).contains(&ttl));
        is_right.then_some(()).ok_or(ClientError::BAD_REQUEST)
    }

    /// The same key of the same caller names the same push: its jobs have no second effect.
    fn id(&self, key_name: &str) -> Uuid {
        if self.idempotency_key.is_empty() {
            return Uuid::now_v7();
        }
        let name = format!(
            "push:{}:{key_name}:{}",
            key_name.len(),
            self.idempotency_key
        );
        Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes())
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_push_can_have_is_refused() {
        let check = |json: &str| {
            let params: PushParams = serde_json::from_str(json).unwrap();
            params.check().is_ok()
        };
        assert!(check(
            r#"{"users":["ann"],"notification":{"title":"t","body":"b"}}"#
        ));
        assert!(check(
            r#"{"users":["ann"],"data":{"k":"v"},"ttl":60,"collapse_key":"c"}"#
        ));
        for wrong in [
            r#"{"users":["ann"]}"#,
            r#"{"users":[],"data":{"k":"v"}}"#,
            r#"{"users":[""],"data":{"k":"v"}}"#,
            r#"{"users":["ann"],"data":{"google.x":"v"}}"#,
            r#"{"users":["ann"],"data":{"k":"v"},"ttl":0}"#,
        ] {
            assert!(!check(wrong), "{wrong}");
        }
        let long = format!(
            r#"{{"users":["ann"],"data":{{"k":"{}"}}}}"#,
            "x".repeat(2_048)
        );
        assert!(!check(&long));
    }

    #[test]
    fn a_key_names_one_push_of_its_caller() {
        let params = |key: &str| PushParams {
            users: vec!["ann".to_owned()],
            notification: None,
            data: BTreeMap::new(),
            ttl: None,
            collapse_key: String::new(),
            idempotency_key: key.to_owned(),
        };
        assert_eq!(params("k").id("mobile"), params("k").id("mobile"));
        assert_ne!(params("k").id("mobile"), params("k").id("web"));
        assert_ne!(params("").id("mobile"), params("").id("mobile"));
    }
}
