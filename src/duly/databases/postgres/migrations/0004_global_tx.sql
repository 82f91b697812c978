-- Global transactions: what their coordinator has decided, kept before the first branch is prepared.
CREATE TABLE IF NOT EXISTS duly_global_tx (
    id         text PRIMARY KEY,
    status     text NOT NULL,
    branches   text NOT NULL DEFAULT '[]',
    decide_by  timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    decided_at timestamptz,
    ended_at   timestamptz
);
CREATE INDEX IF NOT EXISTS duly_global_tx_status ON duly_global_tx (status, created_at);
