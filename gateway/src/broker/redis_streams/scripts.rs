//! The scripts that Redis runs, each atomic.

use std::sync::LazyLock;

use redis::Cmd;

/// A script with the hash that Redis knows it by.
pub(crate) struct Script {
    code: &'static str,
    compiled: LazyLock<redis::Script>,
}

macro_rules! scripts {
    ($($(#[$doc:meta])* $name:ident = $($file:literal),+;)*) => {
        $($(#[$doc])* pub(crate) static $name: Script = Script {
            code: concat!($(include_str!($file)),+),
            compiled: LazyLock::new(|| redis::Script::new(concat!($(include_str!($file)),+))),
        };)*
    };
}

scripts! {
    /// Accepts a publication.
    PUBLISH = "lua/prelude.lua", "lua/publish.lua";
    /// Reads history and position.
    HISTORY = "lua/prelude.lua", "lua/history.lua";
    /// Removes a relayed outbox entry.
    SETTLE = "lua/prelude.lua", "lua/settle.lua";
    /// Takes a partition's leftovers.
    TAKE = "lua/take.lua";
    /// Adds a member.
    PRESENCE_ADD = "lua/presence_add.lua";
    /// Removes a member.
    PRESENCE_REMOVE = "lua/presence.lua", "lua/presence_remove.lua";
    /// Renews a node's lease in a partition, and names the dead.
    PRESENCE_RENEW = "lua/presence_renew.lua";
    /// Removes a member of a dead node and tells that it left.
    PRESENCE_SWEEP = "lua/presence.lua", "lua/presence_sweep.lua";
    /// Enters a node in the registry.
    HEARTBEAT = "lua/heartbeat.lua";
    /// Lists the registry.
    NODES = "lua/nodes.lua";
}

impl Script {
    /// Makes the call; arguments follow the keys.
    pub(crate) fn call(&'static self, keys: &[String]) -> Call {
        let mut command = redis::cmd("EVALSHA");
        command
            .arg(self.compiled.get_hash())
            .arg(keys.len())
            .arg(keys);
        Call {
            script: Some(self),
            command,
        }
    }

    pub(crate) fn load(&self) -> Cmd {
        let mut command = redis::cmd("SCRIPT");
        command.arg("LOAD").arg(self.code);
        command
    }
}

/// One command on its way to Redis; of which script, when Redis may have forgotten it.
pub(crate) struct Call {
    pub(crate) script: Option<&'static Script>,
    pub(crate) command: Cmd,
}

impl Call {
    pub(crate) fn arg(mut self, arg: impl redis::ToRedisArgs) -> Self {
        self.command.arg(arg);
        self
    }
}

impl From<Cmd> for Call {
    fn from(command: Cmd) -> Self {
        Self {
            script: None,
            command,
        }
    }
}
