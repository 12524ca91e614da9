//! `presence` and `presence_stats`: who is on a channel.

use shared::ids::ChannelName;
use shared::protocol::ClientError;
use shared::protocol::command::ChannelRequest;

use crate::channel::Action;
use crate::session::call::Call;
use crate::session::state::{Effect, SessionState};

impl SessionState {
    pub(in crate::session) fn presence(
        &mut self,
        id: u32,
        request: &ChannelRequest,
        effects: &mut Vec<Effect>,
    ) -> Result<(), ClientError> {
        let channel = self.with_presence(&request.channel)?;
        self.call(Call::Presence { id, channel }, effects);
        Ok(())
    }

    pub(in crate::session) fn presence_stats(
        &mut self,
        id: u32,
        request: &ChannelRequest,
        effects: &mut Vec<Effect>,
    ) -> Result<(), ClientError> {
        let channel = self.with_presence(&request.channel)?;
        self.call(Call::PresenceStats { id, channel }, effects);
        Ok(())
    }

    fn with_presence(&self, channel: &str) -> Result<ChannelName, ClientError> {
        let (channel, namespace) = self.rules.channels.resolve(channel)?;
        let asker = self.asker(&channel).ok_or(ClientError::UNAUTHORIZED)?;
        self.rules
            .channels
            .may(Action::Presence, &namespace, asker)?;
        Ok(channel)
    }
}
