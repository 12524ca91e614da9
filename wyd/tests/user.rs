//! `wyd user`: one user's data over the command line. Needs no service.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on panics, and its helpers are part of it"
)]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, SqliteConnection};

fn wyd(folder: &Path, args: &[&str]) -> Output {
    let url = format!("sqlite://{}/archive.db", folder.display());
    Command::new(env!("CARGO_BIN_EXE_wyd"))
        .args(args)
        .env_clear()
        .env("DATABASE_URL", url)
        .env("RUST_LOG", "warn")
        .current_dir(folder)
        .output()
        .unwrap()
}

fn done(folder: &Path, args: &[&str]) -> String {
    let output = wyd(folder, args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

async fn fill(folder: &Path) {
    let url = format!("sqlite://{}/archive.db", folder.display());
    let mut connection = SqliteConnection::connect(&url).await.unwrap();
    let messages = (1..=3).map(|n| {
        let user = if n == 2 { "bob" } else { "ann" };
        format!(
            "INSERT INTO messages (channel, epoch, \"offset\", id, kind, user_id, data, tags,
                published_at_ms)
             VALUES ('chat:1', 'e', {n}, '0198c0de-0000-7000-8000-00000000000{n}', 'message',
                '{user}', '{{\"said\": {n}.0}}', '{{}}', 1)"
        )
    });
    let device = "INSERT INTO devices VALUES ('token', 'ann', 'ios', '1', 1, 1)".to_owned();
    for statement in messages.chain([device]) {
        sqlx::query(AssertSqlSafe(statement))
            .execute(&mut connection)
            .await
            .unwrap();
    }
}

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[tokio::test]
async fn a_user_is_exported_and_erased() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    done(folder, &["migrate"]);
    fill(folder).await;

    let text = done(folder, &["user", "export", "--user", "ann"]);
    let rows = lines(&text);
    let records: Vec<&Value> = rows.iter().map(|row| &row["record"]).collect();
    assert_eq!(records, ["device", "message", "message"]);
    assert!(
        text.contains(r#""data":{"said": 1.0}"#),
        "byte for byte: {text}"
    );
    done(
        folder,
        &["user", "export", "--user", "ann", "--out", "ann.ndjson"],
    );
    let written = std::fs::read_to_string(folder.join("ann.ndjson")).unwrap();
    assert_eq!(written, text);

    let unsure = wyd(folder, &["user", "erase", "--user", "ann"]);
    assert_eq!(unsure.status.code(), Some(78));
    let told = String::from_utf8_lossy(&unsure.stderr);
    assert!(told.contains("cannot be undone"), "{told}");
    let told = done(folder, &["user", "erase", "--user", "ann", "--yes"]);
    assert!(told.contains("emptied: 2"), "{told}");
    assert_eq!(done(folder, &["user", "export", "--user", "ann"]), "");
    let bob = lines(&done(folder, &["user", "export", "--user", "bob"]));
    assert_eq!(bob[0]["row"]["data"], json!({"said": 2.0}));
    assert!(
        !wyd(folder, &["user", "erase", "--user", "", "--yes"])
            .status
            .success()
    );
}
