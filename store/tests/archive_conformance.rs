//! What every archive must do; needs PostgreSQL and MongoDB.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::string_slice,
    reason = "a test that cannot go on panics, and its helpers are part of it"
)]

mod messages;
mod support;

use proptest::strategy::{Strategy, ValueTree};
use serde_json::value::RawValue;
use shared::events::PublicationEvent;
use store::archive::{ArchiveError, ConsumerPosition, MessageArchive, PageQuery};
use support::{Fixture, channel, event};

fn position(next_offset: i64) -> ConsumerPosition {
    ConsumerPosition {
        group: "g".to_owned(),
        topic: "t".to_owned(),
        partition: 3,
        next_offset,
    }
}

async fn offsets(archive: &dyn MessageArchive, name: &str, query: PageQuery) -> Vec<u64> {
    let page = archive.page(&channel(name), query).await.unwrap();
    page.iter().map(|event| event.offset).collect()
}

fn all() -> PageQuery {
    PageQuery {
        limit: 1000,
        ..PageQuery::default()
    }
}

async fn appending_again_changes_nothing(archive: &dyn MessageArchive) {
    let batch = [event("again", "e", 1), event("again", "e", 2)];
    let first = archive.append(&batch, &[position(2)]).await.unwrap();
    assert_eq!((first.inserted, first.known), (2, 0));
    let more = [batch[1].clone(), event("again", "e", 3), batch[0].clone()];
    let second = archive.append(&more, &[position(3)]).await.unwrap();
    assert_eq!((second.inserted, second.known), (1, 2));
    assert_eq!(offsets(archive, "again", all()).await, [1, 2, 3]);
}

async fn a_batch_may_hold_a_message_twice(archive: &dyn MessageArchive) {
    let one = event("twice", "e", 1);
    let batch = [one.clone(), event("twice", "e", 2), one];
    let appended = archive.append(&batch, &[]).await.unwrap();
    assert_eq!((appended.inserted, appended.known), (2, 1));
    assert_eq!(offsets(archive, "twice", all()).await, [1, 2]);
}

async fn a_message_published_again_keeps_its_first_row(archive: &dyn MessageArchive) {
    let first = event("alias", "e1", 1);
    archive
        .append(std::slice::from_ref(&first), &[])
        .await
        .unwrap();
    let again = PublicationEvent {
        epoch: "e2".into(),
        offset: 100,
        ..first.clone()
    };
    let other = event("alias", "e2", 101);
    let appended = archive.append(&[again, other], &[]).await.unwrap();
    assert_eq!((appended.inserted, appended.known), (1, 1));
    assert!(appended.conflicting.is_empty());
    assert_eq!(offsets(archive, "alias", all()).await, [1, 101]);
}

async fn a_place_that_is_taken_is_reported(archive: &dyn MessageArchive) {
    archive
        .append(&[event("taken", "e", 1)], &[])
        .await
        .unwrap();
    let intruder = event("taken", "e", 1);
    let id = intruder.id;
    let appended = archive
        .append(&[intruder, event("taken", "e", 2)], &[])
        .await
        .unwrap();
    assert_eq!(appended.conflicting, [id]);
    assert_eq!(appended.inserted, 1);
}

async fn positions_never_go_back(archive: &dyn MessageArchive) {
    assert_eq!(archive.consumer_position("g", "t", 9).await.unwrap(), None);
    archive.append(&[], &[position(50)]).await.unwrap();
    archive.append(&[], &[position(20)]).await.unwrap();
    assert_eq!(
        archive.consumer_position("g", "t", 3).await.unwrap(),
        Some(50)
    );
}

async fn pages_go_both_ways(archive: &dyn MessageArchive) {
    let mut batch: Vec<_> = (1..=5).map(|n| event("pages", "e1", n)).collect();
    batch.extend((100..=103).map(|n| event("pages", "e2", n)));
    batch.push(event("elsewhere", "e1", 3));
    archive.append(&batch, &[]).await.unwrap();
    let page = |query| offsets(archive, "pages", query);
    assert_eq!(
        page(PageQuery {
            after: Some(3),
            limit: 3,
            ..all()
        })
        .await,
        [4, 5, 100]
    );
    assert_eq!(
        page(PageQuery {
            before: Some(101),
            limit: 2,
            reverse: true,
            ..all()
        })
        .await,
        [100, 5]
    );
    assert_eq!(
        page(PageQuery {
            after: Some(1),
            before: Some(4),
            ..all()
        })
        .await,
        [2, 3]
    );
    assert_eq!(
        page(PageQuery {
            epoch: Some("e2".into()),
            limit: 2,
            ..all()
        })
        .await,
        [100, 101]
    );
    assert_eq!(
        page(PageQuery { limit: 0, ..all() }).await,
        Vec::<u64>::new()
    );
}

async fn what_was_published_comes_back_byte_for_byte(archive: &dyn MessageArchive) {
    let mut large = event("bytes", "e", 1_795_514_880_801_096);
    let text = format!(
        r#"{{"b" : 1.0,  "a":"é 😀 \u0001","x":"{}"}}"#,
        "y".repeat(60_000)
    );
    large.data = RawValue::from_string(text).unwrap();
    archive
        .append(std::slice::from_ref(&large), &[])
        .await
        .unwrap();
    let page = archive.page(&channel("bytes"), all()).await.unwrap();
    let json = |event: &PublicationEvent| serde_json::to_string(event).unwrap();
    assert_eq!(json(&page[0]), json(&large));
}

async fn two_writers_of_the_same_rows_do_no_harm(fixture: &Fixture) {
    let batch: Vec<_> = (1..=200).map(|n| event("zombies", "e", n)).collect();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..4 {
        let archive = std::sync::Arc::clone(&fixture.archive);
        let mut batch = batch.clone();
        if writer % 2 == 1 {
            batch.reverse();
        }
        writers.spawn(async move {
            for chunk in batch.chunks(20) {
                // What a consumer does with a failure that may pass.
                while let Err(error) = archive.append(chunk, &[]).await {
                    assert!(matches!(error, ArchiveError::Unavailable(_)), "{error:?}");
                }
            }
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended.unwrap();
    }
    let expected: Vec<u64> = (1..=200).collect();
    assert_eq!(offsets(&*fixture.archive, "zombies", all()).await, expected);
}

/// Against the plain model: a map from place to message, a message once.
async fn any_appends_leave_each_message_once(
    archive: &dyn MessageArchive,
    seed: &[Vec<(u64, u64)>],
) {
    let name = support::unique("model");
    let messages: Vec<_> = (0..12).map(|_| event(&name, "e", 1)).collect();
    let mut stored = std::collections::BTreeMap::new();
    let mut places = std::collections::BTreeSet::new();
    for batch in seed {
        let events: Vec<_> = batch
            .iter()
            // A message has its own offset, or one more when it was published again.
            .map(|(message, again)| {
                let n = usize::try_from(*message).unwrap();
                let offset = 1 + message + 100 * again;
                PublicationEvent {
                    offset,
                    ..messages[n].clone()
                }
            })
            .collect();
        archive.append(&events, &[]).await.unwrap();
        let mut sorted: Vec<_> = events.iter().collect();
        sorted.sort_by_key(|event| event.offset);
        for event in sorted {
            if !stored.contains_key(&event.id) && places.insert(event.offset) {
                stored.insert(event.id, event.offset);
            }
        }
    }
    let mut expected: Vec<u64> = stored.into_values().collect();
    expected.sort_unstable();
    assert_eq!(offsets(archive, &name, all()).await, expected);
}

async fn conforms(fixture: Fixture, cases: u32) {
    let archive = &*fixture.archive;
    archive.ping().await.unwrap();
    appending_again_changes_nothing(archive).await;
    a_batch_may_hold_a_message_twice(archive).await;
    a_message_published_again_keeps_its_first_row(archive).await;
    a_place_that_is_taken_is_reported(archive).await;
    positions_never_go_back(archive).await;
    pages_go_both_ways(archive).await;
    what_was_published_comes_back_byte_for_byte(archive).await;
    two_writers_of_the_same_rows_do_no_harm(&fixture).await;
    messages::conform(archive).await;
    let batches =
        proptest::collection::vec(proptest::collection::vec((0u64..12, 0u64..2), 0..8), 1..6);
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..cases {
        let seed = batches.new_tree(&mut runner).unwrap().current();
        any_appends_leave_each_message_once(archive, &seed).await;
    }
    let changes = proptest::collection::vec((0u64..5, 0u64..4, 0u64..30), 1..20);
    for _ in 0..cases {
        let seed = changes.new_tree(&mut runner).unwrap().current();
        messages::any_order_of_changes_gives_one_view(archive, &seed).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_conforms() {
    conforms(support::sqlite().await, 30).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_conforms() {
    conforms(support::postgres().await, 30).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mongo_conforms() {
    conforms(support::mongo().await, 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_without_its_schema_says_what_to_do() {
    let fixture = support::postgres().await;
    let url = fixture
        .config
        .database
        .url
        .as_ref()
        .unwrap()
        .expose()
        .to_owned();
    let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(&url)
        .await
        .unwrap();
    sqlx::query("DROP TABLE _sqlx_migrations")
        .execute(&mut connection)
        .await
        .unwrap();
    let error = store::archive::open(&fixture.config).await.err().unwrap();
    assert!(error.to_string().contains("run `wyd migrate`"), "{error}");
}
