//! `refresh` and `sub_refresh`: a new token before the old one ends.

use shared::protocol::command::{RefreshRequest, SubRefreshRequest};
use shared::protocol::reply::{Reply, ReplyBody};
use shared::protocol::{ClientError, Disconnect};

use crate::auth::TokenError;
use crate::session::Now;
use crate::session::state::{Effect, SessionState};

impl SessionState {
    pub(in crate::session) fn refresh(
        &mut self,
        id: u32,
        request: &RefreshRequest,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> Result<Result<(), ClientError>, Disconnect> {
        if request.token.is_empty() {
            return Err(Disconnect::BAD_REQUEST);
        }
        let verified = self.rules.verifier.connection(&request.token, now.unix);
        let token = verified.map_err(|error| match error {
            TokenError::Expired => Disconnect::EXPIRED,
            TokenError::Invalid => Disconnect::INVALID_TOKEN,
        })?;
        if self.user().is_none_or(|user| user.as_str() != token.user) {
            return Err(Disconnect::INVALID_TOKEN);
        }
        if token.expire_at.is_some_and(|at| at <= now.unix) {
            return Ok(Err(ClientError::EXPIRED));
        }
        self.expire_at = token.expire_at;
        let body = ReplyBody::Refresh(Self::expiry(token.expire_at, now));
        effects.push(Effect::Reply(Reply { id, body }));
        Ok(Ok(()))
    }

    pub(in crate::session) fn sub_refresh(
        &mut self,
        id: u32,
        request: &SubRefreshRequest,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> Result<Result<(), ClientError>, Disconnect> {
        let channel = match self.rules.channels.resolve(&request.channel) {
            Ok((channel, _)) => channel,
            Err(error) => return Ok(Err(error)),
        };
        if !self.subscriptions.contains_key(&channel) {
            return Ok(Err(ClientError::PERMISSION_DENIED));
        }
        if request.token.is_empty() {
            return Ok(Err(ClientError::BAD_REQUEST));
        }
        let verified = self.rules.verifier.subscription(&request.token, now.unix);
        let token = verified.map_err(|error| match error {
            TokenError::Expired => Disconnect::SUBSCRIPTION_EXPIRED,
            TokenError::Invalid => Disconnect::INVALID_TOKEN,
        })?;
        if !self.is_ours(&token, &channel) {
            return Err(Disconnect::INVALID_TOKEN);
        }
        if let Some(subscription) = self.subscriptions.get_mut(&channel) {
            subscription.expire_at = token.expire_at;
        }
        let body = ReplyBody::SubRefresh(Self::expiry(token.expire_at, now));
        effects.push(Effect::Reply(Reply { id, body }));
        Ok(Ok(()))
    }
}
