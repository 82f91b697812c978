-- Batch: an instance of a job, its attempts, and how far its steps are.
CREATE TABLE IF NOT EXISTS duly_run (
    instance      text PRIMARY KEY,
    job           text NOT NULL,
    params        text NOT NULL,
    definition    text NOT NULL DEFAULT '',
    status        text NOT NULL,
    attempt       integer NOT NULL DEFAULT 0,
    tries         integer NOT NULL DEFAULT 0,
    token         bigint NOT NULL DEFAULT 0,
    wanted        text NOT NULL DEFAULT '',
    owner         text NOT NULL DEFAULT '',
    last_error    text NOT NULL DEFAULT '',
    scheduled_for text,
    due_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at    timestamptz,
    moved_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at      timestamptz
);
CREATE INDEX IF NOT EXISTS duly_run_due ON duly_run (status, due_at);
CREATE INDEX IF NOT EXISTS duly_run_job ON duly_run (job, created_at);

CREATE TABLE IF NOT EXISTS duly_attempt (
    instance   text NOT NULL,
    attempt    integer NOT NULL,
    token      bigint NOT NULL,
    owner      text NOT NULL,
    definition text NOT NULL,
    spool      text NOT NULL,
    status     text NOT NULL,
    error      text NOT NULL DEFAULT '',
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at   timestamptz,
    PRIMARY KEY (instance, attempt)
);

CREATE TABLE IF NOT EXISTS duly_checkpoint (
    instance   text NOT NULL,
    step       text NOT NULL,
    attempt    integer NOT NULL,
    status     text NOT NULL,
    data       bytea,
    row_count  bigint NOT NULL DEFAULT 0,
    size_bytes bigint NOT NULL DEFAULT 0,
    facts      text NOT NULL DEFAULT '{}',
    saves      bigint NOT NULL DEFAULT 1,
    moved_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (instance, step)
);
