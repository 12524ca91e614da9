//! Many clients, several replicas, one report.
//!
//! `client` speaks the protocol; `replay` plays a conversation through a cluster and checks that
//! nothing is lost, doubled or out of order; `measure` finds out what a server needs for
//! many connections and deliveries. Only the wire is known here: nothing of the gateway, nothing of the workers.

pub mod client;
pub mod latency;
pub mod measure;
pub mod replay;
