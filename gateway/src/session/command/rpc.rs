//! `rpc`: the methods of the chat part, which has the table of them.
//!
//! Any other method is error 108, as of a server without an RPC handler.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use shared::ids::ChannelName;
use shared::protocol::command::RpcRequest;
use shared::protocol::{ClientError, ClientInfo};

use crate::chat::{Caller, operation};
use crate::session::call::Call;
use crate::session::state::{Effect, SessionState};

/// What most methods are about.
#[derive(Debug, Deserialize)]
struct About<'a> {
    #[serde(borrow)]
    channel: Cow<'a, str>,
}

impl SessionState {
    pub(in crate::session) fn rpc(
        &mut self,
        id: u32,
        request: &RpcRequest,
        effects: &mut Vec<Effect>,
    ) -> Result<(), ClientError> {
        let operation = operation::find(&request.method).ok_or(ClientError::NOT_AVAILABLE)?;
        let info = self.info.clone().ok_or(ClientError::UNAUTHORIZED)?;
        let request = request.data.as_deref().map_or("{}", RawValue::get);
        let caller = Caller {
            info,
            subscription: self.subscription_to(request),
        };
        let request = Bytes::copy_from_slice(request.as_bytes());
        let call = Call::Rpc {
            id,
            operation,
            caller,
            request,
        };
        self.call(call, effects);
        Ok(())
    }

    /// Finds the client's subscription to the channel that a request is about. A request that
    /// cannot be read is refused by whoever carries it out.
    fn subscription_to(&self, request: &str) -> Option<(ChannelName, Arc<ClientInfo>)> {
        let about: About<'_> = serde_json::from_str(request).ok()?;
        let channel = ChannelName::new(&about.channel).ok()?;
        let subscription = self.subscriptions.get(&channel)?;
        let info = Arc::clone(&subscription.info);
        Some((channel, info))
    }
}
