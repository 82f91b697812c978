-- Statements of the one lane reader, rendered once for each box (outbox, inbox).
-- {box}: the table. {columns}: what a row is. {mine}: the group, in the inbox.
-- Without statistics SQLite would rather read all rows of a group than the few of a partial index, so each index is
-- named; it fits only where its own condition stands in the statement word for word.

-- name: {box}.read
SELECT {columns} FROM duly_{box} b
WHERE status = 'ready' AND id > :after AND lane IN (SELECT value FROM json_each(:lanes)) AND NOT (id IN (SELECT value FROM json_each(:busy)))
    AND NOT (topic IN (SELECT value FROM json_each(:aside))) {mine}
ORDER BY id LIMIT :limit

-- name: {box}.due
SELECT {columns} FROM duly_{box} b INDEXED BY duly_{box}_due
WHERE status = 'retry' AND due_at <= :now AND lane IN (SELECT value FROM json_each(:lanes)) AND NOT (id IN (SELECT value FROM json_each(:busy)))
    AND NOT (topic IN (SELECT value FROM json_each(:aside))) {mine}
ORDER BY due_at LIMIT :limit

-- name: {box}.drain
SELECT {columns} FROM duly_key_hold h CROSS JOIN duly_{box} b INDEXED BY duly_{box}_kept
WHERE h.scope = :scope AND h.lane IN (SELECT value FROM json_each(:lanes)) AND h.blocker_id IS NULL
    AND b.topic = h.topic AND b.key = h.key AND b.status IN ('retry', 'held', 'failed') AND b.status = 'held' AND b.last_error IS NULL {mine}
    AND b.id < coalesce((
        SELECT b.id FROM duly_{box} b INDEXED BY duly_{box}_kept
        WHERE b.topic = h.topic AND b.key = h.key AND b.status IN ('retry', 'held', 'failed') AND b.status = 'held' AND b.last_error IS NULL {mine}
        ORDER BY b.id LIMIT 1 OFFSET :per_key), 9223372036854775807)
    AND NOT (b.id IN (SELECT value FROM json_each(:busy)))
    AND NOT (h.topic IN (SELECT value FROM json_each(:aside)))
ORDER BY b.id LIMIT :limit

-- name: {box}.fail
UPDATE duly_{box} SET status = :status, attempts = :attempts, last_error = :error,
    due_at = :now + :delay_seconds
WHERE id = :id AND message_id = :message_id AND status IN ('ready', 'retry', 'held')
RETURNING id

-- name: {box}.mark_held
UPDATE duly_{box} AS b SET status = 'held', last_error = NULL
WHERE id IN (SELECT value FROM json_each(:ids)) AND status = 'ready' {mine} AND EXISTS (
    SELECT 1 FROM duly_key_hold h WHERE h.scope = :scope AND h.topic = b.topic AND h.key = b.key)

-- name: {box}.free_holds
UPDATE duly_key_hold SET blocker_id = NULL
WHERE scope = :scope AND blocker_id IN (SELECT value FROM json_each(:ids))
-- then
DELETE FROM duly_key_hold
WHERE scope = :scope AND blocker_id IS NULL
    AND topic IN (SELECT value FROM json_each(:topics)) AND key IN (SELECT value FROM json_each(:keys)) AND NOT EXISTS (
    SELECT 1 FROM duly_{box} b INDEXED BY duly_{box}_kept
    WHERE b.topic = duly_key_hold.topic AND b.key = duly_key_hold.key AND b.status IN ('retry', 'held', 'failed') AND b.status = 'held' AND b.last_error IS NULL {mine})
RETURNING topic, key

-- name: {box}.sweep_blockers
UPDATE duly_key_hold AS h SET blocker_id = NULL
WHERE h.scope = :scope AND h.lane IN (SELECT value FROM json_each(:lanes)) AND h.blocker_id IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM duly_{box} b WHERE b.id = h.blocker_id AND b.status IN ('retry', 'held', 'failed'))

-- name: {box}.sweep_empty
DELETE FROM duly_key_hold AS h
WHERE h.scope = :scope AND h.lane IN (SELECT value FROM json_each(:lanes)) AND h.blocker_id IS NULL AND NOT EXISTS (
    SELECT 1 FROM duly_{box} b INDEXED BY duly_{box}_kept
    WHERE b.topic = h.topic AND b.key = h.key AND b.status IN ('retry', 'held', 'failed') AND b.status = 'held' AND b.last_error IS NULL {mine})

-- name: {box}.sweep_orphans
INSERT INTO duly_key_hold (scope, topic, key, lane, created_at)
SELECT DISTINCT :scope, b.topic, b.key, b.lane, :now FROM duly_{box} b INDEXED BY duly_{box}_kept
WHERE b.status IN ('retry', 'held', 'failed') AND b.status = 'held' AND b.last_error IS NULL AND b.key IS NOT NULL AND b.lane IN (SELECT value FROM json_each(:lanes)) {mine}
ON CONFLICT (scope, topic, key) DO NOTHING

-- name: {box}.sweep_holds
SELECT h.topic, h.key, h.blocker_id FROM duly_key_hold h
WHERE h.scope = :scope AND h.lane IN (SELECT value FROM json_each(:lanes))
