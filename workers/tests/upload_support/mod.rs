//! What the tests of uploads share: a user who uploads, a channel that listens, and files.
#![allow(dead_code, reason = "not every test uses all of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use image::{ImageFormat, Rgb, RgbImage, Rgba, RgbaImage};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use serde_json::Value;
use sha2::{Digest, Sha256};
use shared::config::MediaConfig;
use shared::events::MediaEvent;
use shared::ids::{ChannelName, MediaId};
use store::job_log::{JobLog, media_job};
use store::media::{
    DownloadTerms, MediaError, MediaStore, Object, OpenUpload, PartOf, Put, SignedRequest,
    UploadTerms,
};
use store::records::{MediaCreated, MediaQuota, MediaState, Medium, Records};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use workers::upload::{ChannelPublisher, PublishError, UploadParts};

const PATIENCE: Duration = Duration::from_secs(90);

/// Hears what channels are told.
#[derive(Default)]
pub struct Told {
    by_key: Mutex<BTreeMap<String, Vec<Value>>>,
}

#[async_trait]
impl ChannelPublisher for Told {
    async fn publish(
        &self,
        channel: &ChannelName,
        data: Bytes,
        key: &str,
    ) -> Result<(), PublishError> {
        assert_eq!(channel.as_str(), "chat:1");
        let told = serde_json::from_slice(&data).unwrap();
        let mut by_key = self.by_key.lock();
        by_key.entry(key.to_owned()).or_default().push(told);
        Ok(())
    }
}

/// One user's uploads and what comes of them.
pub struct Uploads {
    pub config: MediaConfig,
    pub job_log: Arc<dyn JobLog>,
    pub store: Arc<dyn MediaStore>,
    pub records: Records,
    told: Arc<Told>,
}

impl Uploads {
    pub fn new(
        config: MediaConfig,
        job_log: Arc<dyn JobLog>,
        store: Arc<dyn MediaStore>,
        records: Records,
    ) -> Self {
        Self {
            config,
            job_log,
            store,
            records,
            told: Arc::default(),
        }
    }

    pub async fn worker(&self) -> Worker {
        let cancel = CancellationToken::new();
        let parts = UploadParts {
            job_log: Arc::clone(&self.job_log),
            store: Arc::clone(&self.store),
            records: self.records.clone(),
            publisher: Arc::clone(&self.told) as Arc<dyn ChannelPublisher>,
            metrics: workers::Metrics::new(&mut Registry::default()),
        };
        let worker = workers::upload::start(&self.config, parts, cancel.clone()).await;
        Worker {
            running: tokio::spawn(worker.unwrap()),
            cancel,
        }
    }

    /// Notes a medium that waits for its upload.
    pub async fn announce(&self, body: &[u8], content_type: &str) -> MediaId {
        let medium = Medium {
            id: MediaId::now(),
            channel: ChannelName::new("chat:1").unwrap(),
            user: "ann".to_owned(),
            state: MediaState::Pending,
            file_name: "holiday".to_owned(),
            content_type: content_type.to_owned(),
            size: body.len() as u64,
            sha256: hex(&sha256(body)),
            upload: String::new(),
            result: None,
            reason: String::new(),
            created_at_ms: now_ms(),
        };
        let quota = MediaQuota {
            pending_max: 1000,
            bytes_max: 1 << 40,
            since_ms: 0,
        };
        let created = self.records.create_medium(&medium, &quota).await.unwrap();
        assert_eq!(created, MediaCreated::New);
        medium.id
    }

    /// Has an announced medium checked, with its bytes or from staging.
    pub async fn complete(&self, id: MediaId, body: Option<&[u8]>) {
        let medium = self.records.medium(id).await.unwrap().unwrap();
        self.records.media_uploaded(id, now_ms()).await.unwrap();
        let event = MediaEvent {
            id,
            channel: medium.channel,
            user: medium.user,
            content_type: medium.content_type,
            size: medium.size,
            sha256: medium.sha256,
            bytes: body.map(|body| STANDARD.encode(body)),
            uploaded_at_ms: now_ms(),
        };
        let job = media_job(&event).unwrap();
        self.job_log.append(job).await.unwrap();
    }

    /// Sends a small file.
    pub async fn send(&self, body: &[u8], content_type: &str) -> MediaId {
        self.send_as(body, body, content_type).await
    }

    /// Sends other bytes than were announced.
    pub async fn send_as(&self, body: &[u8], announced: &[u8], content_type: &str) -> MediaId {
        let id = self.announce(announced, content_type).await;
        self.complete(id, Some(body)).await;
        id
    }

    /// Says that something was uploaded that was not.
    pub async fn announce_and_complete(&self, body: &[u8]) -> MediaId {
        let id = self.announce(body, "image/jpeg").await;
        self.complete(id, None).await;
        id
    }

    pub async fn wait_for(&self, ids: &[MediaId]) {
        let waiting = async {
            while self.told_count(ids) < ids.len() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        assert!(waited.is_ok(), "{} of {}", self.told_count(ids), ids.len());
    }

    pub fn told_count(&self, ids: &[MediaId]) -> usize {
        let by_key = self.told.by_key.lock();
        ids.iter()
            .filter(|id| by_key.contains_key(&id.to_string()))
            .count()
    }

    pub fn publishes(&self) -> usize {
        self.told.by_key.lock().values().map(Vec::len).sum()
    }

    /// What the channel learns: one thing, however often it was told.
    pub fn told(&self, id: MediaId) -> Value {
        let by_key = self.told.by_key.lock();
        let told = &by_key[&id.to_string()];
        let different: BTreeSet<String> = told.iter().map(Value::to_string).collect();
        assert_eq!(different.len(), 1, "{different:?}");
        told[0].clone()
    }
}

/// A worker that can be stopped or killed.
pub struct Worker {
    running: JoinHandle<()>,
    cancel: CancellationToken,
}

impl Worker {
    /// Ends it between any two of its lines.
    pub async fn kill(self) {
        self.running.abort();
        drop(self.running.await);
    }

    pub async fn stop(self) {
        self.cancel.cancel();
        self.running.await.unwrap();
    }
}

pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

/// Seconds of processor time of this process (proc(5): clock ticks of 10 ms).
pub fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks = fields.split(' ').skip(11).take(2);
    ticks
        .map(|ticks| ticks.parse::<f64>().unwrap() / 100.0)
        .sum()
}

/// Colours that no encoder makes small.
fn pixels(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let wave = |n: u32| u8::try_from((x * n + y * (7 - n)) / 3 % 256).unwrap();
        let grain = u8::try_from((x.wrapping_mul(2_654_435_761) ^ y.wrapping_mul(40_503)) >> 27);
        Rgb([wave(1), wave(2).wrapping_add(grain.unwrap()), wave(5)])
    })
}

fn written(pixels: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    pixels.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

pub fn png(width: u32, height: u32) -> Vec<u8> {
    written(&pixels(width, height), ImageFormat::Png)
}

pub fn jpeg(width: u32, height: u32) -> Vec<u8> {
    written(&pixels(width, height), ImageFormat::Jpeg)
}

/// As `pixels`, but smooth: millions of pixels that make a small file.
pub fn large_jpeg(width: u32, height: u32) -> Vec<u8> {
    let pixel = |x: u32, y: u32| Rgb([byte(x), byte(y), byte(x + y)]);
    written(&RgbImage::from_fn(width, height, pixel), ImageFormat::Jpeg)
}

/// The same, and half of it shines through.
pub fn large_png(width: u32, height: u32) -> Vec<u8> {
    let pixel = |x: u32, y: u32| Rgba([byte(x), byte(y), 7, byte(x) | 128]);
    let mut bytes = std::io::Cursor::new(Vec::new());
    let pixels = RgbaImage::from_fn(width, height, pixel);
    pixels.write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn byte(n: u32) -> u8 {
    u8::try_from(n / 16 % 256).unwrap()
}

/// A JPEG as a phone writes it: held upright (orientation 6), and saying where.
pub fn gps_jpeg(width: u32, height: u32) -> Vec<u8> {
    let jpeg = jpeg(width, height);
    let mut tiff = b"MM\0\x2a\0\0\0\x08\0\x01".to_vec();
    tiff.extend_from_slice(&[0x01, 0x12, 0, 3, 0, 0, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0]);
    tiff.extend_from_slice(b"GPS 52.5200 N 13.4050 E");
    let mut bytes = vec![0xff, 0xd8, 0xff, 0xe1];
    let length = u16::try_from(tiff.len() + 8).unwrap();
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(b"Exif\0\0");
    bytes.extend_from_slice(&tiff);
    bytes.extend_from_slice(&jpeg[2..]);
    bytes
}

/// A few bytes that declare 65,535 × 65,535 pixels.
pub fn png_bomb() -> Vec<u8> {
    let mut bytes = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xff\xff\0\0\xff\xff\x08\x06\0\0\0".to_vec();
    let crc = bytes[12..].iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & 0_u32.wrapping_sub(crc & 1))
        })
    });
    bytes.extend_from_slice(&(!crc).to_be_bytes());
    bytes.extend_from_slice(b"\0\0\0\x01IDAT\0");
    bytes
}

pub fn noise(n: usize) -> Bytes {
    let mut seed = 1_u64;
    let mut next = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        u8::try_from(seed >> 56).unwrap()
    };
    (0..n).map(|_| next()).collect()
}

/// What is a film by its first bytes.
pub fn mp4(n: usize) -> Bytes {
    let mut bytes = b"\0\0\0\x18ftypisom\0\0\0\0isommp42".to_vec();
    bytes.extend_from_slice(&noise(n - bytes.len()));
    bytes.into()
}

/// A store whose writes fail at first: every object once, the third part of an upload four times.
pub struct Flaky {
    store: Arc<dyn MediaStore>,
    failed: Mutex<BTreeSet<String>>,
    third_parts: AtomicUsize,
    failures: AtomicUsize,
}

impl Flaky {
    pub fn new(store: Arc<dyn MediaStore>) -> Arc<Self> {
        Arc::new(Self {
            store,
            failed: Mutex::default(),
            third_parts: AtomicUsize::new(0),
            failures: AtomicUsize::new(0),
        })
    }

    pub fn failures(&self) -> usize {
        self.failures.load(Ordering::Relaxed)
    }

    fn fail(&self) -> MediaError {
        self.failures.fetch_add(1, Ordering::Relaxed);
        MediaError::Unavailable("503 SlowDown".into())
    }
}

#[async_trait]
impl MediaStore for Flaky {
    async fn put(&self, key: &str, body: Bytes, content_type: &str) -> Result<Put, MediaError> {
        if self.failed.lock().insert(key.to_owned()) {
            return Err(self.fail());
        }
        self.store.put(key, body, content_type).await
    }

    async fn read(&self, key: &str, offset: u64, length: u64) -> Result<Bytes, MediaError> {
        self.store.read(key, offset, length).await
    }

    async fn size(&self, key: &str) -> Result<Option<u64>, MediaError> {
        self.store.size(key).await
    }

    async fn delete(&self, key: &str) -> Result<(), MediaError> {
        self.store.delete(key).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Object>, MediaError> {
        self.store.list(prefix, after, limit).await
    }

    async fn begin_parts(&self, key: &str, content_type: &str) -> Result<String, MediaError> {
        self.store.begin_parts(key, content_type).await
    }

    async fn put_part(&self, part: PartOf<'_>, body: Bytes) -> Result<(), MediaError> {
        // More often than one try of the job asks: it has to be tried again.
        if part.number == 3 && self.third_parts.fetch_add(1, Ordering::Relaxed) < 4 {
            return Err(self.fail());
        }
        self.store.put_part(part, body).await
    }

    async fn complete_parts(&self, key: &str, upload: &str, size: u64) -> Result<Put, MediaError> {
        self.store.complete_parts(key, upload, size).await
    }

    async fn abort_parts(&self, key: &str, upload: &str) -> Result<(), MediaError> {
        self.store.abort_parts(key, upload).await
    }

    async fn open_uploads(&self, prefix: &str) -> Result<Vec<OpenUpload>, MediaError> {
        self.store.open_uploads(prefix).await
    }

    async fn sign_put(
        &self,
        key: &str,
        terms: &UploadTerms,
        ttl: Duration,
    ) -> Result<SignedRequest, MediaError> {
        self.store.sign_put(key, terms, ttl).await
    }

    async fn sign_part(
        &self,
        part: PartOf<'_>,
        size: u64,
        ttl: Duration,
    ) -> Result<SignedRequest, MediaError> {
        self.store.sign_part(part, size, ttl).await
    }

    async fn sign_get(
        &self,
        key: &str,
        terms: &DownloadTerms,
        ttl: Duration,
    ) -> Result<String, MediaError> {
        self.store.sign_get(key, terms, ttl).await
    }

    async fn ping(&self) -> Result<(), MediaError> {
        self.store.ping().await
    }
}
