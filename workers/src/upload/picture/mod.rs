//! Pictures: decoded within limits, turned upright, stripped of what they tell about their maker,
//! and made smaller.
//!
//! Nothing here waits or is asked to stop: `pool` gives it a thread, memory and a time limit. The
//! header is judged first (`cost`), so that a few bytes cannot make this process allocate much.

mod gif;
mod jpeg;
mod scale;

use std::io::{BufRead, Cursor, Read, Seek, SeekFrom};

use bytes::Bytes;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageEncoder, ImageFormat, ImageReader};
use shared::config::MediaConfig;
use store::records::{PictureResult, Thumbnail};
use tokio::time::Instant;

use super::Rejection;

use scale::fit;

/// Quality of the kept picture, and of its thumbnails.
const QUALITY: u8 = 88;
const THUMBNAIL_QUALITY: u8 = 78;
/// The blur is made of a picture of this side with so many components.
const BLUR_SIDE: u32 = 32;
const BLUR_COMPONENTS: (u32, u32) = (4, 3);
/// Longest colour profile that is kept; those of phones have about 500 bytes.
const PROFILE_BYTES_MAX: usize = 16 * 1024;

/// What a picture may be.
#[derive(Debug, Clone)]
pub(crate) struct Bounds {
    pixels_max: u64,
    memory_max: u64,
    side_max: u32,
    thumbnail_sides: Vec<u32>,
}

impl Bounds {
    pub(crate) fn of(config: &MediaConfig) -> Self {
        let mut sides = config.thumbnail_sides.clone();
        sides.sort_unstable();
        sides.dedup();
        Self {
            pixels_max: config.image_pixels_max,
            memory_max: config.image_memory_max,
            side_max: config.image_side_max,
            thumbnail_sides: sides,
        }
    }
}

/// A picture as it is kept.
#[derive(Debug)]
pub(crate) struct Picture {
    pub(crate) content_type: &'static str,
    pub(crate) bytes: Bytes,
    /// Of every thumbnail in `about`, its bytes.
    pub(crate) thumbnails: Vec<Bytes>,
    pub(crate) about: PictureResult,
}

/// Returns the format of a content type whose pictures are understood.
pub(crate) fn format_of(content_type: &str) -> Option<ImageFormat> {
    match content_type {
        "image/jpeg" => Some(ImageFormat::Jpeg),
        "image/png" => Some(ImageFormat::Png),
        "image/webp" => Some(ImageFormat::WebP),
        "image/gif" => Some(ImageFormat::Gif),
        _ => None,
    }
}

/// Judges a picture by its header: the bytes of memory that [`make`] will need.
///
/// # Errors
/// A picture that is damaged, has too many pixels, or needs more memory than allowed.
pub(crate) fn cost(bytes: &Bytes, format: ImageFormat, bounds: &Bounds) -> Result<u64, Rejection> {
    let (width, height, working) = match format {
        ImageFormat::Jpeg => {
            let header = jpeg::read(bytes).map_err(damaged)?;
            let working = header.working_bytes() + bytes.len() as u64;
            (header.width, header.height, working)
        }
        _ => {
            let decoder = open(bytes.clone(), format, bounds, None)?;
            let (width, height) = decoder.dimensions();
            let pixels = u64::from(width) * u64::from(height);
            let color = decoder.color_type();
            // Deep colours and grey are turned into 8-bit RGB or RGBA beside the original.
            let is_plain = matches!(color, image::ColorType::Rgb8 | image::ColorType::Rgba8);
            let converted = if is_plain { 0 } else { 4 };
            let planes = match format {
                ImageFormat::Png => 0,
                // A frame's own planes, beside the canvas.
                _ => 6,
            };
            let per_pixel = u64::from(color.bytes_per_pixel()) + converted + planes;
            (width, height, pixels.saturating_mul(per_pixel))
        }
    };
    let pixels = u64::from(width) * u64::from(height);
    if pixels > bounds.pixels_max {
        return Err(too_large(format!(
            "the picture has {pixels} pixels; at most {} are allowed",
            bounds.pixels_max
        )));
    }
    let (kept_width, kept_height) = fit(width, height, bounds.side_max);
    let channels = if format == ImageFormat::Jpeg { 3 } else { 4 };
    let kept = u64::from(kept_width) * u64::from(kept_height) * channels;
    let needed = working + kept + bytes.len() as u64;
    if needed > bounds.memory_max {
        return Err(too_large(format!(
            "the picture needs {needed} bytes of memory; at most {} are allowed",
            bounds.memory_max
        )));
    }
    Ok(needed)
}

/// Makes of an uploaded picture what is kept of it.
///
/// # Errors
/// A picture that is damaged or takes too long.
pub(crate) fn make(
    bytes: Bytes,
    format: ImageFormat,
    bounds: &Bounds,
    deadline: Instant,
) -> Result<Picture, Rejection> {
    // A GIF moves: it is kept as it is, without what it says beside the pictures.
    let kept_gif = match format {
        ImageFormat::Gif => Some(gif::strip(&bytes).map_err(damaged)?),
        _ => None,
    };
    let decoded = decode(bytes, format, bounds, deadline)?;
    let Decoded { pixels, profile } = decoded;
    let profile = profile.as_deref();
    in_time(deadline)?;
    let is_opaque = scale::is_opaque(&pixels);
    let pixels = if is_opaque {
        DynamicImage::ImageRgb8(pixels.into_rgb8())
    } else {
        pixels
    };
    let (content_type, bytes) = match kept_gif {
        Some(gif) => ("image/gif", gif),
        // A screenshot stays sharp; a photograph that came as WebP becomes a JPEG.
        None => encode(
            &pixels,
            is_opaque && format != ImageFormat::Png,
            QUALITY,
            profile,
        )?,
    };
    let mut thumbnails = Vec::new();
    let mut about = PictureResult {
        width: pixels.width(),
        height: pixels.height(),
        blurhash: String::new(),
        thumbnails: Vec::new(),
    };
    // Each from the next larger one: from the largest to the smallest.
    let mut smaller = pixels;
    for side in bounds.thumbnail_sides.iter().rev() {
        in_time(deadline)?;
        smaller = scale::down(smaller, *side);
        let (content_type, bytes) = encode(&smaller, is_opaque, THUMBNAIL_QUALITY, profile)?;
        thumbnails.insert(0, bytes);
        let thumbnail = Thumbnail {
            side: *side,
            width: smaller.width(),
            height: smaller.height(),
            content_type: content_type.to_owned(),
        };
        about.thumbnails.insert(0, thumbnail);
    }
    about.blurhash = blur(scale::down(smaller, BLUR_SIDE))?;
    Ok(Picture {
        content_type,
        bytes,
        thumbnails,
        about,
    })
}

/// Pixels that are upright, of 8 bits a channel, and no larger than what is kept.
struct Decoded {
    pixels: DynamicImage,
    profile: Option<Vec<u8>>,
}

fn decode(
    bytes: Bytes,
    format: ImageFormat,
    bounds: &Bounds,
    deadline: Instant,
) -> Result<Decoded, Rejection> {
    let mut decoder = open(bytes, format, bounds, Some(deadline))?;
    // What cannot be read of the metadata counts as not there.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let profile = decoder.icc_profile().ok().flatten();
    let decoded = DynamicImage::from_decoder(decoder).map_err(unreadable)?;
    in_time(deadline)?;
    let eight_bits = match decoded {
        rgb @ (DynamicImage::ImageRgb8(_) | DynamicImage::ImageRgba8(_)) => rgb,
        other if other.color().has_alpha() => DynamicImage::ImageRgba8(other.into_rgba8()),
        other => DynamicImage::ImageRgb8(other.into_rgb8()),
    };
    // Scaled down before it is turned: turning needs a second copy.
    let mut pixels = scale::down(eight_bits, bounds.side_max);
    pixels.apply_orientation(orientation);
    Ok(Decoded {
        pixels,
        profile: profile.filter(|profile| is_rgb_profile(profile)),
    })
}

/// True for a profile that fits the pixels as they are written: RGB (ICC.1 §7.2, bytes 16 to 19).
fn is_rgb_profile(profile: &[u8]) -> bool {
    profile.len() <= PROFILE_BYTES_MAX && profile.get(16..20) == Some(b"RGB ")
}

fn open(
    bytes: Bytes,
    format: ImageFormat,
    bounds: &Bounds,
    deadline: Option<Instant>,
) -> Result<impl ImageDecoder, Rejection> {
    let source = InTime {
        source: Cursor::new(bytes),
        deadline,
    };
    let mut reader = ImageReader::with_format(source, format);
    let mut limits = image::Limits::default();
    limits.max_alloc = Some(bounds.memory_max);
    reader.limits(limits);
    reader.into_decoder().map_err(unreadable)
}

/// Writes pixels; without any of the original's metadata but for its colour profile.
fn encode(
    pixels: &DynamicImage,
    as_jpeg: bool,
    quality: u8,
    profile: Option<&[u8]>,
) -> Result<(&'static str, Bytes), Rejection> {
    let mut bytes = Vec::new();
    let content_type = if as_jpeg {
        let mut encoder = JpegEncoder::new_with_quality(&mut bytes, quality);
        with_profile(&mut encoder, profile);
        pixels.write_with_encoder(encoder).map_err(unwritable)?;
        "image/jpeg"
    } else {
        let mut encoder = PngEncoder::new(&mut bytes);
        with_profile(&mut encoder, profile);
        pixels.write_with_encoder(encoder).map_err(unwritable)?;
        "image/png"
    };
    Ok((content_type, bytes.into()))
}

fn with_profile(encoder: &mut impl ImageEncoder, profile: Option<&[u8]>) {
    if let Some(profile) = profile {
        // A profile that the format cannot hold is left out: colours are a little off then.
        drop(encoder.set_icc_profile(profile.to_vec()));
    }
}

fn blur(pixels: DynamicImage) -> Result<String, Rejection> {
    let (x, y) = BLUR_COMPONENTS;
    let (width, height) = (pixels.width(), pixels.height());
    blurhash::encode(x, y, width, height, &pixels.into_rgba8())
        .map_err(|error| damaged(error.to_string()))
}

fn in_time(deadline: Instant) -> Result<(), Rejection> {
    if Instant::now() < deadline {
        Ok(())
    } else {
        Err(Rejection::new(
            "image_too_slow",
            "the picture takes too long to decode",
        ))
    }
}

#[allow(clippy::needless_pass_by_value, reason = "it is given to map_err")]
fn unreadable(error: image::ImageError) -> Rejection {
    match error {
        image::ImageError::Limits(_) => too_large("the picture needs too much memory".to_owned()),
        image::ImageError::IoError(error) if error.kind() == std::io::ErrorKind::TimedOut => {
            Rejection::new("image_too_slow", "the picture takes too long to decode")
        }
        error => damaged(error.to_string()),
    }
}

#[allow(clippy::needless_pass_by_value, reason = "it is given to map_err")]
fn unwritable(error: image::ImageError) -> Rejection {
    damaged(error.to_string())
}

fn damaged(why: impl AsRef<str>) -> Rejection {
    let why = why.as_ref();
    Rejection::new(
        "image_damaged",
        format!("the picture cannot be read: {why}"),
    )
}

fn too_large(text: String) -> Rejection {
    Rejection::new("image_too_large", text)
}

/// Reads until the deadline: a decoder that is fed slowly by its own data ends then.
struct InTime {
    source: Cursor<Bytes>,
    deadline: Option<Instant>,
}

impl InTime {
    fn check(&self) -> std::io::Result<()> {
        match self.deadline {
            Some(deadline) if Instant::now() >= deadline => {
                Err(std::io::Error::from(std::io::ErrorKind::TimedOut))
            }
            _ => Ok(()),
        }
    }
}

impl Read for InTime {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.check()?;
        self.source.read(buffer)
    }
}

impl BufRead for InTime {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        self.check()?;
        self.source.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.source.consume(amount);
    }
}

impl Seek for InTime {
    fn seek(&mut self, place: SeekFrom) -> std::io::Result<u64> {
        self.source.seek(place)
    }
}

#[cfg(test)]
mod tests;
