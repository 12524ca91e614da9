//! The commands of the client protocol, a file each. Each checks what it is asked against the
//! rules and either answers at once or begins a call.

mod connect;
mod history;
mod presence;
mod publish;
mod refresh;
mod rpc;
mod subscribe;

pub(crate) use publish::identify;
