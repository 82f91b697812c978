-- Global transactions: what their coordinator has decided, kept before the first branch is prepared.
CREATE TABLE IF NOT EXISTS duly_global_tx (
    id         varchar(40) NOT NULL,
    status     varchar(16) NOT NULL,
    branches   text NOT NULL,
    decide_by  datetime(6) NOT NULL,
    created_at datetime(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
    decided_at datetime(6),
    ended_at   datetime(6),
    PRIMARY KEY (id),
    KEY duly_global_tx_status (status, created_at)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
