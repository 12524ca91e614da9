//! GIFs without what they say beside their pictures (GIF89a): comments, texts and application
//! blocks go, but for the one that says how often it repeats.

use bytes::Bytes;

/// More are no picture in a chat but a way to keep phones busy.
const FRAMES_MAX: usize = 2000;

/// Copies the pictures of a GIF, and checks that it is whole.
pub(super) fn strip(bytes: &Bytes) -> Result<Bytes, &'static str> {
    const CUT: &str = "it ends too early";
    let mut out = Vec::with_capacity(bytes.len());
    let mut reader = Reader { rest: bytes };
    let header = reader.take(13).ok_or(CUT)?;
    out.extend_from_slice(header);
    out.extend_from_slice(reader.take(table_bytes(header[10])).ok_or(CUT)?);
    let mut frames = 0;
    loop {
        let begin = reader.rest;
        match reader.take(1).ok_or(CUT)?[0] {
            // Extension.
            0x21 => {
                let label = reader.take(1).ok_or(CUT)?[0];
                let application = reader.rest.get(1..12);
                reader.skip_blocks().ok_or(CUT)?;
                let repeats = matches!(application, Some(b"NETSCAPE2.0" | b"ANIMEXTS1.0"));
                let is_kept = label == 0xf9 || (label == 0xff && repeats);
                if is_kept {
                    out.extend_from_slice(since(begin, reader.rest));
                }
            }
            // Image.
            0x2c => {
                frames += 1;
                if frames > FRAMES_MAX {
                    return Err("it has too many frames");
                }
                let descriptor = reader.take(9).ok_or(CUT)?;
                // The colours, and the size of the codes.
                reader.take(table_bytes(descriptor[8]) + 1).ok_or(CUT)?;
                reader.skip_blocks().ok_or(CUT)?;
                out.extend_from_slice(since(begin, reader.rest));
            }
            // Trailer: what follows is not part of it.
            0x3b if frames > 0 => {
                out.push(0x3b);
                return Ok(out.into());
            }
            _ => return Err("it holds an unknown block"),
        }
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(n)?;
        self.rest = rest;
        Some(taken)
    }

    /// Blocks with their lengths, until one of length 0.
    fn skip_blocks(&mut self) -> Option<()> {
        loop {
            match self.take(1)?[0] {
                0 => return Some(()),
                length => self.take(usize::from(length))?,
            };
        }
    }
}

fn since<'a>(begin: &'a [u8], rest: &[u8]) -> &'a [u8] {
    &begin[..begin.len() - rest.len()]
}

/// Returns the size of the colour table that a packed field announces.
fn table_bytes(packed: u8) -> usize {
    match packed & 0x80 {
        0 => 0,
        _ => 3 << ((packed & 7) + 1),
    }
}
