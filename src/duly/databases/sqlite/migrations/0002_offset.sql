-- How far each stream of changes is, written together with the messages that were made of them.
CREATE TABLE IF NOT EXISTS duly_offset (
    stream     TEXT NOT NULL PRIMARY KEY,
    position   TEXT NOT NULL DEFAULT '',
    token      INTEGER NOT NULL DEFAULT 0,
    state      TEXT NOT NULL DEFAULT '{}',
    updated_at REAL NOT NULL
);
