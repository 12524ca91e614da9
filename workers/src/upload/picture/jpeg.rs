//! What a JPEG's markers tell without decoding (ITU T.81 Annex B): size, cost, and whether it is
//! whole. The decoder fills a truncated picture up with grey; here it is an error.

/// A JPEG's frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) width: u32,
    pub(super) height: u32,
    channels: u64,
    /// Samples of all components for every 64 pixels.
    samples_per_64: u64,
    /// The decoder keeps every coefficient until the last scan.
    has_many_scans: bool,
}

impl Header {
    /// Returns the bytes that a decoder allocates.
    pub(super) fn working_bytes(&self) -> u64 {
        let pixels = u64::from(self.width) * u64::from(self.height);
        let out = pixels * if self.channels == 1 { 1 + 3 } else { 3 };
        let coefficients = if self.has_many_scans {
            // 16 bits each.
            pixels * self.samples_per_64 * 2 / 64
        } else {
            0
        };
        out + coefficients
    }
}

/// Walks the whole file by its markers.
pub(super) fn read(bytes: &[u8]) -> Result<Header, &'static str> {
    const CUT: &str = "it ends too early";
    if !bytes.starts_with(&[0xff, 0xd8]) {
        return Err("it is no JPEG");
    }
    let mut at = 2;
    let mut header: Option<Header> = None;
    let mut scans = 0_u32;
    loop {
        let marker = next_marker(bytes, &mut at).ok_or(CUT)?;
        match marker {
            0xd9 => break,
            0x01 | 0xd0..=0xd8 => continue,
            _ => {}
        }
        let length = bytes.get(at..at + 2).ok_or(CUT)?;
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        let segment = bytes.get(at + 2..at + length.max(2)).ok_or(CUT)?;
        match marker {
            // Start of frame; the others of the row are tables.
            0xc0..=0xcf if !matches!(marker, 0xc4 | 0xc8 | 0xcc) => {
                if header.is_some() {
                    return Err("it has two frames");
                }
                header = Some(frame(segment, marker).ok_or("its frame header is broken")?);
            }
            0xda => scans += 1,
            _ => {}
        }
        at += length.max(2);
    }
    let mut header = header.ok_or("it has no frame")?;
    if scans == 0 {
        return Err("it has no scan");
    }
    header.has_many_scans |= scans > 1;
    Ok(header)
}

/// Moves behind the next marker and returns it; what lies before it is a scan's data.
fn next_marker(bytes: &[u8], at: &mut usize) -> Option<u8> {
    loop {
        let rest = bytes.get(*at..)?;
        *at += rest.iter().position(|byte| *byte == 0xff)?;
        while bytes.get(*at) == Some(&0xff) {
            *at += 1;
        }
        let marker = *bytes.get(*at)?;
        *at += 1;
        // 0: an escaped 255 of a scan's data.
        if marker != 0 {
            return Some(marker);
        }
    }
}

fn frame(segment: &[u8], marker: u8) -> Option<Header> {
    let number = |at: usize| {
        let bytes = segment.get(at..at + 2)?;
        Some(u32::from(u16::from_be_bytes([bytes[0], bytes[1]])))
    };
    let (height, width) = (number(1)?, number(3)?);
    let channels = u64::from(*segment.get(5)?);
    let sampling: Vec<(u64, u64)> = segment
        .get(6..)?
        .chunks_exact(3)
        .map(|component| (u64::from(component[1] >> 4), u64::from(component[1] & 15)))
        .collect();
    let most = |side: fn(&(u64, u64)) -> u64| sampling.iter().map(side).max();
    let (across, down) = (most(|factor| factor.0)?, most(|factor| factor.1)?);
    let samples: u64 = sampling.iter().map(|(across, down)| across * down).sum();
    if width == 0 || height == 0 || across == 0 || down == 0 {
        return None;
    }
    Some(Header {
        width,
        height,
        channels,
        samples_per_64: (samples * 64).div_ceil(across * down),
        has_many_scans: marker == 0xc2,
    })
}
