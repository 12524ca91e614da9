//! The server HTTP API: what backends call, compatible with the reference server's (§9 of the
//! client protocol page).
//!
//! `router` checks key and body and writes answers; a file per group of methods does the work.

mod control;
mod history;
mod members;
mod presence;
mod publish;
mod push;
mod router;
mod user_data;

pub(crate) use router::{Api, router};
