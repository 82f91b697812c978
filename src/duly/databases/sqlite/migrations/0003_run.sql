-- Batch: an instance of a job, its attempts, and how far its steps are.
CREATE TABLE IF NOT EXISTS duly_run (
    instance      TEXT NOT NULL PRIMARY KEY,
    job           TEXT NOT NULL,
    params        TEXT NOT NULL,
    definition    TEXT NOT NULL DEFAULT '',
    status        TEXT NOT NULL,
    attempt       INTEGER NOT NULL DEFAULT 0,
    tries         INTEGER NOT NULL DEFAULT 0,
    token         INTEGER NOT NULL DEFAULT 0,
    wanted        TEXT NOT NULL DEFAULT '',
    owner         TEXT NOT NULL DEFAULT '',
    last_error    TEXT NOT NULL DEFAULT '',
    scheduled_for TEXT,
    due_at        REAL NOT NULL,
    created_at    REAL NOT NULL,
    started_at    REAL,
    moved_at      REAL NOT NULL,
    ended_at      REAL
);
CREATE INDEX IF NOT EXISTS duly_run_due ON duly_run (status, due_at);
CREATE INDEX IF NOT EXISTS duly_run_job ON duly_run (job, created_at);

CREATE TABLE IF NOT EXISTS duly_attempt (
    instance   TEXT NOT NULL,
    attempt    INTEGER NOT NULL,
    token      INTEGER NOT NULL,
    owner      TEXT NOT NULL,
    definition TEXT NOT NULL,
    spool      TEXT NOT NULL,
    status     TEXT NOT NULL,
    error      TEXT NOT NULL DEFAULT '',
    started_at REAL NOT NULL,
    ended_at   REAL,
    PRIMARY KEY (instance, attempt)
);

CREATE TABLE IF NOT EXISTS duly_checkpoint (
    instance   TEXT NOT NULL,
    step       TEXT NOT NULL,
    attempt    INTEGER NOT NULL,
    status     TEXT NOT NULL,
    data       BLOB,
    row_count  INTEGER NOT NULL DEFAULT 0,
    size_bytes INTEGER NOT NULL DEFAULT 0,
    facts      TEXT NOT NULL DEFAULT '{}',
    saves      INTEGER NOT NULL DEFAULT 1,
    moved_at   REAL NOT NULL,
    PRIMARY KEY (instance, step)
);
