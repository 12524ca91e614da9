//! The statements that PostgreSQL and SQLite share word for word.

/// All columns of a row, in the order of `Row`.
macro_rules! columns {
    () => {
        r#"channel, epoch, "offset", id, kind, user_id, info, data, tags, published_at_ms,
           target_id, erased_at_ms"#
    };
}
pub(super) use columns;

macro_rules! page {
    ($order:literal) => {
        concat!(
            "SELECT ",
            columns!(),
            r#" FROM messages WHERE channel = $1 AND "offset" > $2 AND "offset" < $3
            ORDER BY "offset" "#,
            $order,
            " LIMIT $4"
        )
    };
}

/// One epoch as its stream was: a message that has its row elsewhere stands at its alias, too.
macro_rules! epoch_page {
    ($order:literal) => {
        concat!(
            "SELECT * FROM (SELECT ",
            columns!(),
            r#" FROM messages
            WHERE channel = $1 AND "offset" > $2 AND "offset" < $3 AND epoch = $5
            UNION ALL
            SELECT a.channel, a.epoch, a."offset", m.id, m.kind, m.user_id, m.info, m.data, m.tags,
                   m.published_at_ms, m.target_id, m.erased_at_ms
            FROM message_aliases a JOIN messages m ON m.id = a.id
            WHERE a.channel = $1 AND a."offset" > $2 AND a."offset" < $3 AND a.epoch = $5
            ) AS epoch_rows ORDER BY "offset" "#,
            $order,
            " LIMIT $4"
        )
    };
}

macro_rules! messages {
    ($order:literal) => {
        concat!(
            "SELECT ",
            columns!(),
            r#" FROM messages WHERE channel = $1 AND "offset" > $2 AND "offset" < $3
            AND published_at_ms > $4 AND published_at_ms < $5 AND kind = 'message'
            ORDER BY "#,
            $order,
            " LIMIT $6"
        )
    };
}

/// Returns the statement of a page: parameters are channel, above, below, limit, and the epoch
/// when there is one.
pub(super) fn page(with_epoch: bool, reverse: bool) -> &'static str {
    match (with_epoch, reverse) {
        (false, false) => page!("ASC"),
        (false, true) => page!("DESC"),
        (true, false) => epoch_page!("ASC"),
        (true, true) => epoch_page!("DESC"),
    }
}

/// Returns the statement of a page of messages: parameters are channel, above, below, later than,
/// earlier than, limit. What is asked by time is found by the index on time.
pub(super) fn messages(by_time: bool, reverse: bool) -> &'static str {
    match (by_time, reverse) {
        (false, false) => messages!(r#""offset""#),
        (false, true) => messages!(r#""offset" DESC"#),
        (true, false) => messages!(r#"published_at_ms, "offset""#),
        (true, true) => messages!(r#"published_at_ms DESC, "offset" DESC"#),
    }
}

pub(super) const MESSAGE: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM messages WHERE id = $1 AND channel = $2 AND kind = 'message'"
);

pub(super) const COUNT: &str = r#"
SELECT COUNT(*) FROM (
    SELECT 1 FROM messages m
    WHERE m.channel = $1 AND m."offset" > $2 AND m.user_id <> $3 AND m.kind = 'message'
        AND m.erased_at_ms IS NULL
        AND NOT EXISTS (SELECT 1 FROM messages d
            WHERE d.target_id = m.id AND d.kind = 'deleted' AND d.channel = m.channel)
    LIMIT $4) AS counted"#;

pub(super) const FLOOR: &str = r#"SELECT "offset" FROM archive_floors WHERE channel = $1"#;

/// Jumps from channel to channel instead of reading every row.
pub(super) const CHANNELS: &str = "
WITH RECURSIVE found(channel) AS (
    SELECT MIN(channel) FROM messages WHERE channel > $1
    UNION ALL
    SELECT (SELECT MIN(m.channel) FROM messages m WHERE m.channel > found.channel)
    FROM found WHERE found.channel IS NOT NULL)
SELECT channel FROM found WHERE channel IS NOT NULL LIMIT $2";

pub(super) const OLDEST: &str = r#"
SELECT "offset", published_at_ms FROM messages WHERE channel = $1 ORDER BY "offset" LIMIT $2"#;
/// How far the aliases of the rows reach that are to go: their places are gone with them.
pub(super) const ALIASES_TOP: &str = r#"
SELECT MAX(a."offset") FROM message_aliases a JOIN messages m ON m.id = a.id
WHERE a.channel = $1 AND m.channel = $1 AND m."offset" <= $2"#;
pub(super) const RAISE_FLOOR: &str = r#"
INSERT INTO archive_floors (channel, "offset") VALUES ($1, $2)
ON CONFLICT (channel) DO UPDATE SET "offset" = excluded."offset"
WHERE archive_floors."offset" < excluded."offset""#;
pub(super) const DELETE_ALIASES: &str =
    r#"DELETE FROM message_aliases WHERE channel = $1 AND "offset" <= $2"#;
pub(super) const DELETE_ROWS: &str =
    r#"DELETE FROM messages WHERE channel = $1 AND "offset" <= $2"#;

pub(super) const OF_USER: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM messages WHERE user_id = $1 AND id > $2 ORDER BY id LIMIT $3"
);
pub(super) const IDS_OF_USER: &str =
    "SELECT id FROM messages WHERE user_id = $1 ORDER BY id LIMIT $2";
