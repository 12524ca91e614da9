//! Real `wyd` processes: started, waited for, killed, stopped; their logs shown when a test fails.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

/// How long a process may take to get ready or to end.
const PROCESS_TIMEOUT: Duration = Duration::from_secs(60);
/// Lines of a log that a failed test shows.
const LOG_LINES_SHOWN: usize = 60;

/// Processes that belong together: one folder, one environment.
#[derive(Debug)]
pub(crate) struct Cluster {
    folder: TempDir,
    environment: BTreeMap<&'static str, String>,
    /// Everything of the configuration but the two addresses.
    configuration: String,
}

/// One `wyd` process.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    arguments: Vec<String>,
    /// Address of its public port; of a worker, an address nobody listens at.
    pub(crate) port: u16,
    pub(crate) internal_port: u16,
    config: PathBuf,
    log: PathBuf,
    environment: BTreeMap<&'static str, String>,
    child: Child,
}

impl Cluster {
    /// Prepares a cluster. `configuration` is TOML without the addresses.
    pub(crate) fn new(environment: BTreeMap<&'static str, String>, configuration: &str) -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            environment,
            configuration: configuration.to_owned(),
        }
    }

    /// Runs a command to its end, which must be success.
    pub(crate) async fn run(&self, name: &str, arguments: &[&str]) {
        let mut process = self.start(name, arguments);
        let status = process.ended().await;
        assert!(status.success(), "wyd {name} ended with {status}");
    }

    /// Starts a process.
    pub(crate) fn start(&self, name: &str, arguments: &[&str]) -> Process {
        let port = free_port();
        let internal_port = free_port();
        let config = self.folder.path().join(format!("{name}.toml"));
        let addresses = format!(
            "listen = \"127.0.0.1:{port}\"\ninternal_listen = \"127.0.0.1:{internal_port}\"\n"
        );
        std::fs::write(&config, addresses + &self.configuration).unwrap();
        let log = self.folder.path().join(format!("{name}.log"));
        let arguments: Vec<String> = arguments.iter().map(|text| (*text).to_owned()).collect();
        let child = spawn(&arguments, &config, &log, &self.environment);
        Process {
            name: name.to_owned(),
            arguments,
            port,
            internal_port,
            config,
            log,
            environment: self.environment.clone(),
            child,
        }
    }
}

impl Process {
    /// Waits until `/readyz` says that traffic may come.
    pub(crate) async fn ready(&mut self) {
        let url = format!("http://127.0.0.1:{}/readyz", self.internal_port);
        let deadline = Instant::now() + PROCESS_TIMEOUT;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("{} ended with {status}", self.name);
            }
            let answer = timeout(Duration::from_secs(2), reqwest::get(&url)).await;
            if matches!(answer, Ok(Ok(response)) if response.status().is_success()) {
                return;
            }
            assert!(Instant::now() < deadline, "{} is not ready", self.name);
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Kills it as `kill -9` does: no chance to clean up.
    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// Starts it again at the same addresses, after a kill.
    pub(crate) fn restart(&mut self) {
        self.child = spawn(&self.arguments, &self.config, &self.log, &self.environment);
    }

    /// Asks it to stop, by SIGTERM, and returns how it ended.
    pub(crate) async fn terminate(&mut self) -> ExitStatus {
        let pid = self.child.id().expect("a process that runs");
        let told = Command::new("sh")
            .args(["-c", &format!("kill -TERM {pid}")])
            .status()
            .await
            .unwrap();
        assert!(told.success(), "{} was gone already", self.name);
        self.ended().await
    }

    async fn ended(&mut self) -> ExitStatus {
        timeout(PROCESS_TIMEOUT, self.child.wait())
            .await
            .unwrap_or_else(|_| panic!("{} does not end", self.name))
            .unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
            eprintln!("--- log of {}\n{}", self.name, shown.join("\n"));
        }
    }
}

fn spawn(
    arguments: &[String],
    config: &Path,
    log: &Path,
    environment: &BTreeMap<&'static str, String>,
) -> Child {
    let wyd = std::env::var("WYD_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_wyd").to_owned());
    // Appended, so that a restarted process keeps the log of its first life.
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(log)
        .unwrap();
    Command::new(&wyd)
        .args(arguments)
        .arg("--config")
        .arg(config)
        // Nothing but what the test gives; PATH for the loader's sake.
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs(environment)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {wyd}: {error}"))
}

/// A port that is free, and stays so while its process is down for a restart: it is below the
/// range that Linux gives to outgoing connections, of which a test makes hundreds.
pub(crate) fn free_port() -> u16 {
    loop {
        let [high, low, ..] = Uuid::new_v4().into_bytes();
        let port = 10_000 + u16::from_be_bytes([high, low]) % 20_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
