-- The chat part: who has which devices, who is in which channel and has read how far, which media
-- there are, which pushes were sent. Times are Unix milliseconds.
CREATE TABLE devices (
    token TEXT NOT NULL PRIMARY KEY,
    user_id TEXT NOT NULL,
    platform TEXT NOT NULL,
    app_version TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    updated_at_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX devices_user ON devices (user_id);
CREATE INDEX devices_updated ON devices (updated_at_ms);

CREATE TABLE channels (
    channel TEXT NOT NULL PRIMARY KEY,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    -- Media id of the picture; empty: none.
    picture TEXT NOT NULL,
    created_by TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    updated_at_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE channel_members (
    channel TEXT NOT NULL,
    user_id TEXT NOT NULL,
    role TEXT NOT NULL,
    -- No pushes before this time; 0: not muted.
    muted_until_ms INTEGER NOT NULL,
    joined_at_ms INTEGER NOT NULL,
    -- The channel's top when the user joined: older messages are not unread.
    joined_offset INTEGER NOT NULL,
    PRIMARY KEY (channel, user_id)
) STRICT;
CREATE INDEX channel_members_user ON channel_members (user_id, channel);

CREATE TABLE channel_invitations (
    id TEXT NOT NULL PRIMARY KEY,
    channel TEXT NOT NULL,
    -- Empty: whoever has the id.
    user_id TEXT NOT NULL,
    created_by TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    expires_at_ms INTEGER NOT NULL,
    uses_left INTEGER NOT NULL
) STRICT;
CREATE INDEX channel_invitations_channel ON channel_invitations (channel);
CREATE INDEX channel_invitations_user ON channel_invitations (user_id);

CREATE TABLE user_blocks (
    user_id TEXT NOT NULL,
    blocked_user_id TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    PRIMARY KEY (user_id, blocked_user_id)
) STRICT;

CREATE TABLE read_positions (
    user_id TEXT NOT NULL,
    channel TEXT NOT NULL,
    -- The last message that was read: offsets of durable channels never restart.
    "offset" INTEGER NOT NULL,
    updated_at_ms INTEGER NOT NULL,
    PRIMARY KEY (user_id, channel)
) STRICT;

CREATE TABLE media (
    id TEXT NOT NULL PRIMARY KEY,
    channel TEXT NOT NULL,
    user_id TEXT NOT NULL,
    -- pending, uploaded, ready, rejected
    state TEXT NOT NULL,
    file_name TEXT NOT NULL,
    content_type TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    -- Multipart upload under way; empty: none.
    upload_id TEXT NOT NULL,
    -- What was made of it, JSON: objects, sizes, blurhash.
    result TEXT NOT NULL,
    reason TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    updated_at_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX media_state_created ON media (state, created_at_ms);
CREATE INDEX media_user ON media (user_id, created_at_ms);

-- Claimed before a push is sent, so that a redone job does not send it again.
CREATE TABLE push_log (
    message_id TEXT NOT NULL,
    token TEXT NOT NULL,
    user_id TEXT NOT NULL,
    -- What a waiting push is replaced by; empty: nothing. A device has four of them at most.
    collapse_key TEXT NOT NULL,
    -- claimed, sent, dropped
    state TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    PRIMARY KEY (message_id, token)
) STRICT;
CREATE INDEX push_log_token ON push_log (token, at_ms);
CREATE INDEX push_log_at ON push_log (at_ms);
CREATE INDEX push_log_user ON push_log (user_id);
