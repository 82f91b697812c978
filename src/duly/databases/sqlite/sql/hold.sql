-- Holds: a queue per key behind a message that failed.

-- name: hold.block
INSERT INTO duly_key_hold (scope, topic, key, lane, blocker_id, created_at)
VALUES (:scope, :topic, :key, :lane, :blocker_id, :now)
ON CONFLICT (scope, topic, key) DO UPDATE SET blocker_id = excluded.blocker_id

-- name: hold.lock
-- The transaction is the lock: SQLite has one writer.
SELECT h.topic, h.key, h.blocker_id FROM duly_key_hold h
WHERE h.scope = :scope AND h.topic IN (SELECT value FROM json_each(:topics)) AND h.key IN (SELECT value FROM json_each(:keys))
