-- Edits, deletions, retention and erasure. Every new column may be empty, so that a worker of the
-- version before goes on inserting.
ALTER TABLE messages ADD COLUMN target_id UUID;
ALTER TABLE messages ADD COLUMN erased_at_ms BIGINT;

-- The last change of a message, without reading all of them.
CREATE INDEX messages_target ON messages (target_id, kind, "offset") WHERE target_id IS NOT NULL;
CREATE INDEX messages_channel_time ON messages (channel, published_at_ms, "offset");
CREATE INDEX messages_user ON messages (user_id, id);

-- Rows at or below a channel's floor may be gone: retention has passed there.
CREATE TABLE archive_floors (
    channel TEXT NOT NULL PRIMARY KEY,
    "offset" BIGINT NOT NULL
);
