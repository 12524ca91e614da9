//! Replays a conversation through a cluster and checks every member's view and the archive.
//!
//! One client a person, spread over the gateways, in all the rooms they speak in. Each line is
//! published by its author, and sent again with the same key until it is acknowledged. `person`
//! is one client's loop, `archive` reads the archive back, `ledger` judges, `report` tells.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

mod archive;
pub mod conversation;
pub mod ledger;
mod person;
pub mod report;

use crate::client::{Client, ClientOptions, Endpoint, TokenSigner};
use conversation::{Conversation, Shape};
use ledger::RoomLedger;
use report::Report;

/// How a conversation is replayed.
#[derive(Debug, Clone)]
pub struct ReplayOptions {
    /// The gateways; people are spread over them.
    pub endpoints: Vec<Endpoint>,
    /// The gateways that are asked for the archive; empty: it is not checked.
    pub archive_endpoints: Vec<Endpoint>,
    /// The server's token secret.
    pub secret: String,
    /// Namespace of the rooms' channels.
    pub namespace: String,
    /// Appended to the rooms' names, so that a run has channels of its own.
    pub suffix: String,
    /// Multiple of the conversation's own speed.
    pub speed: f64,
    /// Clients that connect at a time.
    pub connects_max: usize,
    /// How long an answer to a message may take before it is sent again.
    pub publish_timeout: Duration,
    /// How long members and archive may take to have everything after the last message.
    pub quiesce: Duration,
    /// How long all of it may take.
    pub timeout: Duration,
}

impl ReplayOptions {
    /// The usual options for these gateways.
    pub fn new(endpoints: Vec<Endpoint>, secret: &str, namespace: &str) -> Self {
        Self {
            archive_endpoints: endpoints.clone(),
            endpoints,
            secret: secret.to_owned(),
            namespace: namespace.to_owned(),
            suffix: String::new(),
            speed: 100.0,
            connects_max: 32,
            publish_timeout: Duration::from_secs(5),
            quiesce: Duration::from_secs(60),
            timeout: Duration::from_secs(600),
        }
    }
}

/// How far a replay is; a test that breaks things chooses its moment by it.
#[derive(Debug, Default)]
pub struct Progress {
    subscribed: AtomicUsize,
    acknowledged: AtomicUsize,
    finished: AtomicUsize,
    reconnects: AtomicUsize,
    retries: AtomicUsize,
}

impl Progress {
    /// People whose rooms are all subscribed.
    pub fn subscribed(&self) -> usize {
        self.subscribed.load(Ordering::Relaxed)
    }

    /// Messages that were acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Connections that were opened after a loss.
    pub fn reconnects(&self) -> usize {
        self.reconnects.load(Ordering::Relaxed)
    }

    /// Messages that were sent again.
    pub fn retries(&self) -> usize {
        self.retries.load(Ordering::Relaxed)
    }

    fn finished(&self) -> usize {
        self.finished.load(Ordering::Relaxed)
    }
}

/// Reads the conversation from the file, or makes one where there is none, and says so.
///
/// # Errors
/// When the file is there and cannot be understood.
pub fn conversation_from(
    file: Option<&Path>,
    shape: &Shape,
    limit: Option<usize>,
) -> anyhow::Result<Conversation> {
    match file {
        Some(file) if file.exists() => Conversation::read(file, limit),
        Some(file) => {
            tracing::warn!(
                file = %file.display(),
                seed = shape.seed,
                "no such file: replaying a made-up conversation"
            );
            Conversation::generate(shape, limit)
        }
        None => Conversation::generate(shape, limit),
    }
}

/// What everybody in a replay shares.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) options: ReplayOptions,
    pub(crate) conversation: Arc<Conversation>,
    /// Makes this run's idempotency keys its own.
    pub(crate) run: String,
    pub(crate) rooms: Vec<Mutex<RoomLedger>>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) curtain: CancellationToken,
}

impl Stage {
    pub(crate) fn channel(&self, room: usize) -> String {
        let name = &self.conversation.rooms[room].name;
        format!("{}:{name}{}", self.options.namespace, self.options.suffix)
    }

    fn all_rooms(&self, holds: impl Fn(&RoomLedger) -> bool) -> bool {
        self.rooms.iter().all(|room| holds(&room.lock()))
    }
}

/// One replay.
#[derive(Debug)]
pub struct Replay {
    stage: Arc<Stage>,
}

impl Replay {
    /// Prepares a replay; nothing connects yet.
    pub fn new(options: ReplayOptions, conversation: Conversation) -> Self {
        let conversation = Arc::new(conversation);
        let rooms = (0..conversation.rooms.len())
            .map(|room| Mutex::new(RoomLedger::new(Arc::clone(&conversation), room)))
            .collect();
        Self {
            stage: Arc::new(Stage {
                options,
                conversation,
                run: uuid::Uuid::new_v4().simple().to_string(),
                rooms,
                progress: Arc::default(),
                curtain: CancellationToken::new(),
            }),
        }
    }

    /// How far it is, while it runs.
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.stage.progress)
    }

    /// Plays the conversation and checks everything.
    ///
    /// # Errors
    /// When not everybody gets into their rooms: what comes after that is in the report.
    pub async fn run(self) -> anyhow::Result<Report> {
        let stage = self.stage;
        let deadline = Instant::now() + stage.options.timeout;
        let signer = TokenSigner::new(&stage.options.secret);
        let (begin, begun) = tokio::sync::watch::channel(None);
        let mut people = spawn_people(&stage, &signer, &begun)?;

        let outcome = async {
            everybody_in(&stage, deadline).await?;
            let start = Instant::now();
            begin.send_replace(Some(start));
            everything_said(&stage, deadline).await;
            let said_in = start.elapsed();
            everything_seen(&stage, deadline).await;
            let archives = archive::check(&stage, &signer, deadline).await?;
            anyhow::Ok((said_in, archives))
        }
        .await;

        stage.curtain.cancel();
        while let Some(ended) = people.join_next().await {
            ended.context("a client's task panicked")?;
        }
        let (said_in, archives) = outcome?;
        let stage = Arc::into_inner(stage).context("a client's task outlived the replay")?;
        Ok(Report::new(stage, said_in, archives))
    }
}

fn spawn_people(
    stage: &Arc<Stage>,
    signer: &TokenSigner,
    begun: &tokio::sync::watch::Receiver<Option<Instant>>,
) -> anyhow::Result<JoinSet<()>> {
    let options = Arc::new(ClientOptions::new(stage.options.endpoints.clone()));
    let door = Arc::new(tokio::sync::Semaphore::new(stage.options.connects_max));
    let mut people = JoinSet::new();
    for (number, person) in stage.conversation.people.iter().enumerate() {
        // Longer than any replay may take.
        let token = signer.sign(&person.name, stage.options.timeout * 2)?;
        let client = Client::new(Arc::clone(&options), token, number);
        let person = person::PersonTask::new(Arc::clone(stage), number, client, begun.clone());
        people.spawn(person.run(Arc::clone(&door)));
    }
    Ok(people)
}

async fn everybody_in(stage: &Stage, deadline: Instant) -> anyhow::Result<()> {
    let everybody = stage.conversation.people.len();
    wait_until(deadline, || stage.progress.subscribed() >= everybody).await;
    let inside = stage.progress.subscribed();
    anyhow::ensure!(
        inside == everybody,
        "only {inside} of {everybody} clients got into their rooms in time"
    );
    Ok(())
}

async fn everything_said(stage: &Stage, deadline: Instant) {
    let everybody = stage.conversation.people.len();
    wait_until(deadline, || stage.progress.finished() >= everybody).await;
}

async fn everything_seen(stage: &Stage, deadline: Instant) {
    let deadline = deadline.min(Instant::now() + stage.options.quiesce);
    wait_until(deadline, || stage.all_rooms(RoomLedger::is_quiet)).await;
}

/// Waits for a condition; what became of it is judged by the caller.
async fn wait_until(deadline: Instant, mut is_true: impl FnMut() -> bool) {
    let poll = async {
        while !is_true() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    let left = deadline.saturating_duration_since(Instant::now());
    // The report says what is missing at the deadline.
    drop(timeout(left, poll).await);
}
