//! How bytes move.
pub(crate) mod frame;
