-- Batch: an instance of a job, its attempts, and how far its steps are.
CREATE TABLE IF NOT EXISTS duly_run (
    instance      varchar(120) NOT NULL,
    job           varchar(120) NOT NULL,
    params        text NOT NULL,
    definition    varchar(80) NOT NULL DEFAULT '',
    status        varchar(16) NOT NULL,
    attempt       int NOT NULL DEFAULT 0,
    tries         int NOT NULL DEFAULT 0,
    token         bigint NOT NULL DEFAULT 0,
    wanted        varchar(16) NOT NULL DEFAULT '',
    owner         varchar(255) NOT NULL DEFAULT '',
    last_error    text NOT NULL DEFAULT (''),
    scheduled_for varchar(40),
    due_at        datetime(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
    created_at    datetime(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
    started_at    datetime(6),
    moved_at      datetime(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
    ended_at      datetime(6),
    PRIMARY KEY (instance),
    KEY duly_run_due (status, due_at),
    KEY duly_run_job (job, created_at)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

CREATE TABLE IF NOT EXISTS duly_attempt (
    instance   varchar(120) NOT NULL,
    attempt    int NOT NULL,
    token      bigint NOT NULL,
    owner      varchar(255) NOT NULL,
    definition varchar(80) NOT NULL,
    spool      varchar(120) NOT NULL,
    status     varchar(16) NOT NULL,
    error      text NOT NULL DEFAULT (''),
    started_at datetime(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
    ended_at   datetime(6),
    PRIMARY KEY (instance, attempt)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

CREATE TABLE IF NOT EXISTS duly_checkpoint (
    instance   varchar(120) NOT NULL,
    step       varchar(120) NOT NULL,
    attempt    int NOT NULL,
    status     varchar(16) NOT NULL,
    data       mediumblob,
    row_count  bigint NOT NULL DEFAULT 0,
    size_bytes bigint NOT NULL DEFAULT 0,
    facts      mediumtext NOT NULL DEFAULT ('{}'),
    saves      bigint NOT NULL DEFAULT 1,
    moved_at   datetime(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
    PRIMARY KEY (instance, step)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
