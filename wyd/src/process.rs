//! How a process starts, hears signals, and says how it ended.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use shared::config::Config;
use shared::config::check::{Role, check};
use shared::config::load::{Environment, load};
use tokio_util::sync::CancellationToken;

use crate::cli::{Cli, Command, DevArgs};
use crate::command;

/// Exit codes of `sysexits.h`.
const EXIT_CONFIGURATION: u8 = 78;
const EXIT_DEPENDENCY: u8 = 69;
const EXIT_SOFTWARE: u8 = 70;

/// Why a command failed; each line is for people.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The configuration must be changed.
    Configuration(Vec<String>),
    /// Something that this process needs does not answer.
    Dependency(Vec<String>),
    /// Anything else.
    Other(String),
}

impl Failure {
    /// Tells a person, and the caller by the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        let (title, lines, code) = match self {
            Self::Configuration(lines) => ("configuration", lines.clone(), EXIT_CONFIGURATION),
            Self::Dependency(lines) => ("dependency", lines.clone(), EXIT_DEPENDENCY),
            Self::Other(line) => ("error", vec![line.clone()], EXIT_SOFTWARE),
        };
        for line in lines {
            eprintln!("wyd: {title}: {line}");
        }
        ExitCode::from(code)
    }
}

/// Runs a command to its end.
pub(crate) fn run(cli: Cli) -> Result<(), Failure> {
    let environment = environment();
    let source = Source {
        file: cli.config.as_deref(),
        environment: &environment,
    };
    let command = cli.command.unwrap_or_else(|| {
        Command::Dev(DevArgs {
            data: "wyd-data".into(),
        })
    });
    raise_file_limit();
    // Two TLS libraries' providers may be linked; the choice must not depend on who asks first.
    let chosen = rustls::crypto::aws_lc_rs::default_provider().install_default();
    debug_assert!(chosen.is_ok(), "nobody chose before");
    match command {
        Command::Dev(args) => wait(command::dev::run(source, args)),
        Command::Gateway => wait(command::gateway::run(source)),
        Command::Worker(args) => wait(command::worker::run(source, args)),
        Command::Migrate => wait(command::migrate::run(source)),
        Command::Check(args) => wait(command::check::run(source, &args)),
        Command::Config(args) => command::config::run(source, &args),
        Command::Token(args) => command::token::run(source, &args),
        Command::Dlq(args) => wait(command::dlq::run(source, args)),
        Command::User(args) => wait(command::user::run(source, args)),
    }
}

/// Returns the environment; what is not text cannot be a setting, and is left out.
fn environment() -> Environment {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// Where the configuration comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) file: Option<&'a Path>,
    pub(crate) environment: &'a Environment,
}

impl Source<'_> {
    /// Loads the configuration over `defaults`, unchecked.
    pub(crate) fn load(self, defaults: &Config) -> Result<Config, Failure> {
        load(defaults, self.file, self.environment)
            .map_err(|errors| Failure::Configuration(errors.0))
    }

    /// Loads and checks the configuration, and starts logging by it.
    pub(crate) fn start(self, defaults: &Config, role: Role) -> Result<Arc<Config>, Failure> {
        let config = self.load(defaults)?;
        let report = check(&config, role);
        if !report.errors.is_empty() {
            return Err(Failure::Configuration(report.errors));
        }
        shared::telemetry::start(&config.telemetry);
        for warning in report.warnings {
            tracing::warn!(warning, "configuration");
        }
        Ok(Arc::new(config))
    }
}

/// Hears SIGTERM and SIGINT: the first stops, the second hurries.
pub(crate) struct Signals {
    /// Somebody wants the process to end.
    pub(crate) stop: CancellationToken,
    /// Somebody wants it to end soon.
    pub(crate) hurry: CancellationToken,
}

impl Signals {
    /// Starts hearing.
    pub(crate) fn hear() -> Result<Self, Failure> {
        use tokio::signal::unix::{SignalKind, signal};
        let cannot =
            |error: std::io::Error| Failure::Other(format!("signals cannot be heard: {error}"));
        let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
        let signals = Self {
            stop: CancellationToken::new(),
            hurry: CancellationToken::new(),
        };
        let (stop, hurry) = (signals.stop.clone(), signals.hurry.clone());
        tokio::spawn(async move {
            for token in [stop, hurry] {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                token.cancel();
            }
        });
        Ok(signals)
    }
}

fn wait(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime =
        runtime.map_err(|error| Failure::Other(format!("runtime cannot start: {error}")))?;
    runtime.block_on(command)
}

/// Every connection is an open file; the soft limit of most systems is far below the hard one.
fn raise_file_limit() {
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        eprintln!("wyd: the limit of open files could not be raised: {error}");
    }
}
