//! What a server needs for many clients: memory of idle ones, CPU of deliveries.
//!
//! Clients here are as lean as they can be, so that one machine holds both sides. `server` starts
//! the server to measure (or takes one that runs), `process` reads what it uses from `/proc`,
//! `crowd` holds the clients.

pub mod connections;
mod crowd;
pub mod fanout;
mod http;
mod process;
pub mod server;

/// Raises the limit of open files as far as it goes, and says when it is too low for so many
/// connections.
fn check_open_files(connections: usize) -> anyhow::Result<()> {
    let wanted = u64::try_from(connections)?.saturating_add(64);
    let limit = rlimit::increase_nofile_limit(rlimit::INFINITY)?;
    anyhow::ensure!(
        limit >= wanted,
        "{connections} connections need {wanted} open files, the limit is {limit}: raise the hard \
         limit (`ulimit -Hn`) or ask for fewer"
    );
    Ok(())
}
