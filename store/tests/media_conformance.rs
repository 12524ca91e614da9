//! What every media store must do; needs an S3 server.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::string_slice,
    reason = "a test that cannot go on panics, and its helpers are part of it"
)]

#[allow(dead_code, reason = "shared with tests that use all of it")]
mod support;

use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use store::media::{
    DownloadTerms, FileStore, Grant, MediaError, MediaStore, PartOf, Put, SignedRequest,
    UploadTerms,
};

const MINUTE: Duration = Duration::from_secs(60);
const PART: usize = 5 << 20;

/// A store, and how its signed requests are made.
struct Fixture {
    store: Box<dyn MediaStore>,
    files: Option<FileStore>,
    _folder: Option<tempfile::TempDir>,
}

/// What a client got.
#[derive(Debug)]
struct Answer {
    status: u16,
    content_type: String,
    disposition: String,
    body: Bytes,
}

impl Fixture {
    async fn send(&self, request: &SignedRequest, body: &[u8]) -> Answer {
        match &self.files {
            Some(files) => by_grant(files, request, body).await,
            None => by_http(request, body).await,
        }
    }

    async fn get(&self, url: &str) -> Answer {
        let request = SignedRequest {
            method: "GET".to_owned(),
            url: url.to_owned(),
            headers: Vec::new(),
        };
        self.send(&request, b"").await
    }
}

const REFUSED: Answer = Answer {
    status: 403,
    content_type: String::new(),
    disposition: String::new(),
    body: Bytes::new(),
};

async fn by_http(request: &SignedRequest, body: &[u8]) -> Answer {
    let method = request.method.parse().unwrap();
    let mut sent = reqwest::Client::new().request(method, &request.url);
    for (name, value) in &request.headers {
        sent = sent.header(name, value);
    }
    let answer = match sent.body(body.to_vec()).send().await {
        Ok(answer) => answer,
        // Who refuses need not read the body: the connection is reset before the answer is read.
        Err(error) if !body.is_empty() && error.is_request() => return REFUSED,
        Err(error) => panic!("{error}"),
    };
    let header = |name: &str| {
        let value = answer.headers().get(name);
        value.map_or_else(String::new, |value| value.to_str().unwrap().to_owned())
    };
    Answer {
        status: answer.status().as_u16(),
        content_type: header("content-type"),
        disposition: header("content-disposition"),
        body: answer.bytes().await.unwrap(),
    }
}

/// What the node's public port does with a signed address.
async fn by_grant(files: &FileStore, request: &SignedRequest, body: &[u8]) -> Answer {
    let mut answer = REFUSED;
    let Ok(grant) = files.grant(&request.method, &request.url) else {
        return answer;
    };
    answer.status = 200;
    if let Grant::Get {
        key,
        content_type,
        disposition,
    } = &grant
    {
        answer.body = files.read(key, 0, u64::MAX).await.unwrap();
        answer.content_type = content_type.clone();
        answer.disposition = disposition.clone();
        return answer;
    }
    let mut incoming = files.receive(&grant).await.unwrap().unwrap();
    let taken = incoming.write(body).await;
    if taken.is_err() || incoming.finish().await.is_err() {
        answer.status = 400;
    }
    answer
}

fn key(name: &str) -> String {
    format!("test/{}/{name}", support::unique("media"))
}

fn bytes(n: usize) -> Bytes {
    (0..n)
        .map(|i| u8::try_from((i * 31 + i / 251) % 256).unwrap())
        .collect()
}

fn terms(body: &[u8], content_type: &str) -> UploadTerms {
    UploadTerms {
        size: body.len() as u64,
        content_type: content_type.to_owned(),
        sha256: Sha256::digest(body).into(),
    }
}

async fn whole(store: &dyn MediaStore, key: &str) -> Bytes {
    store.read(key, 0, 1 << 30).await.unwrap()
}

async fn a_new_object_stays_as_it_was_written(store: &dyn MediaStore) {
    let key = key("object");
    assert_eq!(store.size(&key).await.unwrap(), None);
    let body = bytes(1000);
    let put = store.put(&key, body.clone(), "image/png").await.unwrap();
    assert_eq!(put, Put::Created);
    let again = store.put(&key, bytes(7), "image/png").await.unwrap();
    assert_eq!(again, Put::Exists);
    assert_eq!(whole(store, &key).await, body);
    assert_eq!(store.size(&key).await.unwrap(), Some(1000));
    let part = store.read(&key, 990, 100).await.unwrap();
    assert_eq!(part, body.slice(990..));
    assert_eq!(store.read(&key, 1000, 5).await.unwrap(), Bytes::new());
    assert_eq!(store.read(&key, 10, 20).await.unwrap(), body.slice(10..30));
    store.delete(&key).await.unwrap();
    store.delete(&key).await.unwrap();
    let gone = store.read(&key, 0, 5).await.unwrap_err();
    assert!(matches!(gone, MediaError::NotFound), "{gone:?}");
}

async fn writers_of_one_key_make_one_object(store: &dyn MediaStore) {
    let key = key("raced");
    let writers = (0..8).map(|n| store.put(&key, bytes(1000 + n), "image/png"));
    let puts = futures::future::join_all(writers).await;
    let created = puts.iter().filter(|put| matches!(put, Ok(Put::Created)));
    assert_eq!(created.count(), 1, "{puts:?}");
    store.delete(&key).await.unwrap();
}

async fn lists_are_in_order_and_can_be_continued(store: &dyn MediaStore) {
    let folder = key("list");
    for n in 0..5 {
        let key = format!("{folder}/{n}");
        store.put(&key, bytes(n), "text/plain").await.unwrap();
    }
    let prefix = format!("{folder}/");
    let first = store.list(&prefix, None, 3).await.unwrap();
    let sizes = |objects: &[store::media::Object]| -> Vec<u64> {
        objects.iter().map(|object| object.size).collect()
    };
    assert_eq!(sizes(&first), [0, 1, 2]);
    let age = first[0].written_at.elapsed().unwrap_or_default();
    assert!(age < 10 * MINUTE, "{age:?}");
    let last = first.last().unwrap();
    let rest = store.list(&prefix, Some(&last.key), 30).await.unwrap();
    assert_eq!(sizes(&rest), [3, 4]);
    for object in first.iter().chain(&rest) {
        store.delete(&object.key).await.unwrap();
    }
    assert!(store.list(&prefix, None, 3).await.unwrap().is_empty());
}

async fn a_signed_upload_takes_exactly_that_object(fixture: &Fixture) {
    let store = &*fixture.store;
    let key = key("signed");
    let body = bytes(2000);
    let terms = terms(&body, "image/jpeg");
    let signed = store.sign_put(&key, &terms, MINUTE).await.unwrap();
    let refused = |answer: &Answer| (400..500).contains(&answer.status);

    let mut other = body.to_vec();
    other[5] ^= 1;
    for wrong in [&body[..1999], &bytes(2001)[..], &other[..], b""] {
        let answer = fixture.send(&signed, wrong).await;
        assert!(refused(&answer), "{} bytes: {answer:?}", wrong.len());
    }
    if fixture.files.is_none() {
        let mut html = signed.clone();
        for (name, value) in &mut html.headers {
            if name == "content-type" {
                "text/html".clone_into(value);
            }
        }
        assert_ne!(html, signed);
        let answer = fixture.send(&html, &body).await;
        assert!(refused(&answer), "{answer:?}");
    }
    let mut elsewhere = signed.clone();
    elsewhere.url = elsewhere.url.replacen("signed", "other1", 1);
    assert!(refused(&fixture.send(&elsewhere, &body).await));
    assert_eq!(store.size(&key).await.unwrap(), None);

    let answer = fixture.send(&signed, &body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(whole(store, &key).await, body);
    // A client that did not hear the answer sends it again.
    assert_eq!(fixture.send(&signed, &body).await.status, 200);
    store.delete(&key).await.unwrap();

    let ttl = Duration::from_secs(1);
    let short = store.sign_put(&key, &terms, ttl).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(refused(&fixture.send(&short, &body).await), "expired");
    assert_eq!(store.size(&key).await.unwrap(), None);
}

async fn a_signed_download_has_the_type_and_disposition_it_was_given(fixture: &Fixture) {
    let store = &*fixture.store;
    let key = key("download");
    store.put(&key, bytes(300), "text/html").await.unwrap();
    let terms = DownloadTerms {
        content_type: "application/pdf".to_owned(),
        disposition: "attachment; filename*=UTF-8''%C3%A9%20%26.pdf".to_owned(),
    };
    let url = store.sign_get(&key, &terms, MINUTE).await.unwrap();
    let answer = fixture.get(&url).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.body, bytes(300));
    assert_eq!(answer.content_type, terms.content_type);
    assert_eq!(answer.disposition, terms.disposition);
    let changed = url.replacen("attachment", "inline", 1);
    assert_ne!(fixture.get(&changed).await.status, 200);
    store.delete(&key).await.unwrap();
}

async fn parts_become_one_object(fixture: &Fixture) {
    let store = &*fixture.store;
    let key = key("parts");
    let body = bytes(2 * PART + 77);
    let upload = store.begin_parts(&key, "video/mp4").await.unwrap();
    let part = |number| PartOf {
        key: &key,
        upload: &upload,
        number,
    };
    // One by the node, one by a client, one twice.
    store.put_part(part(1), body.slice(..PART)).await.unwrap();
    let signed = store.sign_part(part(2), PART as u64, MINUTE).await.unwrap();
    let second = body.slice(PART..2 * PART);
    let short = fixture.send(&signed, &second[1..]).await;
    assert!((400..500).contains(&short.status), "{short:?}");
    assert_eq!(fixture.send(&signed, &second).await.status, 200);
    store.put_part(part(3), bytes(5)).await.unwrap();
    store
        .put_part(part(3), body.slice(2 * PART..))
        .await
        .unwrap();

    let is_open = async || {
        let open = store.open_uploads(&key).await.unwrap();
        let found = open.iter().find(|open| open.upload == upload);
        found.is_some_and(|open| open.begun_at.elapsed().unwrap_or_default() < 10 * MINUTE)
    };
    assert!(is_open().await);
    let size = body.len() as u64;
    let early = store.complete_parts(&key, &upload, size + 1).await;
    assert!(matches!(early, Err(MediaError::Refused(_))), "{early:?}");
    assert!(is_open().await);
    let put = store.complete_parts(&key, &upload, size).await.unwrap();
    assert_eq!(put, Put::Created);
    assert!(!is_open().await);
    assert_eq!(whole(store, &key).await, body);
    let again = store.complete_parts(&key, &upload, size).await.unwrap_err();
    assert!(matches!(again, MediaError::NotFound), "{again:?}");

    // A second upload of the same object changes nothing and leaves nothing.
    let upload = store.begin_parts(&key, "video/mp4").await.unwrap();
    let part = PartOf {
        key: &key,
        upload: &upload,
        number: 1,
    };
    store.put_part(part, bytes(3)).await.unwrap();
    let put = store.complete_parts(&key, &upload, 3).await.unwrap();
    assert_eq!(put, Put::Exists);
    assert_eq!(store.size(&key).await.unwrap(), Some(body.len() as u64));
    assert!(store.open_uploads(&key).await.unwrap().is_empty());
    store.delete(&key).await.unwrap();
}

async fn an_upload_that_is_given_up_leaves_nothing(store: &dyn MediaStore) {
    let key = key("aborted");
    let upload = store.begin_parts(&key, "video/mp4").await.unwrap();
    let part = PartOf {
        key: &key,
        upload: &upload,
        number: 1,
    };
    store.put_part(part, bytes(9)).await.unwrap();
    store.abort_parts(&key, &upload).await.unwrap();
    store.abort_parts(&key, &upload).await.unwrap();
    assert!(store.open_uploads(&key).await.unwrap().is_empty());
    let late = store.put_part(part, bytes(9)).await.unwrap_err();
    assert!(matches!(late, MediaError::NotFound), "{late:?}");
    assert_eq!(store.size(&key).await.unwrap(), None);
}

async fn conforms(fixture: Fixture) {
    let store = &*fixture.store;
    store.ping().await.unwrap();
    a_new_object_stays_as_it_was_written(store).await;
    writers_of_one_key_make_one_object(store).await;
    lists_are_in_order_and_can_be_continued(store).await;
    a_signed_upload_takes_exactly_that_object(&fixture).await;
    a_signed_download_has_the_type_and_disposition_it_was_given(&fixture).await;
    parts_become_one_object(&fixture).await;
    an_upload_that_is_given_up_leaves_nothing(store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_conforms() {
    let config = support::s3();
    conforms(Fixture {
        store: Box::new(store::media::S3Store::connect(&config).await),
        files: None,
        _folder: None,
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_conform() {
    let folder = tempfile::tempdir().unwrap();
    let files = FileStore::open(folder.path().to_str().unwrap())
        .await
        .unwrap();
    conforms(Fixture {
        store: Box::new(files.clone()),
        files: Some(files),
        _folder: Some(folder),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_outlive_a_restart_and_keys_stay_in_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let open = async || {
        FileStore::open(folder.path().to_str().unwrap())
            .await
            .unwrap()
    };
    let terms = terms(b"abc", "image/png");
    let signed = open()
        .await
        .sign_put("pending/1", &terms, MINUTE)
        .await
        .unwrap();
    let store = open().await;
    assert!(store.grant("PUT", &signed.url).is_ok());
    for key in [
        "../x",
        "a/../../x",
        "/etc/passwd",
        "a//b",
        "",
        "a/./b",
        "a\0",
    ] {
        let put = store.put(key, Bytes::new(), "text/plain").await;
        assert!(matches!(put, Err(MediaError::Refused(_))), "{key:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_bucket_is_named() {
    let config = shared::config::MediaConfig {
        bucket: "no-such-bucket".to_owned(),
        ..support::s3()
    };
    let store = store::media::S3Store::connect(&config).await;
    let error = store.ping().await.unwrap_err().to_string();
    assert!(error.contains("no-such-bucket"), "{error}");
}
