//! `connect`: who is it, and which channels does the token put it on.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use shared::protocol::command::{ConnectRequest, SubscribeRequest};
use shared::protocol::reply::{ConnectResult, Reply, ReplyBody};
use shared::protocol::{ClientError, ClientInfo, Disconnect};

use crate::auth::{ConnectionToken, TokenError};
use crate::session::call::{Call, Join};
use crate::session::state::{Effect, SessionState};
use crate::session::{Now, VERSION};

/// How a `connect` fails.
enum Refusal {
    /// It is answered, and the connection closed after.
    Error(ClientError),
    /// The connection is closed.
    Disconnect(Disconnect),
}

impl From<ClientError> for Refusal {
    fn from(error: ClientError) -> Self {
        Self::Error(error)
    }
}

impl SessionState {
    pub(in crate::session) fn connect(
        &mut self,
        id: u32,
        request: ConnectRequest,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Disconnect> {
        match self.try_connect(id, request, now, effects) {
            Ok(()) => Ok(()),
            Err(Refusal::Error(error)) => {
                self.refuse(id, error, now, effects);
                Ok(())
            }
            Err(Refusal::Disconnect(disconnect)) => Err(disconnect),
        }
    }

    fn try_connect(
        &mut self,
        id: u32,
        request: ConnectRequest,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let token = self.authenticate(&request.token, now)?;
        if token.expire_at.is_some_and(|at| at <= now.unix) {
            return Err(ClientError::EXPIRED.into());
        }
        if token.channels.len() > self.rules.client.channel_limit {
            return Err(Refusal::Disconnect(Disconnect::CHANNEL_LIMIT));
        }
        self.info = Some(Arc::new(ClientInfo {
            user: token.user.as_str().into(),
            client: self.client,
            conn_info: token.info,
            chan_info: None::<Bytes>,
        }));
        if !self.rules.client.insecure {
            self.expire_at = token.expire_at;
        }
        let joins = self.server_side(&token.channels, &request.subs)?;
        let result = self.connect_result(now);
        if joins.is_empty() {
            let body = ReplyBody::Connect(result);
            effects.push(Effect::Reply(Reply { id, body }));
            self.open(now, effects);
        } else {
            self.connecting();
            self.call(Call::Connect { id, result, joins }, effects);
        }
        Ok(())
    }

    fn authenticate(&self, token: &str, now: Now) -> Result<ConnectionToken, Refusal> {
        let client = &self.rules.client;
        if token.is_empty() || client.insecure {
            let is_allowed = client.insecure || client.allow_anonymous_connect_without_token;
            return if is_allowed {
                Ok(self.unverified(token, now))
            } else {
                Err(Refusal::Disconnect(Disconnect::BAD_REQUEST))
            };
        }
        self.rules
            .verifier
            .connection(token, now.unix)
            .map_err(|error| match error {
                TokenError::Expired => Refusal::Error(ClientError::TOKEN_EXPIRED),
                TokenError::Invalid => Refusal::Disconnect(Disconnect::INVALID_TOKEN),
            })
    }

    /// Takes a client in that needs no token; a good one still says who it is.
    fn unverified(&self, token: &str, now: Now) -> ConnectionToken {
        let verified = self.rules.verifier.connection(token, now.unix);
        verified.unwrap_or(ConnectionToken {
            user: String::new(),
            expire_at: None,
            info: None,
            channels: Vec::new(),
        })
    }

    /// Puts the client on the token's channels; `positions` are those it says it had.
    fn server_side(
        &mut self,
        channels: &[String],
        positions: &BTreeMap<String, SubscribeRequest>,
    ) -> Result<Vec<Join>, ClientError> {
        let mut joins = Vec::with_capacity(channels.len());
        for name in channels {
            let (channel, namespace) = self.rules.channels.resolve(name)?;
            if self.subscriptions.contains_key(&channel) {
                continue;
            }
            let request = positions.get(name).cloned().unwrap_or_default();
            joins.push(self.join(channel, namespace, &request, None, true)?);
        }
        Ok(joins)
    }

    fn connect_result(&self, now: Now) -> ConnectResult {
        let ping = self.rules.client.ping_interval.as_secs();
        ConnectResult {
            client: self.client,
            version: VERSION,
            expiry: Self::expiry(self.expire_at, now),
            subs: Vec::new(),
            ping: u32::try_from(ping).unwrap_or(u32::MAX),
            pong: true,
        }
    }
}
