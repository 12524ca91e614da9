-- The archive: every publication of durable channels, once.
CREATE TABLE messages (
    channel TEXT NOT NULL,
    epoch TEXT NOT NULL,
    "offset" INTEGER NOT NULL,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    user_id TEXT NOT NULL,
    info TEXT,
    data TEXT NOT NULL,
    tags TEXT NOT NULL,
    published_at_ms INTEGER NOT NULL,
    PRIMARY KEY (channel, epoch, "offset")
) STRICT;
CREATE INDEX messages_channel_offset ON messages (channel, "offset");

-- A message that was published again at another position keeps its first row.
CREATE TABLE message_aliases (
    channel TEXT NOT NULL,
    epoch TEXT NOT NULL,
    "offset" INTEGER NOT NULL,
    id TEXT NOT NULL,
    PRIMARY KEY (channel, epoch, "offset")
) STRICT;

-- How far each consumer group has read, moved in the transaction that stores the rows.
CREATE TABLE consumer_positions (
    group_name TEXT NOT NULL,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    next_offset INTEGER NOT NULL,
    PRIMARY KEY (group_name, topic, partition)
) STRICT;
