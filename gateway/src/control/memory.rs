//! Control of a node that is alone: it obeys itself.

use async_trait::async_trait;
use parking_lot::Mutex;

use super::{Control, ControlCommand, NodeInfo, Obeyer};
use crate::broker::BrokerError;

/// Hands every command to this node.
pub struct MemoryControl {
    obeyer: Obeyer,
    this_node: Mutex<Option<NodeInfo>>,
}

impl std::fmt::Debug for MemoryControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryControl").finish_non_exhaustive()
    }
}

impl MemoryControl {
    /// Makes the control of a node that is alone.
    pub fn new(obeyer: Obeyer) -> Self {
        Self {
            obeyer,
            this_node: Mutex::default(),
        }
    }
}

#[async_trait]
impl Control for MemoryControl {
    async fn broadcast(&self, command: ControlCommand) -> Result<(), BrokerError> {
        self.obeyer.obey(command);
        Ok(())
    }

    async fn heartbeat(&self, info: &NodeInfo) -> Result<(), BrokerError> {
        *self.this_node.lock() = Some(info.clone());
        Ok(())
    }

    async fn nodes(&self) -> Result<Vec<NodeInfo>, BrokerError> {
        Ok(self.this_node.lock().iter().cloned().collect())
    }
}
