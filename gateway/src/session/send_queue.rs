//! Step 8 of a message's life: what waits to be written to one client, bounded.
//!
//! Whoever has something for a client pushes a finished frame; replies and publications share
//! the one order. A push to an idle connection is written at once by whoever pushes (`flush`):
//! no task is woken for it. Only when the socket takes no more does the session's task wait for
//! it to become writable. Past `bytes_max` the client is too slow: the queue is dropped and the
//! session is told to end (3008). The next step is `transport/websocket.rs`.

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use shared::ids::ChannelName;
use shared::protocol::{Disconnect, Unsubscribe};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::metrics::Metrics;

/// Frames written by one system call at most.
const FRAMES_PER_WRITE: usize = 64;

/// Something a session must learn that is no frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signal {
    /// End the connection.
    Disconnect(Disconnect),
    /// End a subscription: tell the client why and forget the channel.
    Unsubscribe(ChannelName, Unsubscribe),
    /// End every subscription.
    UnsubscribeAll(Unsubscribe),
    /// Finish what is accepted, then end the connection (3001).
    Drain,
}

/// What waits to be written to one client, and what its session must learn.
#[derive(Debug)]
pub struct SendQueue {
    state: Mutex<State>,
    wake: Notify,
    socket: TcpStream,
    bytes_max: usize,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct State {
    frames: VecDeque<Bytes>,
    /// Bytes of the first frame that are written already.
    front_written: usize,
    /// Bytes in `frames` that are not written.
    bytes: usize,
    /// How many of them the metric knows of.
    bytes_reported: usize,
    /// True between the first push and the flush that follows it.
    is_dirty: bool,
    /// The socket took no more; the session's task waits for it.
    is_blocked: bool,
    /// Nothing is taken any more.
    is_closed: bool,
    /// Bounded by the session's subscriptions plus one: each channel ends once.
    signals: Vec<Signal>,
    is_due: bool,
}

/// What a push means for whoever pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// Flush this queue when the batch is done.
    NeedsFlush,
    /// Somebody flushes it already, or nobody will read it.
    Nothing,
}

impl SendQueue {
    /// Makes an empty queue in front of a socket.
    pub fn new(socket: TcpStream, bytes_max: usize, metrics: Arc<Metrics>) -> Self {
        Self {
            state: Mutex::default(),
            wake: Notify::new(),
            socket,
            bytes_max,
            metrics,
        }
    }

    /// Appends a frame.
    pub fn push(&self, frame: Bytes) -> Pushed {
        let mut state = self.state.lock();
        if state.is_closed {
            return Pushed::Nothing;
        }
        // An empty queue takes any frame: one message larger than the bound is not slowness.
        let is_over = state.bytes > 0 && state.bytes + frame.len() > self.bytes_max;
        if is_over {
            self.close_slow(&mut state);
            return Pushed::Nothing;
        }
        state.bytes += frame.len();
        state.frames.push_back(frame);
        let needs_flush = !state.is_dirty && !state.is_blocked;
        state.is_dirty |= needs_flush;
        if needs_flush {
            Pushed::NeedsFlush
        } else {
            Pushed::Nothing
        }
    }

    /// Appends a frame and writes what the socket takes.
    pub fn send(&self, frame: Bytes) {
        if self.push(frame) == Pushed::NeedsFlush {
            self.flush();
        }
    }

    /// Writes what the socket takes now; never waits.
    pub fn flush(&self) {
        let mut state = self.state.lock();
        state.is_dirty = false;
        let is_done = self.write(&mut state);
        if !is_done && !state.is_blocked {
            state.is_blocked = true;
            self.wake.notify_one();
        }
        self.report(&mut state);
    }

    /// Goes on writing after the socket became writable; true when nothing is left.
    pub(crate) fn resume(&self) -> bool {
        let mut state = self.state.lock();
        let is_done = self.write(&mut state);
        state.is_blocked = !is_done;
        self.report(&mut state);
        is_done
    }

    /// True while the socket takes no more.
    pub(crate) fn is_blocked(&self) -> bool {
        self.state.lock().is_blocked
    }

    /// True when everything was written.
    pub(crate) fn is_empty(&self) -> bool {
        self.state.lock().frames.is_empty()
    }

    /// Tells the session something.
    pub fn signal(&self, signal: Signal) {
        let mut state = self.state.lock();
        if !state.signals.contains(&signal) {
            state.signals.push(signal);
        }
        drop(state);
        self.wake.notify_one();
    }

    /// Tells the session that one of its times has come.
    pub(crate) fn tick(&self) {
        self.state.lock().is_due = true;
        self.wake.notify_one();
    }

    /// Takes what the session must learn, and whether a time has come.
    pub(crate) fn take_signals(&self) -> (Vec<Signal>, bool) {
        let mut state = self.state.lock();
        let is_due = std::mem::take(&mut state.is_due);
        (std::mem::take(&mut state.signals), is_due)
    }

    /// Waits until there may be a signal, or a socket to wait for. Cancel safe.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Returns the socket, for reading.
    pub(crate) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Takes nothing more; what waits is dropped unless `is_kept`.
    pub(crate) fn close(&self, is_kept: bool) {
        let mut state = self.state.lock();
        state.is_closed = true;
        if !is_kept {
            state.frames.clear();
            state.front_written = 0;
            state.bytes = 0;
            self.report(&mut state);
        }
    }

    /// Appends the last frame and takes nothing after it.
    pub(crate) fn close_with(&self, frame: Bytes) {
        let mut state = self.state.lock();
        if !state.is_closed {
            state.bytes += frame.len();
            state.frames.push_back(frame);
            state.is_closed = true;
        }
        let is_done = self.write(&mut state);
        state.is_blocked = !is_done;
        self.report(&mut state);
    }

    fn close_slow(&self, state: &mut State) {
        self.metrics.slow_consumers.inc();
        state.is_closed = true;
        // A frame that is half written must stay whole, or the close frame would be read as its
        // rest; everything behind it is dropped.
        let keep = usize::from(state.front_written > 0);
        state.frames.truncate(keep);
        state.bytes = state.frames.iter().map(Bytes::len).sum::<usize>() - state.front_written;
        self.report(state);
        state.signals.push(Signal::Disconnect(Disconnect::SLOW));
        self.wake.notify_one();
    }

    /// Writes until the queue is empty (true) or the socket takes no more (false).
    fn write(&self, state: &mut State) -> bool {
        while !state.frames.is_empty() {
            match self.write_some(state) {
                Ok(written) => state.advance(written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    // The reading side sees the same broken connection and ends the session.
                    state.is_closed = true;
                    state.frames.clear();
                    state.front_written = 0;
                    state.bytes = 0;
                    state
                        .signals
                        .push(Signal::Disconnect(Disconnect::CONNECTION_CLOSED));
                    self.wake.notify_one();
                    return true;
                }
            }
        }
        true
    }

    fn write_some(&self, state: &State) -> std::io::Result<usize> {
        let front = state
            .frames
            .front()
            .and_then(|frame| frame.get(state.front_written..))
            .unwrap_or_default();
        if state.frames.len() == 1 {
            return self.socket.try_write(front);
        }
        let mut slices = [IoSlice::new(&[]); FRAMES_PER_WRITE];
        let rest = state.frames.iter().skip(1).map(|frame| &frame[..]);
        let mut count = 0;
        for (slice, bytes) in slices.iter_mut().zip(std::iter::once(front).chain(rest)) {
            *slice = IoSlice::new(bytes);
            count += 1;
        }
        self.socket
            .try_write_vectored(slices.get(..count).unwrap_or_default())
    }

    /// Brings the metric up to date with what waits.
    fn report(&self, state: &mut State) {
        let change = i64::try_from(state.bytes).unwrap_or(i64::MAX)
            - i64::try_from(state.bytes_reported).unwrap_or(i64::MAX);
        if change != 0 {
            self.metrics.send_queue_bytes.inc_by(change);
            state.bytes_reported = state.bytes;
        }
    }
}

impl Drop for SendQueue {
    fn drop(&mut self) {
        self.close(false);
    }
}

impl State {
    fn advance(&mut self, written: usize) {
        self.bytes -= written;
        let mut written = self.front_written + written;
        while let Some(front) = self.frames.front() {
            if written < front.len() {
                break;
            }
            written -= front.len();
            self.frames.pop_front();
        }
        self.front_written = written;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    async fn pair(bytes_max: usize) -> (SendQueue, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (peer, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let metrics = Arc::new(Metrics::new(
            &mut prometheus_client::registry::Registry::default(),
        ));
        let (socket, _) = accepted.unwrap();
        (SendQueue::new(socket, bytes_max, metrics), peer.unwrap())
    }

    #[tokio::test]
    async fn frames_arrive_whole_and_in_order_through_a_full_socket() {
        let (queue, mut peer) = pair(64 << 20).await;
        let frames: Vec<Bytes> = (0..200u8).map(|n| Bytes::from(vec![n; 100_000])).collect();
        for frame in &frames {
            queue.send(frame.clone());
        }
        assert!(queue.is_blocked());
        let reader = tokio::spawn(async move {
            let mut all = vec![0; 200 * 100_000];
            peer.read_exact(&mut all).await.unwrap();
            all
        });
        while !queue.resume() {
            queue.socket().writable().await.unwrap();
        }
        assert_eq!(reader.await.unwrap(), frames.concat());
        assert_eq!(queue.metrics.send_queue_bytes.get(), 0);
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_told_it_is_slow() {
        let (queue, _peer) = pair(100_000).await;
        for _ in 0..1000 {
            queue.send(Bytes::from(vec![0; 50_000]));
        }
        let (signals, _) = queue.take_signals();
        assert_eq!(signals, [Signal::Disconnect(Disconnect::SLOW)]);
        assert_eq!(queue.metrics.slow_consumers.get(), 1);
        assert!(queue.state.lock().bytes <= 100_000);
    }
}
