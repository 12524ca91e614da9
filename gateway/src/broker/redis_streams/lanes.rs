//! Publishing in order: every channel has its lane, a lane has one batch under way.
//!
//! What is called while a batch is under way becomes the next one, so many publishes share a round
//! trip when there are many, and one waits for nothing when it is alone. Calls of one channel in
//! one batch travel in a transaction: a script that Redis forgets half way fails for all of them
//! or none, and they are called again in their order.

use std::collections::HashMap;
use std::sync::Arc;

use redis::{Pipeline, Value};
use shared::ids::ChannelName;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::link::{Connector, Link, checked, is_forgotten, missing_answer};
use super::scripts::Call;
use crate::broker::BrokerError;

/// Lanes, each with a connection.
const LANES: u16 = 4;
/// Calls that may wait in a lane. A call that finds it full is refused: waiting for room would
/// let later calls pass it.
const QUEUE: usize = 8_192;
/// Calls in one batch; with the largest payloads still only a few megabytes.
const BATCH: usize = 64;

/// Carries calls to Redis, those of one channel in order.
pub(crate) struct Lanes {
    queues: Vec<mpsc::Sender<Waiting>>,
    links: Vec<Link>,
}

/// A call and who waits for its answer.
struct Waiting {
    channel: ChannelName,
    call: Call,
    answer: oneshot::Sender<Result<Value, BrokerError>>,
}

impl Lanes {
    pub(crate) fn start(
        connector: &Connector,
        tasks: &TaskTracker,
        cancel: &CancellationToken,
    ) -> Self {
        let mut lanes = Self {
            queues: Vec::new(),
            links: Vec::new(),
        };
        for _ in 0..LANES {
            let link = Link::start(connector.clone(), "publish", tasks, cancel.clone());
            let (sender, queue) = mpsc::channel(QUEUE);
            let lane = Lane {
                link: link.clone(),
                queue,
            };
            let cancel = cancel.clone();
            tasks.spawn(async move {
                tokio::select! {
                    () = cancel.cancelled() => {}
                    () = lane.run() => {}
                }
            });
            lanes.queues.push(sender);
            lanes.links.push(link);
        }
        lanes
    }

    pub(crate) fn is_up(&self) -> bool {
        self.links.iter().all(Link::is_up)
    }

    /// Queues a call at once and returns what will be its answer.
    ///
    /// # Errors
    /// [`BrokerError::Unavailable`] when too many calls wait.
    pub(crate) fn queue(
        &self,
        partition: u16,
        channel: &ChannelName,
        call: Call,
    ) -> Result<oneshot::Receiver<Result<Value, BrokerError>>, BrokerError> {
        let (answer, receiver) = oneshot::channel();
        let waiting = Waiting {
            channel: channel.clone(),
            call,
            answer,
        };
        self.queues[usize::from(partition % LANES)]
            .try_send(waiting)
            .map_err(|_| BrokerError::Unavailable("too many publishes wait for Redis".into()))?;
        Ok(receiver)
    }
}

struct Lane {
    link: Link,
    queue: mpsc::Receiver<Waiting>,
}

impl Lane {
    async fn run(mut self) {
        let mut batch = Vec::with_capacity(BATCH);
        while self.queue.recv_many(&mut batch, BATCH).await > 0 {
            // Who no longer waits has been told "unknown": better not done than done late.
            batch.retain(|waiting: &Waiting| !waiting.answer.is_closed());
            self.carry(std::mem::take(&mut batch)).await;
        }
    }

    async fn carry(&self, batch: Vec<Waiting>) {
        let all: Vec<usize> = (0..batch.len()).collect();
        let mut answers: Vec<Option<Result<Value, BrokerError>>> =
            batch.iter().map(|_| None).collect();
        let forgotten = self.send(&batch, &all, &mut answers).await;
        if !forgotten.is_empty() {
            let calls: Vec<&Call> = forgotten.iter().map(|i| &batch[*i].call).collect();
            // When loading fails, the second attempt fails and says why.
            if self.link.load_scripts_of(&calls).await.is_ok() {
                self.send(&batch, &forgotten, &mut answers).await;
            }
        }
        for (waiting, answer) in batch.into_iter().zip(answers) {
            let answer = answer.unwrap_or_else(|| Err(missing_answer()));
            // The caller may have gone while its call was under way.
            drop(waiting.answer.send(answer));
        }
    }

    /// Sends some calls of a batch and fills in their answers; returns those whose script Redis
    /// did not know, in order.
    async fn send(
        &self,
        batch: &[Waiting],
        which: &[usize],
        answers: &mut [Option<Result<Value, BrokerError>>],
    ) -> Vec<usize> {
        let groups = by_channel(batch, which);
        let sent = self.link.pipeline(&pipeline_of(batch, &groups)).await;
        let values = match sent {
            Ok(values) => values,
            Err(error) => {
                let error = Arc::new(error);
                for i in which {
                    answers[*i] = Some(Err(BrokerError::Unavailable(Box::new(Arc::clone(&error)))));
                }
                return Vec::new();
            }
        };
        let mut forgotten = Vec::new();
        let mut values = values.into_iter();
        for group in &groups {
            for (i, value) in group.iter().zip(answers_of(group.len(), &mut values)) {
                if is_forgotten(&value) {
                    forgotten.push(*i);
                }
                answers[*i] = Some(checked(value));
            }
        }
        forgotten
    }
}

/// Groups calls by channel, each group in order.
fn by_channel(batch: &[Waiting], which: &[usize]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut group_of: HashMap<&ChannelName, usize> = HashMap::new();
    for i in which {
        let group = *group_of.entry(&batch[*i].channel).or_insert_with(|| {
            groups.push(Vec::new());
            groups.len() - 1
        });
        groups[group].push(*i);
    }
    groups
}

fn pipeline_of(batch: &[Waiting], groups: &[Vec<usize>]) -> Pipeline {
    let mut pipeline = redis::pipe();
    for group in groups {
        let is_transaction = group.len() > 1;
        if is_transaction {
            pipeline.add_command(redis::cmd("MULTI"));
        }
        for i in group {
            pipeline.add_command(batch[*i].call.command.clone());
        }
        if is_transaction {
            pipeline.add_command(redis::cmd("EXEC"));
        }
    }
    pipeline
}

/// Takes the answers of one group from the answers of the pipeline.
fn answers_of(calls: usize, values: &mut impl Iterator<Item = Value>) -> Vec<Value> {
    if calls == 1 {
        return values.next().into_iter().collect();
    }
    // MULTI and every QUEUED say nothing that EXEC does not say.
    match values.nth(calls + 1) {
        Some(Value::Array(answers)) => answers,
        Some(error @ Value::ServerError(_)) => vec![error; calls],
        _ => Vec::new(),
    }
}
