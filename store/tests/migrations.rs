//! A worker of the version before goes on writing while the schema is this version's already.
//! Needs PostgreSQL.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::string_slice,
    reason = "a test that cannot go on panics, and its helpers are part of it"
)]

#[allow(
    dead_code,
    reason = "shared with the conformance suite, which uses all of it"
)]
mod support;

use sqlx::Connection;
use store::archive::{MessageArchive, MessageQuery, PageQuery};
use support::{Fixture, channel, edit, event};
use uuid::Uuid;

/// The statements of the first version's workers, as they were.
const POSTGRES_INSERT: &str = r#"
INSERT INTO messages (channel, epoch, "offset", id, kind, user_id, info, data, tags, published_at_ms)
SELECT * FROM UNNEST($1::text[], $2::text[], $3::bigint[], $4::uuid[], $5::text[], $6::text[],
                     $7::text[], $8::text[], $9::text[], $10::bigint[])
ON CONFLICT DO NOTHING RETURNING id"#;
const SQLITE_INSERT: &str = r#"
INSERT INTO messages (channel, epoch, "offset", id, kind, user_id, info, data, tags, published_at_ms)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"#;
const INSERT_ALIAS: &str = r#"
INSERT INTO message_aliases (channel, epoch, "offset", id) VALUES ($1, $2, $3, $4)
ON CONFLICT DO NOTHING"#;
const MOVE_POSITION: &str = "
INSERT INTO consumer_positions (group_name, topic, partition, next_offset) VALUES ('g', 't', 0, 7)
ON CONFLICT (group_name, topic, partition)
DO UPDATE SET next_offset = excluded.next_offset";

fn url(fixture: &Fixture) -> String {
    let url = fixture.config.database.url.as_ref();
    url.unwrap().expose().to_owned()
}

#[tokio::test]
async fn an_old_worker_writes_to_the_new_schema_in_postgres() {
    let fixture = support::postgres().await;
    let mut old = sqlx::PgConnection::connect(&url(&fixture)).await.unwrap();
    let id = Uuid::now_v7();
    for expected in [1, 0] {
        let inserted: Vec<Uuid> = sqlx::query_scalar(POSTGRES_INSERT)
            .bind(vec!["old"])
            .bind(vec!["e"])
            .bind(vec![1_i64])
            .bind(vec![id])
            .bind(vec!["message"])
            .bind(vec!["ann"])
            .bind(vec![None::<String>])
            .bind(vec!["\"hi\""])
            .bind(vec!["{}"])
            .bind(vec![1_700_000_000_000_i64])
            .fetch_all(&mut old)
            .await
            .unwrap();
        assert_eq!(inserted.len(), expected);
    }
    let alias = sqlx::query(INSERT_ALIAS).bind("old").bind("e2").bind(9_i64);
    alias.bind(id).execute(&mut old).await.unwrap();
    sqlx::query(MOVE_POSITION).execute(&mut old).await.unwrap();
    new_readers_see_it(&*fixture.archive, id).await;
}

#[tokio::test]
async fn an_old_worker_writes_to_the_new_schema_in_sqlite() {
    let fixture = support::sqlite().await;
    let mut old = sqlx::SqliteConnection::connect(&url(&fixture))
        .await
        .unwrap();
    let id = Uuid::now_v7();
    for expected in [1, 0] {
        let inserted = sqlx::query(SQLITE_INSERT)
            .bind("old")
            .bind("e")
            .bind(1_i64)
            .bind(id.to_string())
            .bind("message")
            .bind("ann")
            .bind(None::<String>)
            .bind("\"hi\"")
            .bind("{}")
            .bind(1_700_000_000_000_i64)
            .execute(&mut old)
            .await
            .unwrap();
        assert_eq!(inserted.rows_affected(), expected);
    }
    let alias = sqlx::query(INSERT_ALIAS).bind("old").bind("e2").bind(9_i64);
    alias.bind(id.to_string()).execute(&mut old).await.unwrap();
    sqlx::query(MOVE_POSITION).execute(&mut old).await.unwrap();
    new_readers_see_it(&*fixture.archive, id).await;
}

async fn new_readers_see_it(archive: &dyn MessageArchive, id: Uuid) {
    let name = channel("old");
    let query = MessageQuery {
        limit: 10,
        ..MessageQuery::default()
    };
    let page = archive.messages(&name, query.clone()).await.unwrap();
    assert_eq!(page.messages[0].id, id.into());
    assert_eq!(archive.count(&name, 0, "bob").await.unwrap(), 1);
    let epoch = PageQuery {
        epoch: Some("e2".into()),
        limit: 10,
        ..PageQuery::default()
    };
    assert_eq!(archive.page(&name, epoch).await.unwrap()[0].offset, 9);
    assert_eq!(
        archive.consumer_position("g", "t", 0).await.unwrap(),
        Some(7)
    );
    // A new worker's edit of it is seen, too.
    let mut old = event("old", "e", 1);
    old.id = id.into();
    archive
        .append(&[edit(&old, 2, "\"new\"")], &[])
        .await
        .unwrap();
    let page = archive.messages(&name, query).await.unwrap();
    assert_eq!(page.messages[0].data.as_ref().unwrap().get(), "\"new\"");
}
