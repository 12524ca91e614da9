//! Reads the archive back through `message.list`, until it has everything or time is up.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use tokio::time::{Instant, sleep, timeout_at};

use super::Stage;
use super::ledger::ArchivedMessage;
use crate::client::{Client, ClientOptions, Endpoint, Event, TokenSigner};

/// Messages asked for in one page.
const PAGE_LIMIT: usize = 500;
/// How long one page may take.
const PAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a room's archive may take when time is up already: a lagging one before it must not
/// keep this one from being read at all.
const LAST_READ_TIMEOUT: Duration = Duration::from_secs(15);
/// Pause before an archive that lags, or a page that failed, is asked again.
const POLL_WAIT: Duration = Duration::from_millis(250);

#[derive(Serialize)]
struct ListRequest<'a> {
    channel: &'a str,
    after: u64,
    limit: usize,
}

#[derive(Deserialize)]
struct ListResult {
    messages: Vec<ArchivedMessage>,
}

/// Checks every room through every archive address; returns how many archives were read.
pub(crate) async fn check(
    stage: &Arc<Stage>,
    signer: &TokenSigner,
    deadline: Instant,
) -> anyhow::Result<usize> {
    let deadline = deadline.min(Instant::now() + stage.options.quiesce);
    for endpoint in &stage.options.archive_endpoints {
        for room in 0..stage.conversation.rooms.len() {
            check_room(stage, signer, endpoint, room, deadline).await?;
        }
    }
    Ok(stage.options.archive_endpoints.len())
}

async fn check_room(
    stage: &Stage,
    signer: &TokenSigner,
    endpoint: &Endpoint,
    room: usize,
    deadline: Instant,
) -> anyhow::Result<()> {
    // A member of the room, so that any rule that lets people read lets this one.
    let member = stage.conversation.rooms[room].members[0];
    let user = &stage.conversation.people[member].name;
    let token = signer.sign(user, stage.options.timeout * 2)?;
    let mut reader = Reader::new(endpoint, token, stage.channel(room));
    let after = stage.rooms[room].lock().baseline();

    let last_moment = deadline.max(Instant::now() + LAST_READ_TIMEOUT);
    let mut rows = Vec::new();
    let failure = loop {
        let failure = match timeout_at(last_moment, reader.read_all(after)).await {
            Ok(Ok(read)) => {
                rows = read;
                None
            }
            Ok(Err(error)) => Some(error),
            Err(_) => Some("no answer in time".to_owned()),
        };
        let is_complete = stage.rooms[room].lock().is_archived(&rows);
        if is_complete || Instant::now() >= deadline {
            break failure;
        }
        sleep(POLL_WAIT).await;
    };
    if let Some(failure) = failure {
        tracing::warn!(%endpoint, room, failure, "archive could not be read");
    }
    stage.rooms[room].lock().archived(&rows);
    Ok(())
}

/// A client that reads one channel's archive.
struct Reader {
    client: Client,
    channel: String,
    is_subscribed: bool,
}

impl Reader {
    fn new(endpoint: &Endpoint, token: String, channel: String) -> Self {
        let options = Arc::new(ClientOptions::new(vec![endpoint.clone()]));
        let mut client = Client::new(options, token, 0);
        client.subscribe(&channel);
        Self {
            client,
            channel,
            is_subscribed: false,
        }
    }

    /// Pages through everything above an offset, from the start each time: an archive that lags
    /// may fill in below what it had.
    async fn read_all(&mut self, mut after: u64) -> Result<Vec<ArchivedMessage>, String> {
        let mut rows: Vec<ArchivedMessage> = Vec::new();
        loop {
            let page = self.read_page(after).await?;
            let Some(last) = page.last() else {
                return Ok(rows);
            };
            if last.offset <= after {
                return Err(format!("a page after {after} ends with {}", last.offset));
            }
            after = last.offset;
            rows.extend(page);
        }
    }

    async fn read_page(&mut self, after: u64) -> Result<Vec<ArchivedMessage>, String> {
        let deadline = Instant::now() + PAGE_TIMEOUT;
        let answer = timeout_at(deadline, self.ask(after))
            .await
            .map_err(|_| "no answer in time".to_owned())??;
        serde_json::from_str::<ListResult>(answer.get())
            .map(|result| result.messages)
            .map_err(|error| format!("a page cannot be read: {error}"))
    }

    async fn ask(&mut self, after: u64) -> Result<Box<RawValue>, String> {
        while !self.is_subscribed {
            self.step().await?;
        }
        let request = to_raw_value(&ListRequest {
            channel: &self.channel,
            after,
            limit: PAGE_LIMIT,
        })
        .map_err(|error| error.to_string())?;
        let asked = self
            .client
            .rpc("message.list", &request)
            .ok_or("not connected")?;
        loop {
            if let Some(Event::Reply { id, outcome }) = self.step().await?
                && id == asked
            {
                return outcome
                    .map_err(|error| error.to_string())?
                    .ok_or_else(|| "empty answer".to_owned());
            }
        }
    }

    async fn step(&mut self) -> Result<Option<Event>, String> {
        let event = self.client.next().await.ok_or("refused for good")?;
        match event {
            Event::Subscribed { .. } => self.is_subscribed = true,
            Event::Disconnected { reason, .. } => {
                self.is_subscribed = false;
                return Err(reason);
            }
            Event::SubscribeFailed { error, .. } => return Err(error.to_string()),
            _ => return Ok(Some(event)),
        }
        Ok(None)
    }
}
