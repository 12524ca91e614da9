use std::time::Duration;

use image::{Rgb, RgbImage, Rgba, RgbaImage};

use super::*;

fn bounds() -> Bounds {
    Bounds::of(&MediaConfig::default())
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn made(bytes: impl Into<Bytes>, format: ImageFormat) -> Result<Picture, Rejection> {
    let bytes = bytes.into();
    cost(&bytes, format, &bounds())?;
    make(bytes, format, &bounds(), soon())
}

fn code(bytes: impl Into<Bytes>, format: ImageFormat) -> &'static str {
    made(bytes, format).unwrap_err().code
}

/// Red at the left, blue at the right, green below.
fn landscape(width: u32, height: u32) -> DynamicImage {
    let pixel = |x, y| match (x < width / 2, y < height / 2) {
        (_, false) => Rgb([0, 200, 0]),
        (true, _) => Rgb([250, 0, 0]),
        (false, _) => Rgb([0, 0, 250]),
    };
    RgbImage::from_fn(width, height, pixel).into()
}

fn written(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// Exif as a phone writes it: how it was held, and where (Exif 2.3 §4.6).
fn exif(orientation: u8) -> Vec<u8> {
    let mut tiff = b"MM\0\x2a\0\0\0\x08".to_vec();
    tiff.extend_from_slice(b"\0\x02");
    tiff.extend_from_slice(&[0x01, 0x12, 0, 3, 0, 0, 0, 1, 0, orientation, 0, 0]);
    tiff.extend_from_slice(&[0x88, 0x25, 0, 4, 0, 0, 0, 1, 0, 0, 0, 38]);
    tiff.extend_from_slice(b"\0\0\0\0");
    // The GPS directory: latitude north, with a text that is easy to find.
    tiff.extend_from_slice(b"\0\x02");
    tiff.extend_from_slice(&[0, 1, 0, 2, 0, 0, 0, 2, b'N', 0, 0, 0]);
    tiff.extend_from_slice(&[0, 27, 0, 7, 0, 0, 0, 12, 0, 0, 0, 68]);
    tiff.extend_from_slice(b"\0\0\0\0GPS-SECRETLY");
    let mut segment = vec![0xff, 0xe1];
    let length = u16::try_from(tiff.len() + 8).unwrap();
    segment.extend_from_slice(&length.to_be_bytes());
    segment.extend_from_slice(b"Exif\0\0");
    segment.extend_from_slice(&tiff);
    segment
}

fn with_exif(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    let mut bytes = jpeg[..2].to_vec();
    bytes.extend(exif(orientation));
    bytes.extend_from_slice(&jpeg[2..]);
    bytes
}

fn near(found: Rgb<u8>, wanted: [u8; 3]) -> bool {
    let pairs = found.0.iter().zip(wanted);
    pairs.into_iter().all(|(a, b)| a.abs_diff(b) < 40)
}

fn holds(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}

#[test]
fn a_photograph_comes_out_upright_and_tells_no_place() {
    let jpeg = written(&landscape(600, 400), ImageFormat::Jpeg);
    // 6: turned by 90° to the left, as phones held upright write.
    let photograph = with_exif(&jpeg, 6);
    assert!(holds(&photograph, b"GPS-SECRETLY"));
    let picture = made(photograph, ImageFormat::Jpeg).unwrap();
    assert_eq!(picture.content_type, "image/jpeg");
    assert_eq!((picture.about.width, picture.about.height), (400, 600));
    let all = picture.thumbnails.iter().chain([&picture.bytes]);
    for bytes in all {
        for secret in [&b"GPS"[..], b"Exif"] {
            assert!(!holds(bytes, secret));
        }
        let pixels = image::load_from_memory(bytes).unwrap().into_rgb8();
        let (width, height) = pixels.dimensions();
        assert!(width < height);
        // Turned to the right: red was left, so it is on top, and green was below, so it is left.
        let at = |x: u32, y: u32| *pixels.get_pixel(x * width / 8, y * height / 8);
        assert!(near(at(2, 4), [0, 200, 0]), "{:?}", at(2, 4));
        assert!(near(at(6, 1), [250, 0, 0]), "{:?}", at(6, 1));
        assert!(near(at(6, 7), [0, 0, 250]), "{:?}", at(6, 7));
    }
    let sizes: Vec<_> = picture
        .about
        .thumbnails
        .iter()
        .map(|thumbnail| (thumbnail.side, thumbnail.width, thumbnail.height))
        .collect();
    assert_eq!(sizes, [(160, 107, 160), (480, 320, 480), (1280, 400, 600)]);
    assert!(picture.about.blurhash.len() > 20);
}

#[test]
fn every_orientation_is_applied() {
    let jpeg = written(&landscape(64, 32), ImageFormat::Jpeg);
    for orientation in 1..=8 {
        let picture = made(with_exif(&jpeg, orientation), ImageFormat::Jpeg).unwrap();
        let is_turned = orientation >= 5;
        let size = (picture.about.width, picture.about.height);
        assert_eq!(size, if is_turned { (32, 64) } else { (64, 32) });
    }
}

#[test]
fn what_shines_through_still_does() {
    let sticker = RgbaImage::from_fn(300, 300, |x, _| Rgba([10, 20, 30, u8::from(x > 150) * 255]));
    for format in [ImageFormat::Png, ImageFormat::WebP] {
        let picture = made(written(&sticker.clone().into(), format), format).unwrap();
        assert_eq!(picture.content_type, "image/png");
        for bytes in picture.thumbnails.iter().chain([&picture.bytes]) {
            let pixels = image::load_from_memory(bytes).unwrap().into_rgba8();
            assert_eq!(pixels.get_pixel(5, 5).0[3], 0);
        }
    }
}

#[test]
fn large_pictures_are_made_smaller() {
    let bounds = Bounds {
        side_max: 500,
        ..bounds()
    };
    let bytes: Bytes = written(&landscape(2000, 1000), ImageFormat::Jpeg).into();
    let picture = make(bytes, ImageFormat::Jpeg, &bounds, soon()).unwrap();
    assert_eq!((picture.about.width, picture.about.height), (500, 250));
}

/// A PNG's first bytes with any size that one likes to declare.
fn png_of(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = written(&landscape(8, 8), ImageFormat::Png);
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    let crc = bytes[12..29].iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & 0_u32.wrapping_sub(crc & 1))
        })
    });
    bytes[29..33].copy_from_slice(&(!crc).to_be_bytes());
    bytes
}

#[test]
fn bombs_are_known_by_their_header() {
    assert!(made(png_of(8, 8), ImageFormat::Png).is_ok());
    for (width, height) in [(65_535, 65_535), (100_000, 1000), (i32::MAX as u32, 1)] {
        assert_eq!(
            code(png_of(width, height), ImageFormat::Png),
            "image_too_large"
        );
    }
    let mut jpeg = written(&landscape(8, 8), ImageFormat::Jpeg);
    let frame = jpeg.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0xff; 4]);
    assert_eq!(code(jpeg, ImageFormat::Jpeg), "image_too_large");
}

#[test]
fn damaged_pictures_are_said_to_be() {
    for format in [
        ImageFormat::Jpeg,
        ImageFormat::Png,
        ImageFormat::WebP,
        ImageFormat::Gif,
    ] {
        let whole = written(&landscape(300, 200), format);
        assert!(made(whole.clone(), format).is_ok(), "{format:?}");
        for cut in [0, 1, 10, 30, whole.len() / 2, whole.len() - 20] {
            let code = code(whole[..cut].to_vec(), format);
            assert_eq!(code, "image_damaged", "{format:?} cut at {cut}");
        }
        assert_eq!(code(b"<svg/>".to_vec(), format), "image_damaged");
    }
}

#[test]
fn no_bytes_make_it_panic() {
    let mut seed = 7_u64;
    let mut random = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(seed >> 33).unwrap()
    };
    for format in [
        ImageFormat::Jpeg,
        ImageFormat::Png,
        ImageFormat::WebP,
        ImageFormat::Gif,
    ] {
        let whole = written(&landscape(40, 30), format);
        for _ in 0..300 {
            let mut bytes = whole.clone();
            for _ in 0..4 {
                let place = random() % bytes.len();
                bytes[place] = u8::try_from(random() % 256).unwrap();
            }
            drop(made(bytes, format));
        }
    }
}

#[test]
fn time_runs_out() {
    let bytes: Bytes = written(&landscape(600, 400), ImageFormat::Png).into();
    let late = make(bytes, ImageFormat::Png, &bounds(), Instant::now());
    assert_eq!(late.unwrap_err().code, "image_too_slow");
}

#[test]
fn gifs_keep_moving_and_say_nothing_beside() {
    let mut bytes = Vec::new();
    {
        let mut encoder = image::codecs::gif::GifEncoder::new(&mut bytes);
        encoder
            .set_repeat(image::codecs::gif::Repeat::Infinite)
            .unwrap();
        for shade in [10, 200] {
            let frame = RgbaImage::from_pixel(20, 10, Rgba([shade, 0, 0, 255]));
            encoder.encode_frame(image::Frame::new(frame)).unwrap();
        }
    }
    let place = 13
        + if bytes[10] & 0x80 == 0 {
            0
        } else {
            3 << ((bytes[10] & 7) + 1)
        };
    let comment = b"\x21\xfe\x06SECRET\0".to_vec();
    bytes.splice(place..place, comment);
    assert!(holds(&bytes, b"SECRET"));
    let picture = made(bytes, ImageFormat::Gif).unwrap();
    assert_eq!(picture.content_type, "image/gif");
    assert!(!holds(&picture.bytes, b"SECRET"));
    assert!(holds(&picture.bytes, b"NETSCAPE2.0"));
    let decoder = image::codecs::gif::GifDecoder::new(Cursor::new(&picture.bytes)).unwrap();
    let frames = image::AnimationDecoder::into_frames(decoder);
    assert_eq!(frames.collect_frames().unwrap().len(), 2);
}
