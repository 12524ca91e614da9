//! Who a client is: connection and subscription tokens (client protocol §7).
//!
//! `token` says what tokens claim and how a wrong one is answered, `hs256` checks signatures.
//! Keys come from the configuration only, never from a token.

mod hs256;
mod token;

pub use hs256::Verifier;
pub use token::{ConnectionToken, SubscriptionToken, TokenError};
