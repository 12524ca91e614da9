//! WebSocket frames as a client reads and writes them (RFC 6455 §5).
//!
//! Lean on purpose: thousands of clients share one process. An idle connection holds no buffer at
//! all, a busy one reads up to [`READ_BYTES`] at once and walks the frames in place.

use std::io;

use bytes::{Buf, BufMut, BytesMut};
use tokio::net::TcpStream;

/// Room for one read: big reads keep the system calls few when frames come in crowds.
const READ_BYTES: usize = 16 * 1024;
/// Largest frame a server may send; a longer one is a broken length, not a message.
const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What a frame is (RFC 6455 §5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opcode {
    /// Goes on with the message before.
    Continuation,
    /// A message in UTF-8.
    Text,
    /// A message in bytes.
    Binary,
    /// The end of the connection, with a code and a reason.
    Close,
    /// Wants a pong with the same payload.
    Ping,
    /// Answers a ping.
    Pong,
}

impl Opcode {
    fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::Continuation),
            1 => Some(Self::Text),
            2 => Some(Self::Binary),
            8 => Some(Self::Close),
            9 => Some(Self::Ping),
            10 => Some(Self::Pong),
            _ => None,
        }
    }

    fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0,
            Self::Text => 1,
            Self::Binary => 2,
            Self::Close => 8,
            Self::Ping => 9,
            Self::Pong => 10,
        }
    }
}

/// One frame, still inside the read buffer.
#[derive(Debug)]
pub(crate) struct Frame<'a> {
    pub(crate) opcode: Opcode,
    pub(crate) is_final: bool,
    pub(crate) payload: &'a [u8],
}

/// What a server must never send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("server sent a masked frame")]
    Masked,
    #[error("server sent reserved bits or an unknown opcode")]
    Reserved,
    #[error("server announced a frame of more than {FRAME_BYTES_MAX} bytes")]
    TooLong,
}

/// Collects bytes and hands out whole frames.
#[derive(Debug, Default)]
pub(crate) struct FrameReader {
    buffer: BytesMut,
    /// Where the next frame begins in `buffer`; frames before it are used up.
    start: usize,
}

impl FrameReader {
    /// Begins with the bytes that followed the handshake.
    pub(crate) fn new(rest: &[u8]) -> Self {
        Self {
            buffer: BytesMut::from(rest),
            start: 0,
        }
    }

    /// Reads what the socket holds, without waiting; 0 means the peer has closed.
    pub(crate) fn read_from(&mut self, stream: &TcpStream) -> io::Result<usize> {
        self.buffer.reserve(READ_BYTES);
        let result = stream.try_read_buf(&mut self.buffer);
        if self.buffer.is_empty() {
            // A spurious wake-up must not leave an idle connection holding a buffer.
            self.buffer = BytesMut::new();
        }
        result
    }

    /// Returns the next whole frame; `None` when more bytes are needed.
    pub(crate) fn next(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        let Some(header) = Header::parse(self.buffer.get(self.start..).unwrap_or_default())? else {
            self.compact();
            return Ok(None);
        };
        let payload_start = self.start + header.bytes;
        let payload_end = payload_start + header.payload_bytes;
        if self.buffer.len() < payload_end {
            self.compact();
            return Ok(None);
        }
        self.start = payload_end;
        Ok(Some(Frame {
            opcode: header.opcode,
            is_final: header.is_final,
            payload: self
                .buffer
                .get(payload_start..payload_end)
                .unwrap_or_default(),
        }))
    }

    fn compact(&mut self) {
        self.buffer.advance(self.start);
        self.start = 0;
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }
}

struct Header {
    opcode: Opcode,
    is_final: bool,
    bytes: usize,
    payload_bytes: usize,
}

impl Header {
    fn parse(buffer: &[u8]) -> Result<Option<Self>, FrameError> {
        let [first, second, rest @ ..] = buffer else {
            return Ok(None);
        };
        if first & 0x70 != 0 {
            return Err(FrameError::Reserved);
        }
        if second & 0x80 != 0 {
            return Err(FrameError::Masked);
        }
        let opcode = Opcode::from_bits(first & 0x0f).ok_or(FrameError::Reserved)?;
        let (bytes, payload_bytes) = match second & 0x7f {
            126 => match rest {
                [a, b, ..] => (4, u64::from(u16::from_be_bytes([*a, *b]))),
                _ => return Ok(None),
            },
            127 => match rest.first_chunk::<8>() {
                Some(length) => (10, u64::from_be_bytes(*length)),
                None => return Ok(None),
            },
            short => (2, u64::from(short)),
        };
        let payload_bytes = usize::try_from(payload_bytes)
            .ok()
            .filter(|bytes| *bytes <= FRAME_BYTES_MAX)
            .ok_or(FrameError::TooLong)?;
        Ok(Some(Self {
            opcode,
            is_final: first & 0x80 != 0,
            bytes,
            payload_bytes,
        }))
    }
}

/// Appends one whole masked frame to what waits to be written.
pub(crate) fn write_frame(out: &mut BytesMut, opcode: Opcode, payload: &[u8], mask: [u8; 4]) {
    out.reserve(payload.len() + 14);
    out.put_u8(0x80 | opcode.bits());
    match payload.len() {
        length @ 0..=125 => out.put_u8(0x80 | u8::try_from(length).unwrap_or(0)),
        length => match u16::try_from(length) {
            Ok(length) => {
                out.put_u8(0x80 | 126);
                out.put_u16(length);
            }
            Err(_) => {
                out.put_u8(0x80 | 127);
                out.put_u64(length as u64);
            }
        },
    }
    out.put_slice(&mask);
    out.extend(
        payload
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
}

#[cfg(test)]
mod tests {
    use fastwebsockets::{Frame as OtherFrame, OpCode, Payload, Role, WebSocket};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn feed(reader: &mut FrameReader, bytes: &[u8]) {
        reader.buffer.extend_from_slice(bytes);
    }

    /// Another implementation, as the server, reads what we write.
    #[tokio::test]
    async fn another_implementation_reads_our_frames() {
        for length in [0, 1, 125, 126, 65_535, 65_536, 200_000] {
            let (mut ours, theirs) = tokio::io::duplex(1 << 20);
            let payload = vec![b'x'; length];
            let mut out = BytesMut::new();
            write_frame(&mut out, Opcode::Text, &payload, [1, 2, 3, 4]);
            ours.write_all(&out).await.unwrap();
            let mut server = WebSocket::after_handshake(theirs, Role::Server);
            let frame = server.read_frame().await.unwrap();
            assert_eq!(frame.opcode, OpCode::Text);
            assert_eq!(&frame.payload[..], &payload[..]);
        }
    }

    /// And we read what it writes, however the bytes are cut.
    #[tokio::test]
    async fn we_read_the_frames_of_another_implementation_byte_by_byte() {
        let (mut ours, theirs) = tokio::io::duplex(1 << 20);
        let mut server = WebSocket::after_handshake(theirs, Role::Server);
        let payloads = [0, 125, 126, 70_000].map(|length| vec![b'y'; length]);
        for payload in &payloads {
            let frame = OtherFrame::text(Payload::Borrowed(payload));
            server.write_frame(frame).await.unwrap();
        }
        drop(server);
        let mut bytes = Vec::new();
        ours.read_to_end(&mut bytes).await.unwrap();

        let mut reader = FrameReader::default();
        let mut seen = Vec::new();
        for byte in bytes {
            feed(&mut reader, &[byte]);
            while let Some(frame) = reader.next().unwrap() {
                assert!(frame.is_final && frame.opcode == Opcode::Text);
                seen.push(frame.payload.to_vec());
            }
        }
        assert_eq!(seen, payloads);
        assert_eq!(reader.buffer.capacity(), 0, "an idle reader holds nothing");
    }

    #[test]
    fn broken_frames_are_errors() {
        for (bytes, error) in [
            (&[0x81, 0x80][..], FrameError::Masked),
            (&[0xc1, 0x00], FrameError::Reserved),
            (&[0x83, 0x00], FrameError::Reserved),
            (
                &[0x82, 127, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
                FrameError::TooLong,
            ),
        ] {
            let mut reader = FrameReader::new(bytes);
            assert_eq!(reader.next().unwrap_err(), error);
        }
    }
}
