-- How far each stream of changes is, written together with the messages that were made of them.
CREATE TABLE IF NOT EXISTS duly_offset (
    stream     varchar(120) NOT NULL,
    position   text NOT NULL,
    token      bigint NOT NULL DEFAULT 0,
    state      mediumtext NOT NULL,
    updated_at datetime(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
    PRIMARY KEY (stream)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
