//! Connections to Redis: how one is made (here alone, so that Sentinel and Cluster find one place)
//! and [`Link`], one that is kept up for ever.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use redis::aio::{AsyncPushSender, MultiplexedConnection};
use redis::{
    AsyncConnectionConfig, Client, Cmd, IntoConnectionInfo, Pipeline, ProtocolVersion, RedisError,
    ServerErrorKind, Value,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::scripts::{Call, Script};
use crate::broker::BrokerError;

/// How long establishing a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a call waits for a link that is just being made.
const LINK_WAIT: Duration = Duration::from_millis(300);
/// How often, and how soon, a call that may be carried out twice is made again.
const ASK_AGAIN: usize = 4;
const ASK_PAUSE: Duration = Duration::from_millis(50);
/// Time between two pings of an idle link.
const PING_EVERY: Duration = Duration::from_secs(1);
/// Pauses between attempts to connect: doubled from the first to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Knows how to reach Redis.
#[derive(Clone)]
pub(crate) struct Connector {
    client: Client,
    name: Arc<str>,
    command_timeout: Duration,
}

impl Connector {
    /// Reads the address; `name` is what `CLIENT LIST` shows, with a suffix for each connection.
    ///
    /// # Errors
    /// [`BrokerError::Incompatible`] when the address is none.
    pub(crate) fn new(
        url: &str,
        name: &str,
        command_timeout: Duration,
    ) -> Result<Self, BrokerError> {
        // The address may hold a password: the error names the form, never the address.
        let bad = |error: RedisError| {
            BrokerError::Incompatible(format!(
                "the Redis address is not of the form redis://host:port or rediss://…: {error}"
            ))
        };
        let info = url.into_connection_info().map_err(bad)?;
        // RESP3 lets bells and replies share a connection.
        let settings = info
            .redis_settings()
            .clone()
            .set_protocol(ProtocolVersion::RESP3);
        let client = Client::open(info.set_redis_settings(settings)).map_err(bad)?;
        Ok(Self {
            client,
            name: name.into(),
            command_timeout,
        })
    }

    /// Opens a connection for short commands.
    pub(crate) async fn open(&self, role: &str) -> Result<MultiplexedConnection, RedisError> {
        self.open_with(role, self.config()).await
    }

    /// Opens a connection whose pushes go to `sender`.
    pub(crate) async fn open_with_pushes(
        &self,
        role: &str,
        sender: impl AsyncPushSender,
    ) -> Result<MultiplexedConnection, RedisError> {
        self.open_with(role, self.config().set_push_sender(sender))
            .await
    }

    /// Opens a connection for commands that block on the server for up to `block`.
    pub(crate) async fn open_blocking(
        &self,
        role: &str,
        block: Duration,
    ) -> Result<MultiplexedConnection, RedisError> {
        // The driver's own default of 500 ms would cut a blocking read short.
        let config = self
            .config()
            .set_response_timeout(Some(block + self.command_timeout));
        self.open_with(role, config).await
    }

    fn config(&self) -> AsyncConnectionConfig {
        AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(self.command_timeout))
    }

    async fn open_with(
        &self,
        role: &str,
        config: AsyncConnectionConfig,
    ) -> Result<MultiplexedConnection, RedisError> {
        let mut connection = self
            .client
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        let name = format!("wyd:{role}:{}", self.name);
        let named: Result<(), _> = redis::cmd("CLIENT")
            .arg("SETNAME")
            .arg(name)
            .query_async(&mut connection)
            .await;
        match named {
            // A user without the right to it can do without a name.
            Err(error) if !matches!(error.kind(), redis::ErrorKind::Server(_)) => Err(error),
            _ => Ok(connection),
        }
    }
}

/// A connection that is made again whenever it breaks; clones share it.
#[derive(Clone)]
pub(crate) struct Link {
    current: watch::Receiver<Option<Live>>,
    broken: mpsc::Sender<u64>,
}

#[derive(Clone)]
struct Live {
    generation: u64,
    connection: MultiplexedConnection,
}

impl Link {
    /// Starts a link; it is made in the background and ends with `cancel`.
    pub(crate) fn start(
        connector: Connector,
        role: &'static str,
        tasks: &TaskTracker,
        cancel: CancellationToken,
    ) -> Self {
        let (publish, current) = watch::channel(None);
        // One report is enough: more about the same connection say nothing new.
        let (broken, reports) = mpsc::channel(1);
        let keeper = Keeper {
            connector,
            role,
            publish,
            reports,
        };
        tasks.spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = keeper.run() => {}
            }
        });
        Self { current, broken }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.current.borrow().is_some()
    }

    /// Sends one call and returns its answer.
    pub(crate) async fn call(&self, call: Call) -> Result<Value, BrokerError> {
        let mut answers = self.call_all(&[call]).await?;
        answers.pop().unwrap_or_else(|| Err(missing_answer()))
    }

    /// Sends a call that may be carried out twice: when the connection breaks, again over the next.
    pub(crate) async fn ask(&self, call: Call) -> Result<Value, BrokerError> {
        let mut answer = self.call_all(std::slice::from_ref(&call)).await;
        for _ in 0..ASK_AGAIN {
            match &answer {
                Err(error) if is_broken(error) => tokio::time::sleep(ASK_PAUSE).await,
                _ => break,
            }
            answer = self.call_all(std::slice::from_ref(&call)).await;
        }
        answer?.pop().unwrap_or_else(|| Err(missing_answer()))
    }

    /// Sends calls in one go and returns an answer for each. Scripts that Redis has forgotten are
    /// loaded and called again, after the rest.
    pub(crate) async fn call_all(
        &self,
        calls: &[Call],
    ) -> Result<Vec<Result<Value, BrokerError>>, BrokerError> {
        if calls.is_empty() {
            return Ok(Vec::new());
        }
        let all: Vec<&Call> = calls.iter().collect();
        let mut answers = self.send(&all).await?;
        let forgotten: Vec<usize> = (0..calls.len())
            .filter(|i| is_forgotten(&answers[*i]))
            .collect();
        if !forgotten.is_empty() {
            let again: Vec<&Call> = forgotten.iter().map(|i| &calls[*i]).collect();
            self.load_scripts_of(&again).await?;
            for (i, answer) in forgotten.into_iter().zip(self.send(&again).await?) {
                answers[i] = answer;
            }
        }
        Ok(answers.into_iter().map(checked).collect())
    }

    /// Sends commands in one go and returns each answer as it is, errors of the server included.
    pub(crate) async fn pipeline(&self, pipeline: &Pipeline) -> Result<Vec<Value>, BrokerError> {
        let mut live = self.live().await?;
        let count = pipeline.cmd_iter().count();
        match live
            .connection
            .send_packed_commands(pipeline, 0, count)
            .await
        {
            Ok(answers) if answers.len() == count => {
                if answers.iter().any(is_demoted) {
                    self.report(live.generation);
                }
                Ok(answers)
            }
            Ok(_) => Err(missing_answer()),
            Err(error) => {
                // A timeout too: an answer that comes later must not be taken for another's, and
                // a connection that is dead without a word would time out for ever.
                self.report(live.generation);
                Err(BrokerError::Unavailable(error.into()))
            }
        }
    }

    pub(crate) async fn load_scripts_of(&self, calls: &[&Call]) -> Result<(), BrokerError> {
        let loads = loads_of(calls);
        for answer in self.pipeline(&loads).await? {
            checked(answer)?;
        }
        Ok(())
    }

    async fn send(&self, calls: &[&Call]) -> Result<Vec<Value>, BrokerError> {
        let mut pipeline = redis::pipe();
        for call in calls {
            pipeline.add_command(call.command.clone());
        }
        self.pipeline(&pipeline).await
    }

    async fn live(&self) -> Result<Live, BrokerError> {
        let mut current = self.current.clone();
        let found = tokio::time::timeout(LINK_WAIT, current.wait_for(Option::is_some)).await;
        let live = match found {
            Ok(Ok(live)) => live.clone(),
            Ok(Err(_)) | Err(_) => None,
        };
        live.ok_or_else(|| BrokerError::Unavailable("Redis is not reachable".into()))
    }

    fn report(&self, generation: u64) {
        if self.broken.try_send(generation).is_err() {
            tracing::trace!(generation, "a report is being read already");
        }
    }
}

/// Makes the commands that load each script of some calls once.
fn loads_of(calls: &[&Call]) -> Pipeline {
    let mut loads = redis::pipe();
    let mut seen: Vec<&'static Script> = Vec::new();
    for script in calls.iter().filter_map(|call| call.script) {
        if !seen.iter().any(|known| std::ptr::eq(*known, script)) {
            seen.push(script);
            loads.add_command(script.load());
        }
    }
    loads
}

/// Makes a link's connection, watches it, and makes it again.
struct Keeper {
    connector: Connector,
    role: &'static str,
    publish: watch::Sender<Option<Live>>,
    reports: mpsc::Receiver<u64>,
}

impl Keeper {
    async fn run(mut self) {
        let mut backoff = Backoff::default();
        for generation in 1.. {
            let connection = loop {
                match self.connector.open(self.role).await {
                    Ok(connection) => break connection,
                    Err(error) => {
                        backoff.log(self.role, &error);
                        backoff.wait().await;
                    }
                }
            };
            backoff = Backoff::default();
            tracing::debug!(role = self.role, "connected to Redis");
            let live = Live {
                generation,
                connection: connection.clone(),
            };
            self.publish.send_replace(Some(live));
            self.watch(generation, connection).await;
            self.publish.send_replace(None);
            tracing::warn!(role = self.role, "connection to Redis lost");
        }
    }

    /// Returns when the connection is no longer good.
    async fn watch(&mut self, generation: u64, mut connection: MultiplexedConnection) {
        loop {
            tokio::select! {
                report = self.reports.recv() => {
                    // `None`: nobody has the link any more.
                    if report.is_none_or(|reported| reported == generation) {
                        return;
                    }
                }
                () = tokio::time::sleep(PING_EVERY) => {
                    if ping(&mut connection).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

pub(crate) async fn ping(connection: &mut MultiplexedConnection) -> Result<(), RedisError> {
    redis::cmd("PING")
        .query_async::<Value>(connection)
        .await
        .map(drop)
}

/// Pauses between attempts to connect.
pub(crate) struct Backoff {
    pause: Duration,
    is_logged: bool,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            pause: BACKOFF.0,
            is_logged: false,
        }
    }
}

impl Backoff {
    /// Waits, each time longer, with jitter: nodes that lost Redis together do not come back in
    /// step.
    pub(crate) async fn wait(&mut self) {
        let pause = self.pause.mul_f64(rand::rng().random_range(0.5..1.0));
        tokio::time::sleep(pause).await;
        self.pause = (self.pause * 2).min(BACKOFF.1);
    }

    /// Says once, until it succeeds, why connecting failed.
    pub(crate) fn log(&mut self, role: &str, error: &RedisError) {
        if !std::mem::replace(&mut self.is_logged, true) {
            tracing::warn!(role, %error, "cannot connect to Redis");
        }
    }
}

/// Returns an answer, or what an error of the server means.
pub(crate) fn checked(answer: Value) -> Result<Value, BrokerError> {
    match answer {
        // A key of another type was put there by something else, and will still be there later.
        Value::ServerError(error) if error.code() == "WRONGTYPE" => {
            Err(BrokerError::Corrupt(format!("Redis: {error}")))
        }
        Value::ServerError(error) => Err(BrokerError::Unavailable(error.to_string().into())),
        answer => Ok(answer),
    }
}

/// True when a call failed because its connection was cut, not because Redis was slow to answer.
fn is_broken(error: &BrokerError) -> bool {
    match error {
        BrokerError::Unavailable(source) => source
            .downcast_ref::<RedisError>()
            .is_some_and(RedisError::is_connection_dropped),
        _ => false,
    }
}

/// True when Redis does not know the script that was called.
pub(crate) fn is_forgotten(answer: &Value) -> bool {
    is_error(answer, ServerErrorKind::NoScript)
}

/// True when the server is no longer a primary: the name may lead to another one now.
fn is_demoted(answer: &Value) -> bool {
    is_error(answer, ServerErrorKind::ReadOnly) || is_error(answer, ServerErrorKind::MasterDown)
}

fn is_error(answer: &Value, kind: ServerErrorKind) -> bool {
    matches!(answer, Value::ServerError(error) if error.kind() == Some(kind))
}

pub(crate) fn missing_answer() -> BrokerError {
    BrokerError::Unavailable("Redis sent fewer answers than it was asked for".into())
}

/// Makes a call of a plain command.
pub(crate) fn command(name: &str) -> Cmd {
    redis::cmd(name)
}
