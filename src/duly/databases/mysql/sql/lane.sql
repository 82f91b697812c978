-- Statements of the one lane reader, rendered once for each box (outbox, inbox).
-- {box}: the table. {columns}: what a row is. {mine}: the group, in the inbox.

-- name: {box}.read
-- By this index whatever the statistics say: they may be of a time when the table was empty.
SELECT {columns} FROM duly_{box} b FORCE INDEX (duly_{box}_ready)
WHERE b.status = 'ready' AND b.id > %(after)s AND b.lane IN %(lanes)s AND COALESCE(b.id IN %(busy)s, 0) = 0
    AND COALESCE(b.topic IN %(aside)s, 0) = 0 {mine}
ORDER BY b.id LIMIT %(limit)s

-- name: {box}.due
SELECT {columns} FROM duly_{box} b FORCE INDEX (duly_{box}_due)
WHERE b.status = 'retry' AND b.due_at <= UTC_TIMESTAMP(6) AND b.lane IN %(lanes)s AND COALESCE(b.id IN %(busy)s, 0) = 0
    AND COALESCE(b.topic IN %(aside)s, 0) = 0 {mine}
ORDER BY b.due_at LIMIT %(limit)s

-- name: {box}.drain
-- The ids first: sorted together with payloads they make a temporary table on the disk, and MariaDB 10.11 was seen to die
-- of dropping it (signal 11 in ha_maria::drop_table).
SELECT {columns} FROM (
    SELECT b.id FROM duly_key_hold h
    JOIN duly_{box} b FORCE INDEX (duly_{box}_kept) ON b.status = 'held' AND b.topic = h.topic AND b.key = h.key
    WHERE h.scope = %(scope)s AND h.lane IN %(lanes)s AND h.blocker_id IS NULL AND b.last_error IS NULL {mine}
        AND b.id < COALESCE((
            SELECT b.id FROM duly_{box} b FORCE INDEX (duly_{box}_kept)
            WHERE b.status = 'held' AND b.topic = h.topic AND b.key = h.key AND b.last_error IS NULL {mine}
            ORDER BY b.id LIMIT 1 OFFSET %(per_key)s), 9223372036854775807)
        AND COALESCE(b.id IN %(busy)s, 0) = 0 AND COALESCE(h.topic IN %(aside)s, 0) = 0
    ORDER BY b.id LIMIT %(limit)s) AS next
STRAIGHT_JOIN duly_{box} b FORCE INDEX (PRIMARY) ON b.id = next.id
ORDER BY next.id

-- name: {box}.fail
SELECT id FROM duly_{box}
WHERE id = %(id)s AND message_id = %(message_id)s AND status IN ('ready', 'retry', 'held') FOR UPDATE
-- then
UPDATE duly_{box} SET status = %(status)s, attempts = %(attempts)s, last_error = %(error)s,
    due_at = UTC_TIMESTAMP(6) + INTERVAL %(delay_seconds)s SECOND
WHERE id = %(id)s AND message_id = %(message_id)s AND status IN ('ready', 'retry', 'held')

-- name: {box}.mark_held
UPDATE duly_{box} b SET b.status = 'held', b.last_error = NULL
WHERE b.id IN %(ids)s AND b.status = 'ready' {mine} AND EXISTS (
    SELECT 1 FROM duly_key_hold h WHERE h.scope = %(scope)s AND h.topic = b.topic AND h.key = b.key)

-- name: {box}.free_holds
-- The holds are locked (hold.lock), so what the last two statements see of their keys is the same.
UPDATE duly_key_hold h SET h.blocker_id = NULL
WHERE h.scope = %(scope)s AND h.topic IN %(topics)s AND (h.topic, h.key) IN %(pairs)s AND h.blocker_id IN %(ids)s
-- then
SELECT h.topic, h.key FROM duly_key_hold h
WHERE h.scope = %(scope)s AND h.topic IN %(topics)s AND (h.topic, h.key) IN %(pairs)s AND h.blocker_id IS NULL AND NOT EXISTS (
    SELECT 1 FROM duly_{box} b
    WHERE b.topic = h.topic AND b.key = h.key AND b.status = 'held' AND b.last_error IS NULL {mine})
-- then
DELETE h FROM duly_key_hold h
WHERE h.scope = %(scope)s AND h.topic IN %(topics)s AND (h.topic, h.key) IN %(pairs)s AND h.blocker_id IS NULL AND NOT EXISTS (
    SELECT 1 FROM duly_{box} b
    WHERE b.topic = h.topic AND b.key = h.key AND b.status = 'held' AND b.last_error IS NULL {mine})

-- name: {box}.sweep_blockers
UPDATE duly_key_hold h SET h.blocker_id = NULL
WHERE h.scope = %(scope)s AND h.lane IN %(lanes)s AND h.blocker_id IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM duly_{box} b WHERE b.id = h.blocker_id AND b.status IN ('retry', 'held', 'failed'))

-- name: {box}.sweep_empty
DELETE h FROM duly_key_hold h
WHERE h.scope = %(scope)s AND h.lane IN %(lanes)s AND h.blocker_id IS NULL AND NOT EXISTS (
    SELECT 1 FROM duly_{box} b
    WHERE b.topic = h.topic AND b.key = h.key AND b.status = 'held' AND b.last_error IS NULL {mine})

-- name: {box}.sweep_orphans
INSERT IGNORE INTO duly_key_hold (scope, topic, `key`, lane)
SELECT DISTINCT %(scope)s, b.topic, b.key, b.lane FROM duly_{box} b
WHERE b.status = 'held' AND b.last_error IS NULL AND b.key IS NOT NULL AND b.lane IN %(lanes)s {mine}

-- name: {box}.sweep_holds
SELECT h.topic, h.key, h.blocker_id FROM duly_key_hold h
WHERE h.scope = %(scope)s AND h.lane IN %(lanes)s
