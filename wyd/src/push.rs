//! The push worker's seams, joined: the gateway's presence, and the provider that was chosen.

use std::collections::HashSet;
use std::num::NonZeroU32;
use std::sync::Arc;

use async_trait::async_trait;
use gateway::presence::Presence;
use shared::config::{Config, PushProviderKind};
use shared::ids::{ChannelName, UserId};
use workers::push::console::ConsolePushes;
use workers::push::fcm::{Fcm, FcmSettings, ServiceAccount};
use workers::push::metrics::PushMetrics;
use workers::push::online::Online;
use workers::push::provider::PushProvider;

use crate::process::Failure;

/// Who is online, as the gateway's presence knows it.
pub(crate) struct ByPresence(pub(crate) Arc<dyn Presence>);

#[async_trait]
impl Online for ByPresence {
    async fn online(
        &self,
        channel: &ChannelName,
        users: &[String],
    ) -> Result<HashSet<String>, String> {
        let users: Vec<UserId> = users.iter().map(|user| user.as_str().into()).collect();
        let online = self.0.online(channel, &users).await;
        let online = online.map_err(|error| crate::command::with_sources(&error))?;
        Ok(online.iter().map(|user| user.as_str().to_owned()).collect())
    }
}

/// Makes the provider; `console` keeps what is sent to nobody.
pub(crate) fn provider(
    config: &Config,
    console: &ConsolePushes,
    metrics: PushMetrics,
) -> Result<Arc<dyn PushProvider>, Failure> {
    let push = &config.push;
    let wrong = |problem: String| {
        Failure::Configuration(vec![format!(
            "push.fcm_credentials: {problem} (in the file, or FCM_CREDENTIALS)"
        )])
    };
    let credentials = match (push.provider(), &push.fcm_credentials) {
        (PushProviderKind::Fcm, Some(credentials)) => credentials,
        (PushProviderKind::Fcm | PushProviderKind::Console, _) => {
            return Ok(Arc::new(console.clone()));
        }
    };
    let account = ServiceAccount::read(credentials.expose()).map_err(wrong)?;
    let settings = FcmSettings {
        base_url: push.fcm_base_url.clone(),
        timeout: push.request_timeout,
        connections: push.connections,
        in_flight_max: push.in_flight_max,
        messages_per_minute_max: NonZeroU32::new(push.messages_per_minute_max)
            .unwrap_or(NonZeroU32::MIN),
    };
    let fcm = Fcm::new(&settings, account, metrics).map_err(Failure::Other)?;
    Ok(Arc::new(fcm))
}
