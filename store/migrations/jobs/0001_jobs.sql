-- The embedded job log: one partition a topic, ids are offsets.
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    topic TEXT NOT NULL,
    key TEXT NOT NULL,
    headers TEXT NOT NULL,
    value BLOB NOT NULL
) STRICT;
CREATE INDEX jobs_topic_id ON jobs (topic, id);
