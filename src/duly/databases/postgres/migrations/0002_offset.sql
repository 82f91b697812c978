-- How far each stream of changes is, written together with the messages that were made of them.
CREATE TABLE IF NOT EXISTS duly_offset (
    stream     text PRIMARY KEY,
    position   text NOT NULL DEFAULT '',
    token      bigint NOT NULL DEFAULT 0,
    state      text NOT NULL DEFAULT '{}',
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
