//! What integration tests need of the world: real services, real `wyd` processes, a crash.
//!
//! Services are found by the `WYD_TEST_*` variables that `./test` sets. They are shared, so a test
//! takes a database and channel names of its own; `processes` starts and kills, `services` finds
//! and cleans up.

#![allow(
    dead_code,
    reason = "every test file compiles this room for itself and uses its own part of it"
)]
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on panics, and its helpers are part of it"
)]

pub(crate) mod processes;
pub(crate) mod services;
