//! Logs and metrics: how a process sets them up.
