-- The archive: every publication of durable channels, once.
CREATE TABLE messages (
    channel TEXT NOT NULL,
    epoch TEXT NOT NULL,
    "offset" BIGINT NOT NULL,
    id UUID NOT NULL,
    kind TEXT NOT NULL,
    user_id TEXT NOT NULL,
    info TEXT,
    -- Text, not jsonb: what was published is given back byte for byte.
    data TEXT NOT NULL,
    tags TEXT NOT NULL,
    published_at_ms BIGINT NOT NULL,
    PRIMARY KEY (channel, epoch, "offset")
);
CREATE UNIQUE INDEX messages_id ON messages (id);
CREATE INDEX messages_channel_offset ON messages (channel, "offset");

-- A message that was published again at another position (failover) keeps its first row.
CREATE TABLE message_aliases (
    channel TEXT NOT NULL,
    epoch TEXT NOT NULL,
    "offset" BIGINT NOT NULL,
    id UUID NOT NULL,
    PRIMARY KEY (channel, epoch, "offset")
);

-- How far each consumer group has read, moved in the transaction that stores the rows.
CREATE TABLE consumer_positions (
    group_name TEXT NOT NULL,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    next_offset BIGINT NOT NULL,
    PRIMARY KEY (group_name, topic, partition)
);
