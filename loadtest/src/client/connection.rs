//! One WebSocket connection that has passed the protocol's `connect`: commands out, messages in.
//!
//! It neither reconnects nor remembers subscriptions (that is [`super::Client`]), and it has no
//! task of its own: whoever owns it waits in [`Connection::wait`], which also writes what could
//! not be written at once.

use std::net::IpAddr;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::endpoint::Endpoint;
use super::frame::{FrameReader, Opcode, write_frame};
use super::handshake::{HandshakeError, upgrade};
use super::wire::{Command, ErrorReply, Reply, Request};

/// Bytes that may wait to be written: past it commands are refused, the server does not read.
const OUT_BYTES_MAX: usize = 1 << 20;
/// Id of the `connect` command; others count on from it.
const CONNECT_ID: u32 = 1;

/// How a connection is opened.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// The connection token; empty: none.
    pub token: String,
    /// Name of the client program, as the server sees it.
    pub name: &'static str,
    /// How long TCP connect, upgrade and `connect` may take, each.
    pub timeout: Duration,
    /// Local address to connect from; `None` leaves it to the system.
    pub from: Option<IpAddr>,
}

/// An open connection.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    reader: FrameReader,
    out: BytesMut,
    /// Payload of a message whose last fragment has not come yet; empty otherwise.
    fragments: Vec<u8>,
    last_id: u32,
    last_read: Instant,
    client: String,
    ping_interval: Option<Duration>,
    is_pong_wanted: bool,
}

/// Why a connection did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Nobody answered at the address.
    #[error("cannot connect")]
    Io(#[from] std::io::Error),
    /// The WebSocket did not open.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The server answered `connect` with an error.
    #[error("connect was refused")]
    Refused(#[source] ErrorReply),
    /// The connection ended before `connect` was answered.
    #[error(transparent)]
    Closed(#[from] Closed),
    /// `connect` was not answered in time.
    #[error("connect was not answered in time")]
    Timeout,
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("connection ended with code {code}: {reason}")]
pub struct Closed {
    /// The close frame's code; 0 when there was no close frame.
    pub code: u16,
    /// The close frame's reason, or what went wrong.
    pub reason: String,
}

impl Closed {
    pub(crate) fn lost(reason: impl ToString) -> Self {
        Self {
            code: 0,
            reason: reason.to_string(),
        }
    }

    /// True when the protocol tells a client not to come back.
    pub fn is_terminal(&self) -> bool {
        matches!(self.code, 1009 | 3500..=3999 | 4500..=4999)
    }
}

impl Connection {
    /// Connects, upgrades and passes the protocol's `connect`.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(endpoint: &Endpoint, options: &OpenOptions) -> Result<Self, OpenError> {
        let mut stream = endpoint.connect(options.from, options.timeout).await?;
        let rest = upgrade(&mut stream, endpoint, options.timeout).await?;
        let mut connection = Self {
            stream,
            reader: FrameReader::new(&rest),
            out: BytesMut::new(),
            fragments: Vec::new(),
            last_id: CONNECT_ID,
            last_read: Instant::now(),
            client: String::new(),
            ping_interval: None,
            is_pong_wanted: false,
        };
        connection.write_command(
            CONNECT_ID,
            Request::Connect {
                token: &options.token,
                name: options.name,
            },
        )?;
        timeout(options.timeout, connection.wait_for_connect())
            .await
            .map_err(|_| OpenError::Timeout)??;
        Ok(connection)
    }

    async fn wait_for_connect(&mut self) -> Result<(), OpenError> {
        loop {
            let mut outcome = None;
            self.take_messages(|message| {
                let reply = parse(message)?;
                if reply.id == CONNECT_ID {
                    outcome = Some(match (reply.connect, reply.error) {
                        (Some(result), _) => {
                            Ok((result.client.into_owned(), result.ping, result.pong))
                        }
                        (None, Some(error)) => Err(OpenError::Refused(error)),
                        (None, None) => Err(Closed::lost("empty reply to connect").into()),
                    });
                }
                Ok(())
            })?;
            if let Some(outcome) = outcome {
                let (client, ping, pong) = outcome?;
                self.client = client;
                self.ping_interval = (ping > 0).then(|| Duration::from_secs(ping.into()));
                self.is_pong_wanted = pong;
                return Ok(());
            }
            self.wait().await?;
        }
    }

    /// Returns the id that the server gave this connection.
    pub fn client(&self) -> &str {
        &self.client
    }

    /// Returns how often the server pings; `None` when it does not.
    pub fn ping_interval(&self) -> Option<Duration> {
        self.ping_interval
    }

    /// Returns when bytes arrived last.
    pub fn last_read(&self) -> Instant {
        self.last_read
    }

    /// Sends a command and returns its id.
    pub(crate) fn send(&mut self, request: Request<'_>) -> Result<u32, Closed> {
        self.last_id += 1;
        self.write_command(self.last_id, request)?;
        Ok(self.last_id)
    }

    fn write_command(&mut self, id: u32, request: Request<'_>) -> Result<(), Closed> {
        let command = serde_json::to_vec(&Command { id, request }).map_err(Closed::lost)?;
        self.write(Opcode::Text, &command)
    }

    fn write(&mut self, opcode: Opcode, payload: &[u8]) -> Result<(), Closed> {
        if self.out.len() > OUT_BYTES_MAX {
            return Err(Closed::lost("server does not read"));
        }
        write_frame(
            &mut self.out,
            opcode,
            payload,
            rand::random::<u32>().to_ne_bytes(),
        );
        self.flush();
        Ok(())
    }

    /// Writes what the socket takes, without waiting.
    ///
    /// A failed write is left for the next read to report: a close frame may still lie there, and
    /// its code says more.
    fn flush(&mut self) {
        while !self.out.is_empty() {
            match self.stream.try_write(&self.out) {
                Ok(written) => self.out.advance(written),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(_) => break,
            }
        }
        self.out = BytesMut::new();
    }

    /// Waits until bytes have arrived, and writes meanwhile.
    ///
    /// Cancel safe: bytes are only moved between awaits. Call it only after
    /// [`Self::take_messages`] has taken what is there.
    ///
    /// # Errors
    /// [`Closed`] when the connection has ended.
    pub async fn wait(&mut self) -> Result<(), Closed> {
        loop {
            let interest = if self.out.is_empty() {
                Interest::READABLE
            } else {
                Interest::READABLE | Interest::WRITABLE
            };
            let ready = self.stream.ready(interest).await.map_err(Closed::lost)?;
            if ready.is_writable() {
                self.flush();
            }
            if ready.is_readable() {
                match self.reader.read_from(&self.stream) {
                    Ok(0) => return Err(Closed::lost("peer closed the connection")),
                    Ok(_) => {
                        self.last_read = Instant::now();
                        return Ok(());
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(Closed::lost(error)),
                }
            }
        }
    }

    /// Hands over every message that has arrived, one JSON object each; answers pings by itself.
    ///
    /// Returns how many frames held them; frames of nothing but a ping are not counted.
    ///
    /// # Errors
    /// [`Closed`] when the connection has ended or the server broke the protocol.
    pub fn take_messages(
        &mut self,
        mut take: impl FnMut(&[u8]) -> Result<(), Closed>,
    ) -> Result<usize, Closed> {
        let mut frames = 0;
        let mut pings = 0;
        let mut pong = None;
        while let Some(frame) = self.reader.next().map_err(Closed::lost)? {
            match frame.opcode {
                Opcode::Text | Opcode::Binary | Opcode::Continuation => {
                    let is_whole = frame.is_final && self.fragments.is_empty();
                    let content = if is_whole {
                        split_messages(frame.payload, &mut take)?
                    } else {
                        self.fragments.extend_from_slice(frame.payload);
                        if !frame.is_final {
                            continue;
                        }
                        split_messages(&std::mem::take(&mut self.fragments), &mut take)?
                    };
                    pings += content.pings;
                    frames += usize::from(content.messages > 0);
                }
                Opcode::Ping => pong = Some(frame.payload.to_vec()),
                Opcode::Pong => {}
                Opcode::Close => return Err(close_reason(frame.payload)),
            }
        }
        if let Some(payload) = pong {
            self.write(Opcode::Pong, &payload)?;
        }
        if pings > 0 && self.is_pong_wanted {
            self.write(Opcode::Text, b"{}")?;
        }
        Ok(frames)
    }
}

/// What a frame held.
#[derive(Debug, Default, PartialEq, Eq)]
struct Content {
    messages: usize,
    pings: usize,
}

/// Splits a frame into its messages.
fn split_messages(
    payload: &[u8],
    take: &mut impl FnMut(&[u8]) -> Result<(), Closed>,
) -> Result<Content, Closed> {
    let mut content = Content::default();
    for message in payload.split(|byte| *byte == b'\n') {
        match message {
            b"{}" => content.pings += 1,
            b"" => return Err(Closed::lost("server sent an empty message")),
            message => {
                take(message)?;
                content.messages += 1;
            }
        }
    }
    Ok(content)
}

/// Reads one message of the server.
pub(crate) fn parse(message: &[u8]) -> Result<Reply<'_>, Closed> {
    serde_json::from_slice(message).map_err(|error| {
        Closed::lost(format!(
            "server sent a message that cannot be read: {error}"
        ))
    })
}

fn close_reason(payload: &[u8]) -> Closed {
    match payload {
        [high, low, reason @ ..] => Closed {
            code: u16::from_be_bytes([*high, *low]),
            reason: String::from_utf8_lossy(reason).into_owned(),
        },
        _ => Closed {
            code: 1005,
            reason: "close frame without a code".to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_split_into_messages_and_pings_counted() {
        let mut messages = Vec::new();
        let content = split_messages(b"{\"id\":1}\n{}\n{\"id\":2}", &mut |message| {
            messages.push(message.to_vec());
            Ok(())
        });
        let counted = Content {
            messages: 2,
            pings: 1,
        };
        assert_eq!(content, Ok(counted));
        assert_eq!(messages, [b"{\"id\":1}", b"{\"id\":2}"]);
        assert!(split_messages(b"{}\n", &mut |_| Ok(())).is_err());
    }

    #[test]
    fn close_frames_say_whether_to_come_back() {
        let shutdown = close_reason(b"\x0b\xb9shutdown");
        assert_eq!((shutdown.code, shutdown.is_terminal()), (3001, false));
        let invalid = close_reason(b"\x0d\xacinvalid token");
        assert_eq!((invalid.code, invalid.is_terminal()), (3500, true));
        assert_eq!(close_reason(b"").code, 1005);
    }
}
