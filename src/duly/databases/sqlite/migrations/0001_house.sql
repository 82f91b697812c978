-- Everything that outbox, inbox, leases and the operator need.  Times are seconds since 1970.
CREATE TABLE IF NOT EXISTS duly_meta (
    name  TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE IF NOT EXISTS duly_outbox (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    message_id   TEXT NOT NULL,
    message_type TEXT NOT NULL,
    kind         TEXT NOT NULL,
    topic        TEXT NOT NULL,
    key          TEXT,
    lane         INTEGER NOT NULL,
    payload      BLOB NOT NULL,
    headers      TEXT NOT NULL DEFAULT '{}',
    status       TEXT NOT NULL DEFAULT 'ready',
    attempts     INTEGER NOT NULL DEFAULT 0,
    due_at       REAL,
    last_error   TEXT,
    created_at   REAL NOT NULL,
    settled_at   REAL
);
CREATE INDEX IF NOT EXISTS duly_outbox_ready ON duly_outbox (id) WHERE status = 'ready';
CREATE INDEX IF NOT EXISTS duly_outbox_due ON duly_outbox (due_at) WHERE status = 'retry';
CREATE INDEX IF NOT EXISTS duly_outbox_kept ON duly_outbox (topic, key, id) WHERE status IN ('retry', 'held', 'failed');

CREATE TABLE IF NOT EXISTS duly_inbox (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    group_name   TEXT NOT NULL,
    handler      TEXT NOT NULL,
    dedupe_key   TEXT NOT NULL,
    message_id   TEXT NOT NULL,
    message_type TEXT NOT NULL,
    kind         TEXT NOT NULL,
    topic        TEXT NOT NULL,
    key          TEXT,
    lane         INTEGER NOT NULL DEFAULT 0,
    payload      BLOB,
    headers      TEXT NOT NULL DEFAULT '{}',
    status       TEXT NOT NULL,
    attempts     INTEGER NOT NULL DEFAULT 0,
    due_at       REAL,
    last_error   TEXT,
    created_at   REAL NOT NULL,
    settled_at   REAL
);
CREATE UNIQUE INDEX IF NOT EXISTS duly_inbox_once ON duly_inbox (group_name, handler, dedupe_key);
CREATE INDEX IF NOT EXISTS duly_inbox_ready ON duly_inbox (group_name, id) WHERE status = 'ready';
CREATE INDEX IF NOT EXISTS duly_inbox_due ON duly_inbox (due_at) WHERE status = 'retry';
CREATE INDEX IF NOT EXISTS duly_inbox_kept ON duly_inbox (group_name, topic, key, id) WHERE status IN ('retry', 'held', 'failed');

CREATE TABLE IF NOT EXISTS duly_effect (
    group_name   TEXT NOT NULL,
    handler      TEXT NOT NULL,
    dedupe_key   TEXT NOT NULL,
    step         TEXT NOT NULL,
    provider_key TEXT NOT NULL,
    arguments    TEXT NOT NULL,
    state        TEXT NOT NULL,
    result       BLOB,
    holder       TEXT,
    until        REAL,
    created_at   REAL NOT NULL,
    settled_at   REAL,
    PRIMARY KEY (group_name, handler, dedupe_key, step)
);

CREATE TABLE IF NOT EXISTS duly_key_hold (
    scope      TEXT NOT NULL,
    topic      TEXT NOT NULL,
    key        TEXT NOT NULL,
    lane       INTEGER NOT NULL,
    blocker_id INTEGER,
    created_at REAL NOT NULL,
    PRIMARY KEY (scope, topic, key)
);

CREATE TABLE IF NOT EXISTS duly_lease (
    name    TEXT NOT NULL PRIMARY KEY,
    kind    TEXT NOT NULL,
    scope   TEXT NOT NULL DEFAULT '',
    lane    INTEGER,
    holder  TEXT,
    token   INTEGER NOT NULL DEFAULT 0,
    until   REAL,
    seen_at REAL,
    asleep  INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS duly_lease_lane ON duly_lease (scope, lane) WHERE kind = 'lane';
CREATE INDEX IF NOT EXISTS duly_lease_member ON duly_lease (until) WHERE kind = 'member';
CREATE INDEX IF NOT EXISTS duly_lease_asleep ON duly_lease (name) WHERE asleep = 1;

CREATE TABLE IF NOT EXISTS duly_failure (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    source       TEXT NOT NULL,
    message_id   TEXT NOT NULL,
    message_type TEXT NOT NULL,
    kind         TEXT NOT NULL,
    topic        TEXT NOT NULL,
    key          TEXT,
    payload      BLOB NOT NULL,
    headers      TEXT NOT NULL DEFAULT '{}',
    state        TEXT NOT NULL,
    attempts     INTEGER NOT NULL DEFAULT 0,
    due_at       REAL,
    error        TEXT,
    created_at   REAL NOT NULL,
    settled_at   REAL
);
CREATE INDEX IF NOT EXISTS duly_failure_open ON duly_failure (due_at) WHERE state = 'open';

CREATE TABLE IF NOT EXISTS duly_audit (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    created_at REAL NOT NULL,
    actor      TEXT NOT NULL,
    verb       TEXT NOT NULL,
    target     TEXT NOT NULL,
    message_id TEXT,
    reason     TEXT NOT NULL DEFAULT '',
    detail     TEXT NOT NULL DEFAULT '{}'
);
