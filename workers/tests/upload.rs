//! The upload worker on real Kafka, PostgreSQL and an S3 server: what comes of uploads, whatever
//! happens to the worker or to the store. Needs Kafka, PostgreSQL and S3.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::string_slice,
    reason = "a test that cannot go on panics, and its helpers are part of it"
)]

#[path = "../../store/tests/support/mod.rs"]
#[allow(
    dead_code,
    reason = "shared with the store's own tests, which use all of it"
)]
mod support;

#[path = "upload_support/mod.rs"]
mod upload_support;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use shared::config::KafkaConfig;
use shared::ids::MediaId;
use store::job_log::{JobLog, KafkaJobLog, ensure_topics};
use store::media::{MediaStore, PartOf, S3Store, UploadTerms, keys};
use store::records::{MediaState, Records};
use upload_support::{Flaky, Uploads, gps_jpeg, mp4, noise, png, png_bomb, sha256};
use workers::upload::Sweeper;

const MINUTE: Duration = Duration::from_secs(60);

/// The consumer group has one name: the tests take turns.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn job_log() -> Arc<dyn JobLog> {
    let config = KafkaConfig {
        brokers: support::service("WYD_TEST_KAFKA_BROKERS"),
        partitions: 4,
        replication: 1,
        min_insync_replicas: 1,
        append_timeout: Duration::from_secs(20),
        ..KafkaConfig::default()
    };
    ensure_topics(&config).await.unwrap();
    Arc::new(KafkaJobLog::connect(&config).unwrap())
}

async fn uploads() -> Uploads {
    let fixture = support::postgres().await;
    let records = Records::open(&fixture.config.database).await;
    let config = support::s3();
    let store: Arc<dyn MediaStore> = Arc::new(S3Store::connect(&config).await);
    Uploads::new(config, job_log().await, store, records.unwrap().unwrap())
}

async fn put(url: &store::media::SignedRequest, body: &[u8]) -> u16 {
    let mut request = reqwest::Client::new().put(&url.url);
    for (name, value) in &url.headers {
        request = request.header(name, value);
    }
    match request.body(body.to_vec()).send().await {
        Ok(answer) => answer.status().as_u16(),
        // A server may refuse a large body before it has read it.
        Err(_) => 400,
    }
}

/// What a client does with a file that is too large for a job.
async fn upload(uploads: &Uploads, body: &[u8], content_type: &str) -> MediaId {
    let id = uploads.announce(body, content_type).await;
    let terms = UploadTerms {
        size: body.len() as u64,
        content_type: content_type.to_owned(),
        sha256: sha256(body),
    };
    let key = keys::staging(&id.to_string());
    let signed = uploads.store.sign_put(&key, &terms, MINUTE).await.unwrap();
    assert_eq!(put(&signed, &body[1..]).await / 100, 4, "a shorter body");
    let longer = [body, b"x"].concat();
    assert_eq!(put(&signed, &longer).await / 100, 4, "a longer body");
    let mut damaged = body.to_vec();
    damaged[body.len() / 2] ^= 1;
    assert_eq!(put(&signed, &damaged).await / 100, 4, "another body");
    assert_eq!(put(&signed, body).await, 200);
    uploads.complete(id, None).await;
    id
}

async fn upload_in_parts(uploads: &Uploads, body: &Bytes, content_type: &str) -> MediaId {
    const PART: usize = 5 << 20;
    let id = uploads.announce(body, content_type).await;
    let key = keys::staging(&id.to_string());
    let upload = uploads.store.begin_parts(&key, content_type).await.unwrap();
    for (n, part) in body.chunks(PART).enumerate() {
        let place = PartOf {
            key: &key,
            upload: &upload,
            number: u16::try_from(n + 1).unwrap(),
        };
        let signed = uploads
            .store
            .sign_part(place, part.len() as u64, MINUTE)
            .await
            .unwrap();
        assert_eq!(put(&signed, part).await, 200);
    }
    uploads
        .store
        .complete_parts(&key, &upload, body.len() as u64)
        .await
        .unwrap();
    uploads.complete(id, None).await;
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_uploaded_becomes_ready_and_its_channel_learns_it() {
    let _turn = TURN.lock().await;
    let uploads = uploads().await;
    let worker = uploads.worker().await;
    let photograph = upload(&uploads, &gps_jpeg(1600, 1200), "image/jpeg").await;
    let small = uploads.send(&png(300, 200), "image/png").await;
    let film = mp4(20 << 20);
    let film_id = upload_in_parts(&uploads, &film, "video/mp4").await;
    uploads.wait_for(&[photograph, small, film_id]).await;

    let told = uploads.told(photograph);
    assert_eq!(told["type"], "media.ready");
    let picture = &told["media"]["picture"];
    // Held upright: what was wide is high now.
    assert_eq!(picture["width"], 1200);
    assert_eq!(picture["height"], 1600);
    assert!(picture["blurhash"].as_str().unwrap().len() > 10);
    for (n, side) in [160, 480, 1280].into_iter().enumerate() {
        assert_eq!(picture["thumbnails"][n]["height"], side);
        let key = keys::thumbnail(&photograph.to_string(), side);
        let bytes = uploads.store.read(&key, 0, 1 << 24).await.unwrap();
        let pixels = image::load_from_memory(&bytes).unwrap();
        assert_eq!(pixels.height(), side);
    }
    let key = keys::original(&photograph.to_string());
    let original = uploads.store.read(&key, 0, 1 << 24).await.unwrap();
    assert!(!original.windows(3).any(|window| window == b"GPS"));
    assert_eq!(told["media"]["size"], original.len());

    assert_eq!(uploads.told(small)["media"]["content_type"], "image/png");
    let key = keys::original(&film_id.to_string());
    assert_eq!(uploads.store.read(&key, 0, 1 << 30).await.unwrap(), film);
    assert_eq!(uploads.told(film_id)["media"]["size"], film.len());
    for id in [photograph, small, film_id] {
        let staged = keys::staging(&id.to_string());
        assert_eq!(uploads.store.size(&staged).await.unwrap(), None);
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_good_is_rejected_with_a_reason() {
    let _turn = TURN.lock().await;
    let uploads = uploads().await;
    let worker = uploads.worker().await;
    let svg = br#"<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>"#;
    let photograph = gps_jpeg(400, 300);
    let mut other = photograph.clone();
    let middle = other.len() / 2;
    other[middle] ^= 1;
    let cut = &photograph[..middle];
    let large = vec![0; usize::try_from(uploads.config.image_bytes_max).unwrap() + 1];
    let cases = [
        (uploads.send(svg, "image/png").await, "type_mismatch"),
        (
            uploads.send(b"<html>", "text/html").await,
            "type_not_allowed",
        ),
        (
            uploads.send(&png_bomb(), "image/png").await,
            "image_too_large",
        ),
        (uploads.send(cut, "image/jpeg").await, "image_damaged"),
        (upload(&uploads, &large, "image/png").await, "too_large"),
        (
            uploads.send_as(&other, &photograph, "image/jpeg").await,
            "checksum_mismatch",
        ),
        (
            uploads.send_as(cut, &photograph, "image/jpeg").await,
            "size_mismatch",
        ),
        (uploads.announce_and_complete(&photograph).await, "missing"),
    ];
    for (id, code) in cases {
        uploads.wait_for(&[id]).await;
        let told = uploads.told(id);
        assert_eq!(told["type"], "media.rejected");
        assert_eq!(told["media"]["reason"]["code"], code, "{told}");
        assert_ne!(told["media"]["reason"]["message"], "");
        let row = uploads.records.medium(id).await.unwrap().unwrap();
        assert_eq!(row.state, MediaState::Rejected);
        let made = keys::all_of(&id.to_string());
        assert!(uploads.store.list(&made, None, 9).await.unwrap().is_empty());
    }
    worker.stop().await;
}

/// G2: killed between any two steps, the job is done again and nothing is there twice.
#[tokio::test(flavor = "multi_thread")]
async fn killed_workers_leave_one_medium_and_one_announcement() {
    let _turn = TURN.lock().await;
    let uploads = uploads().await;
    let mut ids = Vec::new();
    for n in 0..30 {
        ids.push(uploads.send(&png(200 + n, 100), "image/png").await);
    }
    let films = [mp4(17 << 20), mp4(9 << 20)];
    for film in &films {
        ids.push(upload_in_parts(&uploads, film, "video/mp4").await);
    }
    let mut kills = 0;
    while uploads.told_count(&ids) < ids.len() {
        let before = uploads.told_count(&ids);
        let worker = uploads.worker().await;
        let first = Instant::now();
        while uploads.told_count(&ids) < (before + 4).min(ids.len()) {
            assert!(first.elapsed() < Duration::from_secs(90));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        worker.kill().await;
        kills += 1;
    }
    println!(
        "{} media, {kills} kills, {} publishes",
        ids.len(),
        uploads.publishes()
    );
    // The last one ends what the others left.
    let worker = uploads.worker().await;
    uploads.wait_for(&ids).await;
    for (n, id) in ids.iter().enumerate() {
        let made = keys::all_of(&id.to_string());
        let objects = uploads.store.list(&made, None, 99).await.unwrap();
        let wanted = if n < 30 { 4 } else { 1 };
        assert_eq!(objects.len(), wanted, "{objects:?}");
        // Every try told the same, so that the broker takes it for one.
        uploads.told(*id);
    }
    worker.stop().await;
    let swept = sweep(&uploads, Duration::from_secs(3600 * 25)).await;
    println!("left behind and swept: {swept:?}");
    assert!(open_uploads(&uploads).await.is_empty());
}

/// S1: parts and objects fail for a while; the job is tried again and leaves nothing open.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_for_a_while_delays_and_loses_nothing() {
    let _turn = TURN.lock().await;
    let mut uploads = uploads().await;
    let film = mp4(40 << 20);
    let film_id = upload_in_parts(&uploads, &film, "video/mp4").await;
    let picture = uploads.send(&png(300, 200), "image/png").await;
    let flaky = Flaky::new(Arc::clone(&uploads.store));
    uploads.store = flaky.clone();
    let worker = uploads.worker().await;
    uploads.wait_for(&[film_id, picture]).await;
    assert!(flaky.failures() >= 5, "{}", flaky.failures());
    let key = keys::original(&film_id.to_string());
    assert_eq!(uploads.store.size(&key).await.unwrap(), Some(40 << 20));
    assert_eq!(uploads.told(film_id)["type"], "media.ready");
    assert_eq!(uploads.told(picture)["type"], "media.ready");
    worker.stop().await;
    let open = uploads.store.open_uploads(&key).await.unwrap();
    assert!(open.is_empty(), "{open:?}");
}

async fn open_uploads(uploads: &Uploads) -> Vec<store::media::OpenUpload> {
    let mut open = uploads.store.open_uploads(keys::STAGING).await.unwrap();
    open.extend(uploads.store.open_uploads(keys::FINAL).await.unwrap());
    open
}

async fn sweep(uploads: &Uploads, later: Duration) -> workers::upload::Swept {
    let sweeper = Sweeper {
        store: Arc::clone(&uploads.store),
        records: uploads.records.clone(),
        staging_ttl: uploads.config.staging_ttl,
    };
    sweeper.sweep(SystemTime::now() + later).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_never_finished_is_swept() {
    let _turn = TURN.lock().await;
    let uploads = uploads().await;
    sweep(&uploads, Duration::from_secs(3600 * 25)).await;
    let body = noise(1000);
    // Announced and begun; announced and uploaded but not completed; nobody's.
    let begun = uploads.announce(&body, "video/mp4").await;
    let key = keys::staging(&begun.to_string());
    let upload = uploads.store.begin_parts(&key, "video/mp4").await.unwrap();
    uploads
        .records
        .set_media_upload(begun, &upload)
        .await
        .unwrap();
    let forgotten = uploads.announce(&body, "image/png").await;
    let orphan = MediaId::now();
    for id in [forgotten, orphan] {
        let key = keys::staging(&id.to_string());
        uploads
            .store
            .put(&key, body.clone(), "image/png")
            .await
            .unwrap();
    }
    let half_made = keys::original(&orphan.to_string());
    uploads
        .store
        .begin_parts(&half_made, "video/mp4")
        .await
        .unwrap();
    // Completed, and its job waits: it may wait for as long as it takes.
    let waiting = uploads.announce(&body, "image/png").await;
    let waiting_key = keys::staging(&waiting.to_string());
    let put = uploads.store.put(&waiting_key, body.clone(), "image/png");
    put.await.unwrap();
    uploads.records.media_uploaded(waiting, 1).await.unwrap();

    let early = sweep(&uploads, Duration::ZERO).await;
    assert_eq!(early, workers::upload::Swept::default());
    let swept = sweep(&uploads, Duration::from_secs(3600 * 25)).await;
    println!("{swept:?}");
    assert_eq!((swept.expired, swept.uploads), (2, 2));
    assert!(open_uploads(&uploads).await.is_empty());
    let staged = uploads.store.list(keys::STAGING, None, 9).await.unwrap();
    assert_eq!(staged.len(), 1, "{staged:?}");
    assert_eq!(staged[0].key, waiting_key);
    for id in [begun, forgotten] {
        let row = uploads.records.medium(id).await.unwrap().unwrap();
        assert!(row.reason.starts_with("expired: "), "{}", row.reason);
    }
    uploads.store.delete(&waiting_key).await.unwrap();
}

/// Run by hand: `cargo test --workspace --test upload -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn uploads_per_second() {
    let _turn = TURN.lock().await;
    let uploads = uploads().await;
    let photograph = gps_jpeg(2000, 1500);
    let small = gps_jpeg(640, 480);
    let count = |n| if n < 60 { &small } else { &photograph };
    let mut ids = Vec::new();
    for n in 0..120 {
        let body = count(n);
        ids.push(match body.len() <= uploads.config.small_bytes_max {
            true => uploads.send(body, "image/jpeg").await,
            false => upload(&uploads, body, "image/jpeg").await,
        });
    }
    let cpu = upload_support::cpu_seconds();
    let started = Instant::now();
    let worker = uploads.worker().await;
    uploads.wait_for(&ids).await;
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{} pictures (half 640x480 with {} bytes, half 2000x1500 with {} bytes) in {seconds:.1} s: \
         {:.1} a second, {:.2} s of CPU each",
        ids.len(),
        small.len(),
        photograph.len(),
        120.0 / seconds,
        (upload_support::cpu_seconds() - cpu) / 120.0,
    );
    worker.stop().await;
}
