//! WebSocket frames (RFC 6455): an incremental reader of ours, and server frames.
//!
//! The reader owns no buffer while nothing is under way: bytes arrive in a buffer that all
//! sessions of a thread share, whole frames are handed on in place, and only the rest of a
//! partial frame or of a fragmented message is kept. Limits are checked from the frame header,
//! before the announced bytes are waited for: size over all fragments, number of fragments.

use bytes::Bytes;

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const OPCODE: u8 = 0x0f;
const MASKED: u8 = 0x80;
const LENGTH: u8 = 0x7f;
const LENGTH_16: u8 = 126;
const LENGTH_64: u8 = 127;
/// Control frames may not be longer (RFC 6455 §5.5).
const CONTROL_BYTES_MAX: usize = 125;
/// Longest header of a server frame: two bytes and a 64-bit length.
const HEADER_BYTES_MAX: usize = 10;
/// Longest reason in a close frame: 125 bytes less the code.
const REASON_BYTES_MAX: usize = 123;

const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;

/// What a peer sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event<'a> {
    /// A whole message; text is valid UTF-8.
    Message(&'a [u8]),
    /// A ping: answer with the same bytes.
    Ping(&'a [u8]),
    /// A pong nobody asked for: ignored.
    Pong,
    /// The peer closes; its code, when it gave one.
    Close(Option<u16>),
}

/// Why the connection must be closed, as WebSocket close codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    /// 1002.
    #[error("protocol error")]
    Protocol,
    /// 1007.
    #[error("text is not valid UTF-8")]
    Utf8,
    /// 1009.
    #[error("message size limit")]
    TooBig,
}

impl FrameError {
    /// Returns the close code (RFC 6455 §7.4.1).
    pub(crate) fn code(self) -> u16 {
        match self {
            Self::Protocol => 1002,
            Self::Utf8 => 1007,
            Self::TooBig => 1009,
        }
    }
}

/// What one message may be at most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes over all its fragments.
    pub(crate) message_bytes_max: usize,
    /// Fragments.
    pub(crate) fragments_max: usize,
}

/// Reads client frames from bytes as they arrive.
#[derive(Debug, Default)]
pub(crate) struct FrameReader {
    /// The beginning of a frame whose end has not arrived.
    partial: Vec<u8>,
    /// A message whose last fragment has not arrived. Boxed: most sessions never have one.
    fragments: Option<Box<Fragments>>,
}

#[derive(Debug)]
struct Fragments {
    is_text: bool,
    payload: Vec<u8>,
    count: usize,
}

impl FrameReader {
    /// True while the rest of a message is awaited.
    pub(crate) fn is_partial(&self) -> bool {
        !self.partial.is_empty() || self.fragments.is_some()
    }

    /// Takes bytes that arrived and hands on what they complete.
    ///
    /// # Errors
    /// [`FrameError`] when the peer must be let go; `on_event` may stop the reading by an error
    /// of its own kind.
    pub(crate) fn feed<E: From<FrameError>>(
        &mut self,
        input: &mut [u8],
        limits: Limits,
        mut on_event: impl FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.partial.is_empty() {
            let used = self.read_frames(input, limits, &mut on_event)?;
            self.partial
                .extend_from_slice(input.get(used..).unwrap_or_default());
            return Ok(());
        }
        let mut joined = std::mem::take(&mut self.partial);
        joined.extend_from_slice(input);
        let used = self.read_frames(&mut joined, limits, &mut on_event)?;
        if used < joined.len() {
            joined.drain(..used);
            self.partial = joined;
        }
        Ok(())
    }

    /// Reads whole frames; returns how many bytes they took.
    fn read_frames<E: From<FrameError>>(
        &mut self,
        input: &mut [u8],
        limits: Limits,
        on_event: &mut impl FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<usize, E> {
        let mut used = 0;
        while let Some(rest) = input.get_mut(used..) {
            let Some(header) = Header::read(rest)? else {
                break;
            };
            self.check(&header, limits)?;
            let end = header.bytes + header.payload_bytes;
            let Some(payload) = rest.get_mut(header.bytes..end) else {
                break;
            };
            fastwebsockets::unmask(payload, header.mask);
            self.take(&header, payload, on_event)?;
            used += end;
        }
        Ok(used)
    }

    /// Checks a frame by its header alone, so that nothing is kept of one that is too big.
    fn check(&self, header: &Header, limits: Limits) -> Result<(), FrameError> {
        let is_control = header.opcode & 0x8 != 0;
        if is_control {
            let is_short = header.payload_bytes <= CONTROL_BYTES_MAX;
            return if header.is_final && is_short {
                Ok(())
            } else {
                Err(FrameError::Protocol)
            };
        }
        let is_continuation = header.opcode == CONTINUATION;
        if is_continuation != self.fragments.is_some() {
            return Err(FrameError::Protocol);
        }
        let (kept, count) = self.fragments.as_ref().map_or((0, 0), |fragments| {
            (fragments.payload.len(), fragments.count)
        });
        let is_too_big = kept.saturating_add(header.payload_bytes) > limits.message_bytes_max;
        if is_too_big || count >= limits.fragments_max {
            return Err(FrameError::TooBig);
        }
        Ok(())
    }

    fn take<E: From<FrameError>>(
        &mut self,
        header: &Header,
        payload: &[u8],
        on_event: &mut impl FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        match header.opcode {
            PING => on_event(Event::Ping(payload)),
            PONG => on_event(Event::Pong),
            CLOSE => on_event(Event::Close(close_code(payload)?)),
            TEXT | BINARY if header.is_final => message(header.opcode == TEXT, payload, on_event),
            _ => self.take_fragment(header, payload, on_event),
        }
    }

    fn take_fragment<E: From<FrameError>>(
        &mut self,
        header: &Header,
        payload: &[u8],
        on_event: &mut impl FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let fragments = self.fragments.get_or_insert_with(|| {
            Box::new(Fragments {
                is_text: header.opcode == TEXT,
                payload: Vec::new(),
                count: 0,
            })
        });
        fragments.payload.extend_from_slice(payload);
        fragments.count += 1;
        if !header.is_final {
            return Ok(());
        }
        match self.fragments.take() {
            Some(whole) => message(whole.is_text, &whole.payload, on_event),
            None => Ok(()),
        }
    }
}

fn message<E: From<FrameError>>(
    is_text: bool,
    payload: &[u8],
    on_event: &mut impl FnMut(Event<'_>) -> Result<(), E>,
) -> Result<(), E> {
    if is_text && simdutf8::basic::from_utf8(payload).is_err() {
        return Err(FrameError::Utf8.into());
    }
    on_event(Event::Message(payload))
}

/// Checks a close frame's payload (RFC 6455 §5.5.1, §7.4).
fn close_code(payload: &[u8]) -> Result<Option<u16>, FrameError> {
    let (code, reason) = match payload {
        [] => return Ok(None),
        [high, low, reason @ ..] => (u16::from_be_bytes([*high, *low]), reason),
        [_] => return Err(FrameError::Protocol),
    };
    let is_defined = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
    if !is_defined {
        return Err(FrameError::Protocol);
    }
    if simdutf8::basic::from_utf8(reason).is_err() {
        return Err(FrameError::Utf8);
    }
    Ok(Some(code))
}

/// The header of a client frame.
#[derive(Debug)]
struct Header {
    is_final: bool,
    opcode: u8,
    mask: [u8; 4],
    /// Bytes of the header itself.
    bytes: usize,
    payload_bytes: usize,
}

impl Header {
    /// Reads a header; `None` when its end has not arrived.
    fn read(input: &[u8]) -> Result<Option<Self>, FrameError> {
        let [first, second, rest @ ..] = input else {
            return Ok(None);
        };
        let opcode = first & OPCODE;
        let is_known = matches!(opcode, CONTINUATION | TEXT | BINARY | CLOSE | PING | PONG);
        // A client that does not mask is refused (RFC 6455 §5.1).
        if first & RESERVED != 0 || !is_known || second & MASKED == 0 {
            return Err(FrameError::Protocol);
        }
        let (payload_bytes, rest) = match second & LENGTH {
            LENGTH_16 => match rest.split_first_chunk::<2>() {
                Some((length, rest)) => (u64::from(u16::from_be_bytes(*length)), rest),
                None => return Ok(None),
            },
            LENGTH_64 => match rest.split_first_chunk::<8>() {
                Some((length, rest)) => (u64::from_be_bytes(*length), rest),
                None => return Ok(None),
            },
            short => (u64::from(short), rest),
        };
        let is_minimal = match second & LENGTH {
            LENGTH_16 => payload_bytes >= u64::from(LENGTH_16),
            LENGTH_64 => payload_bytes > u64::from(u16::MAX) && payload_bytes >> 63 == 0,
            _ => true,
        };
        if !is_minimal {
            return Err(FrameError::Protocol);
        }
        let Some((mask, payload)) = rest.split_first_chunk::<4>() else {
            return Ok(None);
        };
        Ok(Some(Self {
            is_final: first & FIN != 0,
            opcode,
            mask: *mask,
            bytes: input.len() - payload.len(),
            payload_bytes: usize::try_from(payload_bytes).map_err(|_| FrameError::TooBig)?,
        }))
    }
}

/// Builds a text frame whose payload `write` appends: encoded once, sent to any number of clients.
pub(crate) fn text(write: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    server_frame(TEXT, write)
}

/// Builds the answer to a ping.
pub(crate) fn pong(payload: &[u8]) -> Bytes {
    server_frame(PONG, |out| out.extend_from_slice(payload))
}

/// Builds a close frame; the reason is cut to what fits.
pub(crate) fn close(code: u16, reason: &str) -> Bytes {
    let end = reason.floor_char_boundary(REASON_BYTES_MAX);
    server_frame(CLOSE, |out| {
        out.extend_from_slice(&code.to_be_bytes());
        out.extend_from_slice(reason.as_bytes().get(..end).unwrap_or_default());
    })
}

/// Builds an unmasked frame. The payload is written behind room for the longest header, then the
/// header in front of it: one allocation, nothing is moved.
fn server_frame(opcode: u8, write: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let mut out = vec![0; HEADER_BYTES_MAX];
    write(&mut out);
    let payload_bytes = out.len() - HEADER_BYTES_MAX;
    let mut header = vec![FIN | opcode];
    match (u8::try_from(payload_bytes), u16::try_from(payload_bytes)) {
        (Ok(short), _) if short < LENGTH_16 => header.push(short),
        (_, Ok(medium)) => {
            header.push(LENGTH_16);
            header.extend_from_slice(&medium.to_be_bytes());
        }
        _ => {
            header.push(LENGTH_64);
            header.extend_from_slice(&(payload_bytes as u64).to_be_bytes());
        }
    }
    let start = HEADER_BYTES_MAX - header.len();
    if let Some(room) = out.get_mut(start..HEADER_BYTES_MAX) {
        room.copy_from_slice(&header);
    }
    Bytes::from(out).slice(start..)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits {
        message_bytes_max: 1024,
        fragments_max: 4,
    };

    fn client_frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [1, 2, 3, 4];
        let mut out = vec![first];
        match payload.len() {
            n @ 0..126 => out.push(MASKED | u8::try_from(n).unwrap()),
            n @ 126..65536 => {
                out.push(MASKED | LENGTH_16);
                out.extend_from_slice(&u16::try_from(n).unwrap().to_be_bytes());
            }
            n => {
                out.push(MASKED | LENGTH_64);
                out.extend_from_slice(&(n as u64).to_be_bytes());
            }
        }
        out.extend_from_slice(&mask);
        out.extend(
            payload
                .iter()
                .zip(mask.iter().cycle())
                .map(|(byte, mask)| byte ^ mask),
        );
        out
    }

    /// Feeds pieces and describes what came out.
    fn read(pieces: &[&[u8]]) -> Result<Vec<String>, FrameError> {
        let mut reader = FrameReader::default();
        let mut seen = Vec::new();
        for piece in pieces {
            reader.feed(&mut piece.to_vec(), LIMITS, |event| {
                seen.push(match event {
                    Event::Message(bytes) => String::from_utf8_lossy(bytes).into_owned(),
                    other => format!("{other:?}"),
                });
                Ok::<(), FrameError>(())
            })?;
        }
        Ok(seen)
    }

    #[test]
    fn frames_may_be_cut_anywhere() {
        let mut bytes = client_frame(FIN | TEXT, b"one");
        bytes.extend(client_frame(TEXT, b"tw"));
        bytes.extend(client_frame(FIN | PING, b"p"));
        bytes.extend(client_frame(FIN | CONTINUATION, b"o"));
        bytes.extend(client_frame(FIN | BINARY, "x".repeat(300).as_bytes()));
        let expected = [
            "one".to_owned(),
            "Ping([112])".to_owned(),
            "two".to_owned(),
            "x".repeat(300),
        ];
        for cut in 0..bytes.len() {
            let (head, tail) = bytes.split_at(cut);
            assert_eq!(read(&[head, tail]).unwrap(), expected, "cut at {cut}");
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(read(&single).unwrap(), expected);
    }

    #[test]
    fn limits_hold_before_the_bytes_arrive() {
        let big = client_frame(FIN | TEXT, &[b'x'; 1025]);
        assert_eq!(read(&[&big[..8]]), Err(FrameError::TooBig));
        let part = client_frame(TEXT, &[b'x'; 600]);
        let more = client_frame(CONTINUATION, &[b'x'; 600]);
        assert_eq!(read(&[&part, &more[..8]]), Err(FrameError::TooBig));
        let tiny = client_frame(CONTINUATION, b"");
        let flood: Vec<&[u8]> = std::iter::once(&part[..]).chain([&tiny[..]; 4]).collect();
        assert_eq!(read(&flood), Err(FrameError::TooBig));
    }

    #[test]
    fn malformed_frames_are_protocol_errors() {
        let unmasked = [FIN | TEXT, 1, b'x'];
        let not_minimal = [FIN | TEXT, MASKED | LENGTH_16, 0, 1, 0, 0, 0, 0, b'x'];
        let huge = [FIN | TEXT, MASKED | LENGTH_64, 0x80, 0, 0, 0, 0, 0, 0, 0];
        let cases: [Vec<u8>; 10] = [
            unmasked.to_vec(),
            not_minimal.to_vec(),
            huge.to_vec(),
            client_frame(FIN | 0x40 | TEXT, b""),
            client_frame(FIN | 0x3, b""),
            client_frame(FIN | 0xb, b""),
            client_frame(PING, b""),
            client_frame(FIN | PING, &[0; 126]),
            client_frame(FIN | CONTINUATION, b""),
            client_frame(FIN | CLOSE, b"\x03"),
        ];
        for case in cases {
            assert_eq!(read(&[&case]), Err(FrameError::Protocol), "{case:?}");
        }
        for code in [0u16, 999, 1004, 1005, 1006, 1015, 2999, 5000] {
            let frame = client_frame(FIN | CLOSE, &code.to_be_bytes());
            assert_eq!(read(&[&frame]), Err(FrameError::Protocol), "{code}");
        }
        assert_eq!(
            read(&[&client_frame(FIN | TEXT, b"\xff")]),
            Err(FrameError::Utf8)
        );
    }

    #[test]
    fn server_frames_have_the_shortest_header() {
        let payload = |n: usize| text(|out| out.resize(out.len() + n, b'x'));
        assert_eq!(payload(2), Bytes::from_static(b"\x81\x02xx"));
        assert_eq!(payload(126).len(), 4 + 126);
        assert_eq!(payload(65535).len(), 4 + 65535);
        assert_eq!(payload(65536).len(), 10 + 65536);
        assert_eq!(
            close(3001, "shutdown"),
            Bytes::from_static(b"\x88\x0a\x0b\xb9shutdown")
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(pieces in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..64), 0..16))
        {
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            drop(read(&pieces));
        }
    }
}
