//! One person of a replay: reads their rooms, says their lines, one at a time, until each is
//! acknowledged.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::value::RawValue;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::{Instant, Sleep, sleep_until};

use super::Stage;
use super::ledger::Acknowledgement;
use crate::client::{Client, ErrorReply, Event};

/// How long a person waits after an error that may pass, at most.
const RETRY_WAIT_MAX: Duration = Duration::from_millis(500);
/// A moment that never comes, for the timer of a person who has nothing to do but listen.
const NEVER: Duration = Duration::from_secs(86_400);

/// One client's loop.
pub(crate) struct PersonTask {
    stage: Arc<Stage>,
    number: usize,
    client: Client,
    rooms: Vec<RoomSeat>,
    /// Which of the person's lines is next.
    next_line: usize,
    in_flight: Option<InFlight>,
    begun: watch::Receiver<Option<Instant>>,
    start: Option<Instant>,
    was_connected: bool,
    was_everywhere: bool,
    timer: Pin<Box<Sleep>>,
}

/// The person's place in a room.
struct RoomSeat {
    room: usize,
    channel: Arc<str>,
    /// Number of the person among the room's members.
    member: usize,
    /// True while subscribed: the server lets only subscribers publish.
    is_live: bool,
}

/// A line that is not acknowledged yet.
struct InFlight {
    line: usize,
    /// True while a reply is waited for, false between tries.
    is_asked: bool,
    /// The tries on this connection: an answer to any of them is the line's answer.
    requests: Vec<u32>,
    /// When the reply is overdue, or the next try is due.
    wakes_at: Instant,
    tries: usize,
}

impl PersonTask {
    pub(crate) fn new(
        stage: Arc<Stage>,
        number: usize,
        client: Client,
        begun: watch::Receiver<Option<Instant>>,
    ) -> Self {
        let rooms = stage.conversation.people[number]
            .rooms
            .iter()
            .map(|room| RoomSeat {
                room: *room,
                channel: stage.channel(*room).into(),
                member: stage.conversation.rooms[*room]
                    .members
                    .iter()
                    .position(|member| *member == number)
                    .expect("a person's rooms have the person as a member"),
                is_live: false,
            })
            .collect();
        Self {
            stage,
            number,
            client,
            rooms,
            next_line: 0,
            in_flight: None,
            begun,
            start: None,
            was_connected: false,
            was_everywhere: false,
            timer: Box::pin(sleep_until(Instant::now() + NEVER)),
        }
    }

    /// Lives until the curtain falls, or the server says not to come back.
    pub(crate) async fn run(mut self, door: Arc<Semaphore>) {
        let curtain = self.stage.curtain.clone();
        // Everybody at once would be a test of handshakes; the door lets a few in at a time.
        let mut at_the_door: Option<SemaphorePermit<'_>> = tokio::select! {
            permit = door.acquire() => permit.ok(),
            () = curtain.cancelled() => return,
        };
        for seat in &self.rooms {
            self.client.subscribe(&seat.channel);
        }
        loop {
            let event = tokio::select! {
                // All branches are cancel safe: the client keeps what is half done.
                event = self.client.next() => match event {
                    Some(event) => Some(event),
                    None => return,
                },
                () = self.timer.as_mut() => None,
                changed = self.begun.changed(), if self.start.is_none() => {
                    self.start = changed.ok().and_then(|()| *self.begun.borrow());
                    None
                }
                () = curtain.cancelled() => return,
            };
            let mut next = event;
            while let Some(event) = next {
                self.handle(event);
                next = self.client.buffered();
            }
            if self.was_everywhere {
                at_the_door.take();
            }
            self.act(Instant::now());
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Publication(publication) => {
                if let Some(seat) = self.seat(&publication.channel) {
                    let (room, member) = (seat.room, seat.member);
                    let mut ledger = self.stage.rooms[room].lock();
                    ledger.delivered(member, &publication, Instant::now());
                }
            }
            Event::Reply { id, outcome } => self.answered(id, outcome),
            Event::Subscribed {
                channel,
                from,
                recovered,
                position,
            } => {
                if let Some(seat) = self.seat(&channel) {
                    seat.is_live = true;
                    let (room, member) = (seat.room, seat.member);
                    self.stage.rooms[room].lock().subscribed(
                        member,
                        from.as_ref(),
                        recovered,
                        &position,
                    );
                }
                self.count_when_everywhere();
            }
            Event::Connected { .. } => {
                if std::mem::replace(&mut self.was_connected, true) {
                    let reconnects = &self.stage.progress.reconnects;
                    reconnects.fetch_add(1, Ordering::Relaxed);
                }
            }
            Event::Disconnected {
                code,
                reason,
                is_terminal,
            } => self.disconnected(code, &reason, is_terminal),
            Event::ConnectFailed { reason } => {
                tracing::debug!(person = self.number, reason, "connect failed");
            }
            Event::Unsubscribed { channel, code, .. } => {
                tracing::debug!(person = self.number, %channel, code, "unsubscribed");
                if let Some(seat) = self.seat(&channel) {
                    seat.is_live = false;
                }
            }
            Event::SubscribeFailed { channel, error } => {
                tracing::warn!(person = self.number, %channel, %error, "subscribe failed");
            }
        }
    }

    fn seat(&mut self, channel: &str) -> Option<&mut RoomSeat> {
        self.rooms.iter_mut().find(|seat| &*seat.channel == channel)
    }

    fn count_when_everywhere(&mut self) {
        let is_everywhere = self.rooms.iter().all(|seat| seat.is_live);
        if is_everywhere && !std::mem::replace(&mut self.was_everywhere, true) {
            let subscribed = &self.stage.progress.subscribed;
            subscribed.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn disconnected(&mut self, code: u16, reason: &str, is_terminal: bool) {
        if is_terminal {
            tracing::warn!(person = self.number, code, reason, "disconnected for good");
        } else {
            tracing::debug!(person = self.number, code, reason, "disconnected");
        }
        for seat in &mut self.rooms {
            seat.is_live = false;
        }
        if let Some(in_flight) = &mut self.in_flight {
            // The outcome is unknown: it is sent again with the same key.
            in_flight.is_asked = false;
            in_flight.requests.clear();
            in_flight.wakes_at = Instant::now();
        }
    }

    /// The answer to the line in flight; a late one to an earlier try is as good.
    fn answered(&mut self, id: u32, outcome: Result<Option<Box<RawValue>>, ErrorReply>) {
        let Some(in_flight) = &mut self.in_flight else {
            return;
        };
        if !in_flight.requests.contains(&id) {
            // An earlier line's second answer.
            return;
        }
        let is_latest = in_flight.requests.last() == Some(&id);
        let line = in_flight.line;
        match outcome {
            Err(error) if error.temporary => {
                if is_latest {
                    let wait = RETRY_WAIT_MAX.mul_f64(rand::random::<f64>());
                    in_flight.is_asked = false;
                    in_flight.wakes_at = Instant::now() + wait;
                }
            }
            Err(error) => {
                self.room_of(line).lock().refused(line, &error.to_string());
                self.next_line();
            }
            Ok(data) => {
                let text = data.as_deref().map(RawValue::get).unwrap_or("null");
                match serde_json::from_str::<Acknowledgement>(text) {
                    Ok(answer) => self.room_of(line).lock().acknowledged(line, answer),
                    Err(error) => {
                        let why = format!("answer {text} cannot be read: {error}");
                        self.room_of(line).lock().refused(line, &why);
                    }
                }
                let acknowledged = &self.stage.progress.acknowledged;
                acknowledged.fetch_add(1, Ordering::Relaxed);
                self.next_line();
            }
        }
    }

    fn room_of(&self, line: usize) -> &parking_lot::Mutex<super::RoomLedger> {
        &self.stage.rooms[self.stage.conversation.lines[line].room]
    }

    fn next_line(&mut self) {
        self.in_flight = None;
        self.next_line += 1;
        let lines = &self.stage.conversation.people[self.number].lines;
        if self.next_line == lines.len() {
            let finished = &self.stage.progress.finished;
            finished.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Says what is due, and sets the timer to what comes next.
    fn act(&mut self, now: Instant) {
        self.take_due_line(now);
        self.send_due_line(now);
        let wakes_at = match &self.in_flight {
            // Without a seat in the room only an event helps, not the time.
            Some(in_flight) if in_flight.is_asked || self.may_send(in_flight.line) => {
                in_flight.wakes_at
            }
            Some(_) => now + NEVER,
            None => self.next_due().unwrap_or(now + NEVER),
        };
        if self.timer.deadline() != wakes_at {
            self.timer.as_mut().reset(wakes_at);
        }
    }

    /// When the next line is to be said.
    fn next_due(&self) -> Option<Instant> {
        let line = *self.stage.conversation.people[self.number]
            .lines
            .get(self.next_line)?;
        let at = self.stage.conversation.lines[line].at;
        Some(self.start? + at.div_f64(self.stage.options.speed))
    }

    fn take_due_line(&mut self, now: Instant) {
        let is_due = self.next_due().is_some_and(|due| due <= now);
        if self.in_flight.is_none() && is_due {
            let lines = &self.stage.conversation.people[self.number].lines;
            self.in_flight = Some(InFlight {
                line: lines[self.next_line],
                is_asked: false,
                requests: Vec::new(),
                wakes_at: now,
                tries: 0,
            });
        }
    }

    fn may_send(&self, line: usize) -> bool {
        let room = self.stage.conversation.lines[line].room;
        let seat = self.rooms.iter().find(|seat| seat.room == room);
        self.client.is_connected() && seat.is_some_and(|seat| seat.is_live)
    }

    fn send_due_line(&mut self, now: Instant) {
        let Some(in_flight) = &self.in_flight else {
            return;
        };
        let line = in_flight.line;
        if in_flight.wakes_at > now || !self.may_send(line) {
            return;
        }
        let body = self.send_body(line);
        // Noted before it goes out: the publication may come back at once.
        self.room_of(line).lock().sent(line, now);
        let request = self.client.rpc("message.send", &body);
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.tries += 1;
            if in_flight.tries > 1 {
                self.stage.progress.retries.fetch_add(1, Ordering::Relaxed);
            }
            in_flight.is_asked = request.is_some();
            in_flight.requests.extend(request);
            in_flight.wakes_at = now + self.stage.options.publish_timeout;
        }
    }

    fn send_body(&self, line: usize) -> Box<RawValue> {
        #[derive(serde::Serialize)]
        struct Body<'a> {
            channel: &'a str,
            data: &'a RawValue,
            idempotency_key: String,
        }
        let said = &self.stage.conversation.lines[line];
        let channel = self.stage.channel(said.room);
        let data: &RawValue =
            serde_json::from_str(&said.data).expect("a line's data was made as JSON");
        serde_json::value::to_raw_value(&Body {
            channel: &channel,
            data,
            idempotency_key: format!("{}-{}", self.stage.run, line + 1),
        })
        .expect("strings and JSON become JSON")
    }
}
