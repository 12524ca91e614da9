//! `history`: what a channel keeps.

use shared::protocol::ClientError;
use shared::protocol::command::HistoryRequest;

use crate::broker::HistoryRange;
use crate::channel::Action;
use crate::session::call::Call;
use crate::session::state::{Effect, SessionState};

impl SessionState {
    pub(in crate::session) fn history(
        &mut self,
        id: u32,
        request: HistoryRequest,
        effects: &mut Vec<Effect>,
    ) -> Result<(), ClientError> {
        let (channel, namespace) = self.rules.channels.resolve(&request.channel)?;
        let asker = self.asker(&channel).ok_or(ClientError::UNAUTHORIZED)?;
        self.rules
            .channels
            .may(Action::History, &namespace, asker)?;
        let policy = namespace
            .history
            .clone()
            .ok_or(ClientError::NOT_AVAILABLE)?;
        let is_nowhere = request
            .since
            .as_ref()
            .is_some_and(|since| since.offset == 0);
        if request.reverse && is_nowhere {
            return Err(ClientError::BAD_REQUEST);
        }
        let limit_max = self.rules.client.history_max_publication_limit;
        // A negative limit asks for all that is allowed.
        let limit = usize::try_from(request.limit)
            .unwrap_or(limit_max)
            .min(limit_max);
        let range = HistoryRange {
            since: request.since.map(Into::into),
            limit: Some(limit),
            reverse: request.reverse,
        };
        self.call(
            Call::History {
                id,
                channel,
                policy,
                range,
            },
            effects,
        );
        Ok(())
    }
}
