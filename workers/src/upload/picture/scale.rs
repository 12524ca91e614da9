//! Makes pictures smaller: each new pixel is the mean of the area it covers.
//!
//! Goes row by row, so it needs no memory beside the two pictures; colours weigh as much as they
//! are opaque, so that what shines through leaves no fringe.

use image::{DynamicImage, RgbImage, RgbaImage};

/// Returns the size of a picture whose longest side is at most `side`; never larger than it was.
pub(super) fn fit(width: u32, height: u32, side: u32) -> (u32, u32) {
    let longest = width.max(height);
    if longest <= side {
        return (width, height);
    }
    let scaled = |length: u32| {
        let length = u64::from(length) * u64::from(side);
        let rounded = (length + u64::from(longest) / 2) / u64::from(longest);
        u32::try_from(rounded).unwrap_or(side).max(1)
    };
    (scaled(width), scaled(height))
}

/// Scales a picture of 8 bits a channel down, if it is larger.
pub(super) fn down(picture: DynamicImage, side: u32) -> DynamicImage {
    let size = (picture.width(), picture.height());
    let new = fit(size.0, size.1, side);
    if new == size {
        return picture;
    }
    let scaled = match &picture {
        DynamicImage::ImageRgb8(pixels) => {
            let rows = means::<3>(pixels, size, new);
            RgbImage::from_raw(new.0, new.1, rows).map(DynamicImage::ImageRgb8)
        }
        other => {
            let rows = match other.as_rgba8() {
                Some(pixels) => means::<4>(pixels, size, new),
                None => means::<4>(&other.to_rgba8(), size, new),
            };
            RgbaImage::from_raw(new.0, new.1, rows).map(DynamicImage::ImageRgba8)
        }
    };
    // `means` made exactly that many bytes.
    scaled.unwrap_or(picture)
}

/// True when nothing shines through.
pub(super) fn is_opaque(picture: &DynamicImage) -> bool {
    match picture {
        DynamicImage::ImageRgba8(pixels) => pixels.pixels().all(|pixel| pixel.0[3] == 255),
        picture => !picture.color().has_alpha(),
    }
}

/// One new pixel's share of the old ones along one axis.
struct Span {
    first: usize,
    weights: Vec<f32>,
}

fn spans(old: u32, new: u32) -> Vec<Span> {
    let ratio = f64::from(old) / f64::from(new);
    let span = |place: u32| {
        let (from, to) = (f64::from(place) * ratio, f64::from(place + 1) * ratio);
        let mut weights = Vec::new();
        let mut at = from.floor();
        let first = at;
        while at < to && at < f64::from(old) {
            let covered = (at + 1.0).min(to) - at.max(from);
            weights.push(small(covered / ratio));
            at += 1.0;
        }
        Span {
            first: whole(first),
            weights,
        }
    };
    (0..new).map(span).collect()
}

fn means<const C: usize>(pixels: &[u8], old: (u32, u32), new: (u32, u32)) -> Vec<u8> {
    let row_bytes = whole(f64::from(old.0)) * C;
    let (columns, rows) = (spans(old.0, new.0), spans(old.1, new.1));
    let mut out = Vec::with_capacity(columns.len() * rows.len() * C);
    let mut sums = vec![[0_f32; C]; columns.len()];
    for row in &rows {
        sums.fill([0.0; C]);
        for (n, weight) in row.weights.iter().enumerate() {
            let begin = (row.first + n) * row_bytes;
            let Some(line) = pixels.get(begin..begin + row_bytes) else {
                continue;
            };
            add_row(line, &columns, *weight, &mut sums);
        }
        for sum in &sums {
            let opacity = if C == 4 { sum[C - 1].max(1e-6) } else { 1.0 };
            for (channel, value) in sum.iter().enumerate() {
                let value = match (C, channel) {
                    (4, 3) => value * 255.0,
                    _ => value / opacity,
                };
                out.push(byte(value));
            }
        }
    }
    out
}

fn add_row<const C: usize>(line: &[u8], columns: &[Span], weight: f32, sums: &mut [[f32; C]]) {
    for (column, sum) in columns.iter().zip(sums) {
        let begin = column.first * C;
        let covered = line.get(begin..).unwrap_or_default();
        for (pixel, share) in covered.chunks_exact(C).zip(&column.weights) {
            let share = share * weight;
            if C == 4 {
                let share = share * f32::from(pixel[3]) / 255.0;
                for channel in 0..3 {
                    sum[channel] += f32::from(pixel[channel]) * share;
                }
                sum[3] += share;
            } else {
                for channel in 0..C {
                    sum[channel] += f32::from(pixel[channel]) * share;
                }
            }
        }
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the value is clamped to a byte's range"
)]
fn byte(value: f32) -> u8 {
    (value + 0.5).clamp(0.0, 255.0) as u8
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sides of pictures are 32-bit numbers, which every usize here holds"
)]
fn whole(value: f64) -> usize {
    value as usize
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "a weight between 0 and 1 loses only precision that no byte shows"
)]
fn small(value: f64) -> f32 {
    value as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_keep_their_shape() {
        assert_eq!(fit(4000, 3000, 160), (160, 120));
        assert_eq!(fit(3000, 4000, 160), (120, 160));
        assert_eq!(fit(10_000, 1, 160), (160, 1));
        assert_eq!(fit(100, 50, 160), (100, 50));
    }

    #[test]
    fn a_plain_picture_stays_plain_at_any_ratio() {
        for (width, height, side) in [(400, 300, 299), (401, 77, 160), (1000, 999, 7)] {
            let plain = RgbImage::from_pixel(width, height, image::Rgb([200, 100, 3]));
            let scaled = down(plain.into(), side).into_rgb8();
            assert!(scaled.pixels().all(|pixel| pixel.0 == [200, 100, 3]));
        }
    }

    #[test]
    fn what_is_transparent_lends_no_colour() {
        let picture = RgbaImage::from_fn(100, 100, |x, _| match x % 2 {
            0 => image::Rgba([255, 0, 0, 255]),
            _ => image::Rgba([0, 255, 0, 0]),
        });
        let scaled = down(picture.into(), 50).into_rgba8();
        assert!(scaled.pixels().all(|pixel| pixel.0 == [255, 0, 0, 128]));
    }
}
