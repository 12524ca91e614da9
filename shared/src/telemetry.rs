//! Logs: how a process sets them up. They go to stderr; payloads and tokens are never logged.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogFormat, TelemetryConfig};

/// Starts logging; a filter that cannot be parsed falls back to `info`, with a warning.
pub fn start(config: &TelemetryConfig) {
    let parsed = EnvFilter::try_new(&config.log_filter);
    let is_wrong = parsed.is_err();
    let filter = parsed.unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let started = match config.log_format {
        LogFormat::Text => logs.with_ansi(false).finish().try_init(),
        LogFormat::Json => logs.json().flatten_event(true).finish().try_init(),
    };
    if started.is_err() {
        // Somebody, a test perhaps, has set it up before.
        return;
    }
    if is_wrong {
        tracing::warn!(filter = %config.log_filter, "log filter cannot be parsed, using info");
    }
}
