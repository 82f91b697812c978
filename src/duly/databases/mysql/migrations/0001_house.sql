-- Everything that outbox, inbox, leases and the operator need.  Times are the server's own clock, in UTC whatever the session's
-- zone.  What an index holds of a key is bytes: any text up to the limit fits, and no collation takes two keys for one.
CREATE TABLE IF NOT EXISTS duly_meta (
    name  varchar(255) NOT NULL,
    value mediumtext NOT NULL,
    PRIMARY KEY (name)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

CREATE TABLE IF NOT EXISTS duly_stripe (
    id      smallint NOT NULL,
    flushes bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
INSERT IGNORE INTO duly_stripe (id)
WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 31)
SELECT a.i * 32 + b.i FROM n a CROSS JOIN n b;

CREATE TABLE IF NOT EXISTS duly_outbox (
    id           bigint NOT NULL AUTO_INCREMENT,
    message_id   varchar(255) NOT NULL,
    message_type varchar(255) NOT NULL,
    kind         varchar(16) NOT NULL,
    topic        varchar(120) NOT NULL,
    `key`        varbinary(1024),
    lane         smallint NOT NULL,
    payload      longblob NOT NULL,
    headers      mediumtext NOT NULL,
    status       varchar(16) NOT NULL DEFAULT 'ready',
    attempts     int NOT NULL DEFAULT 0,
    due_at       datetime(6),
    last_error   text,
    created_at   datetime(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
    settled_at   datetime(6),
    PRIMARY KEY (id),
    KEY duly_outbox_ready (status, id),
    KEY duly_outbox_due (status, due_at),
    KEY duly_outbox_kept (status, topic, `key`, id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

CREATE TABLE IF NOT EXISTS duly_inbox (
    id           bigint NOT NULL AUTO_INCREMENT,
    group_name   varchar(120) NOT NULL,
    handler      varchar(120) NOT NULL,
    dedupe_key   varbinary(1536) NOT NULL,
    message_id   varchar(255) NOT NULL,
    message_type varchar(255) NOT NULL,
    kind         varchar(16) NOT NULL,
    topic        varchar(120) NOT NULL,
    `key`        varbinary(1024),
    lane         smallint NOT NULL DEFAULT 0,
    payload      longblob,
    headers      mediumtext NOT NULL DEFAULT ('{}'),
    status       varchar(16) NOT NULL,
    attempts     int NOT NULL DEFAULT 0,
    due_at       datetime(6),
    last_error   text,
    created_at   datetime(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
    settled_at   datetime(6),
    PRIMARY KEY (id),
    UNIQUE KEY duly_inbox_once (group_name, handler, dedupe_key),
    KEY duly_inbox_ready (group_name, status, id),
    KEY duly_inbox_due (status, due_at),
    KEY duly_inbox_kept (status, group_name, topic, `key`, id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

CREATE TABLE IF NOT EXISTS duly_effect (
    group_name   varchar(120) NOT NULL,
    handler      varchar(120) NOT NULL,
    dedupe_key   varbinary(1536) NOT NULL,
    step         varchar(120) NOT NULL,
    provider_key varchar(255) NOT NULL,
    arguments    mediumtext NOT NULL,
    state        varchar(16) NOT NULL,
    result       longblob,
    holder       varchar(255),
    until        datetime(6),
    created_at   datetime(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
    settled_at   datetime(6),
    PRIMARY KEY (group_name, handler, dedupe_key, step)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

CREATE TABLE IF NOT EXISTS duly_key_hold (
    scope      varchar(160) NOT NULL,
    topic      varchar(120) NOT NULL,
    `key`      varbinary(1024) NOT NULL,
    lane       smallint NOT NULL,
    blocker_id bigint,
    created_at datetime(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
    PRIMARY KEY (scope, topic, `key`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

CREATE TABLE IF NOT EXISTS duly_lease (
    name    varchar(255) NOT NULL,
    kind    varchar(16) NOT NULL,
    scope   text NOT NULL DEFAULT (''),
    lane    smallint,
    holder  varchar(255),
    token   bigint NOT NULL DEFAULT 0,
    until   datetime(6),
    seen_at datetime(6),
    asleep  tinyint NOT NULL DEFAULT 0,
    PRIMARY KEY (name),
    KEY duly_lease_member (kind, holder)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

CREATE TABLE IF NOT EXISTS duly_failure (
    id           bigint NOT NULL AUTO_INCREMENT,
    source       varchar(255) NOT NULL,
    message_id   varchar(255) NOT NULL,
    message_type varchar(255) NOT NULL,
    kind         varchar(16) NOT NULL,
    topic        varchar(120) NOT NULL,
    `key`        varbinary(1024),
    payload      longblob NOT NULL,
    headers      mediumtext NOT NULL,
    state        varchar(16) NOT NULL,
    attempts     int NOT NULL DEFAULT 0,
    due_at       datetime(6),
    error        text,
    created_at   datetime(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
    settled_at   datetime(6),
    PRIMARY KEY (id),
    KEY duly_failure_open (state, due_at)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

CREATE TABLE IF NOT EXISTS duly_audit (
    id         bigint NOT NULL AUTO_INCREMENT,
    created_at datetime(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
    actor      varchar(255) NOT NULL,
    verb       varchar(64) NOT NULL,
    target     varchar(255) NOT NULL,
    message_id varchar(255),
    reason     text NOT NULL DEFAULT (''),
    detail     mediumtext NOT NULL DEFAULT ('{}'),
    PRIMARY KEY (id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
