//! The load test against a gateway small enough to be understood at a glance, and able to fail on
//! purpose. The real gateway is tried in the main job; here the tool itself is on trial.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on panics, and its helpers are part of it"
)]

mod client;
mod gateway;
mod measure;
mod replay;
