-- Global transactions: what their coordinator has decided, kept before the first branch is prepared.
CREATE TABLE IF NOT EXISTS duly_global_tx (
    id         TEXT NOT NULL PRIMARY KEY,
    status     TEXT NOT NULL,
    branches   TEXT NOT NULL DEFAULT '[]',
    decide_by  REAL NOT NULL,
    created_at REAL NOT NULL,
    decided_at REAL,
    ended_at   REAL
);
CREATE INDEX IF NOT EXISTS duly_global_tx_status ON duly_global_tx (status, created_at);
