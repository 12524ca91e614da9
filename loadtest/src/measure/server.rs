//! The server to measure: one that runs already, or one started for it.

use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use super::http::HttpConnection;
use super::process;
use crate::client::Endpoint;

/// How long a started server may take until it is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(20);
/// Namespace of a started server: ephemeral, open to everybody with a token.
const NAMESPACE: &str = "bench";

/// A server and what is needed to use it.
#[derive(Debug)]
pub struct Server {
    /// Its address.
    pub endpoint: Endpoint,
    /// Its process.
    pub pid: u32,
    /// Its token secret.
    pub secret: String,
    /// A key of its API.
    pub api_key: String,
    /// Namespace that anybody may subscribe in.
    pub namespace: String,
    /// Killed when the server is let go.
    started: Option<Started>,
}

#[derive(Debug)]
struct Started {
    child: Child,
    /// Configuration and log; removed when the server is let go.
    folder: TempDir,
}

impl Server {
    /// Takes a server that runs.
    ///
    /// # Errors
    /// When the process cannot be read.
    pub fn running(
        endpoint: Endpoint,
        pid: u32,
        secret: String,
        api_key: String,
        namespace: String,
    ) -> anyhow::Result<Self> {
        process::check(pid)?;
        Ok(Self {
            endpoint,
            pid,
            secret,
            api_key,
            namespace,
            started: None,
        })
    }

    /// Starts `wyd gateway` on the memory broker and waits until it is ready.
    ///
    /// # Errors
    /// When it does not start; with the end of its log.
    pub async fn start(wyd: &Path) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let (port, internal_port) = free_ports()?;
        let config = folder.path().join("wyd.toml");
        std::fs::write(&config, configuration(port, internal_port))?;
        let log = std::fs::File::create(folder.path().join("log"))?;
        let secret = random_secret();
        let api_key = random_secret();
        let child = Command::new(wyd)
            .arg("gateway")
            .arg("--config")
            .arg(&config)
            .env("JWT_SECRET", &secret)
            .env("WYD_API_KEY", &api_key)
            .env("RUST_LOG", "warn")
            // Nothing of the caller's environment may turn the memory broker into another.
            .env_remove("REDIS_URL")
            .env_remove("KAFKA_BROKERS")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", wyd.display()))?;
        let mut server = Self {
            endpoint: format!("http://127.0.0.1:{port}").parse()?,
            pid: child.id().context("the server ended at once")?,
            secret,
            api_key,
            namespace: NAMESPACE.to_owned(),
            started: Some(Started { child, folder }),
        };
        server.wait_until_ready().await?;
        Ok(server)
    }

    async fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        while !is_ready(&self.endpoint).await {
            if let Some(started) = &mut self.started
                && let Some(status) = started.child.try_wait()?
            {
                bail!("the server ended with {status}: {}", started.log());
            }
            ensure!(Instant::now() < deadline, "the server did not become ready");
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

impl Started {
    fn log(&self) -> String {
        let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

async fn is_ready(endpoint: &Endpoint) -> bool {
    match HttpConnection::open(endpoint).await {
        Ok(mut connection) => matches!(
            connection.get("/readyz").await,
            Ok(status) if status.is_success()
        ),
        Err(_) => false,
    }
}

fn configuration(port: u16, internal_port: u16) -> String {
    format!(
        "listen = \"127.0.0.1:{port}\"\n\
         internal_listen = \"127.0.0.1:{internal_port}\"\n\
         [broker]\n\
         kind = \"memory\"\n\
         [namespaces.{NAMESPACE}]\n\
         authorize = \"public\"\n"
    )
}

/// Two ports that are free now; held together, so that they differ.
fn free_ports() -> std::io::Result<(u16, u16)> {
    let first = TcpListener::bind("127.0.0.1:0")?;
    let second = TcpListener::bind("127.0.0.1:0")?;
    Ok((first.local_addr()?.port(), second.local_addr()?.port()))
}

fn random_secret() -> String {
    format!(
        "{}{}",
        uuid::Uuid::new_v4().simple(),
        uuid::Uuid::new_v4().simple()
    )
}
