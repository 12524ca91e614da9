//! Memory of a worker that works on the largest pictures it takes, in a process of its own.
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

use shared::config::MediaConfig;
use store::job_log::EmbeddedJobLog;
use store::media::{FileStore, keys};
use store::records::Records;
use upload_support::{Uploads, large_jpeg, large_png};

const MIB: u64 = 1 << 20;

/// A figure of this process in bytes (proc(5)).
fn memory(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line
        .unwrap()
        .trim_start_matches(':')
        .trim()
        .trim_end_matches(" kB");
    kib.parse::<u64>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_pictures_fit_into_256_mib() {
    let fixture = support::sqlite().await;
    let records = Records::open(&fixture.config.database).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display().to_string();
    let config = MediaConfig {
        folder: path.clone(),
        ..MediaConfig::default()
    };
    let job_log = EmbeddedJobLog::open(&format!("sqlite://{path}/jobs.db")).await;
    let store = Arc::new(FileStore::open(&path).await.unwrap());
    let records = records.unwrap().unwrap();
    let uploads = Uploads::new(config, Arc::new(job_log.unwrap()), store, records);

    // 50 million pixels as JPEG, 33 million as PNG with transparency, each several at once.
    let mut ids = Vec::new();
    for n in 0..2 {
        ids.push(staged(&uploads, &large_jpeg(8160 - n, 6120), "image/jpeg").await);
        ids.push(staged(&uploads, &large_png(5800 - n, 5700), "image/png").await);
    }
    let before = memory("VmRSS");
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let worker = uploads.worker().await;
    uploads.wait_for(&ids).await;
    worker.stop().await;
    let peak = memory("VmHWM");
    for id in ids {
        assert_eq!(
            uploads.told(id)["type"],
            "media.ready",
            "{}",
            uploads.told(id)
        );
    }
    println!("before: {} MiB, peak: {} MiB", before / MIB, peak / MIB);
    assert!(peak < 256 * MIB, "{} MiB", peak / MIB);
}

async fn staged(uploads: &Uploads, body: &[u8], content_type: &str) -> shared::ids::MediaId {
    let id = uploads.announce(body, content_type).await;
    let key = keys::staging(&id.to_string());
    let body = bytes::Bytes::copy_from_slice(body);
    uploads.store.put(&key, body, content_type).await.unwrap();
    uploads.complete(id, None).await;
    id
}
