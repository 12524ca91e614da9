//! The `wyd` binary: command line, composition root, embedded mode.
//!
//! It alone knows gateway and workers. `cli` says what can be asked, `command/` has a file per
//! command, `roles` starts workers, `push` joins the push worker's seams, `internal` is the port for
//! operators, `process` starts and stops a process.

mod cli;
mod command;
mod internal;
mod media;
mod process;
mod push;
mod roles;

use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = <cli::Cli as clap::Parser>::parse();
    match process::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
