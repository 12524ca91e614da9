-- How far each consumer group is: a job makes room when every group of its topic is past it.
CREATE TABLE group_positions (
    group_name TEXT NOT NULL,
    topic TEXT NOT NULL,
    next_id INTEGER NOT NULL,
    PRIMARY KEY (group_name, topic)
) STRICT;
