-- Statements of the one lane reader, rendered once for each box (outbox, inbox).
-- {box}: the table. {columns}: what a row is. {mine}: the group, in the inbox.
-- busy is thousands of ids: the set of a subquery is hashed, an array is searched from its beginning for each row.

-- name: {box}.read
SELECT {columns} FROM duly_{box} b
WHERE status = 'ready' AND id > %(after)s AND lane = ANY(%(lanes)s) AND id NOT IN (SELECT unnest(%(busy)s::bigint[])) AND NOT (topic = ANY(%(aside)s)) {mine}
ORDER BY id LIMIT %(limit)s

-- name: {box}.due
SELECT {columns} FROM duly_{box} b
WHERE status = 'retry' AND due_at <= clock_timestamp() AND lane = ANY(%(lanes)s) AND id NOT IN (SELECT unnest(%(busy)s::bigint[])) AND NOT (topic = ANY(%(aside)s)) {mine}
ORDER BY due_at LIMIT %(limit)s

-- name: {box}.drain
SELECT f.* FROM duly_key_hold h CROSS JOIN LATERAL (
    SELECT {columns} FROM duly_{box} b
    WHERE b.topic = h.topic AND b.key = h.key AND b.status = 'held' AND b.last_error IS NULL {mine}
    ORDER BY b.id LIMIT %(per_key)s
) AS f
WHERE h.scope = %(scope)s AND h.lane = ANY(%(lanes)s) AND h.blocker_id IS NULL AND f.id NOT IN (SELECT unnest(%(busy)s::bigint[])) AND NOT (h.topic = ANY(%(aside)s))
ORDER BY f.id LIMIT %(limit)s

-- name: {box}.fail
UPDATE duly_{box} SET status = %(status)s, attempts = %(attempts)s, last_error = %(error)s,
    due_at = clock_timestamp() + make_interval(secs => %(delay_seconds)s)
WHERE id = %(id)s AND message_id = %(message_id)s AND status IN ('ready', 'retry', 'held')
RETURNING id

-- name: {box}.mark_held
UPDATE duly_{box} b SET status = 'held', last_error = NULL
WHERE id = ANY(%(ids)s) AND status = 'ready' {mine} AND EXISTS (
    SELECT 1 FROM duly_key_hold h WHERE h.scope = %(scope)s AND h.topic = b.topic AND h.key = b.key)

-- name: {box}.free_holds
UPDATE duly_key_hold h SET blocker_id = NULL
FROM unnest(%(topics)s::text[], %(keys)s::text[]) AS k(topic, key)
WHERE h.scope = %(scope)s AND h.topic = k.topic AND h.key = k.key AND h.blocker_id = ANY(%(ids)s)
-- then
DELETE FROM duly_key_hold h USING unnest(%(topics)s::text[], %(keys)s::text[]) AS k(topic, key)
WHERE h.scope = %(scope)s AND h.topic = k.topic AND h.key = k.key AND h.blocker_id IS NULL AND NOT EXISTS (
    SELECT 1 FROM duly_{box} b
    WHERE b.topic = h.topic AND b.key = h.key AND b.status = 'held' AND b.last_error IS NULL {mine})
RETURNING h.topic, h.key

-- name: {box}.sweep_blockers
UPDATE duly_key_hold h SET blocker_id = NULL
WHERE h.scope = %(scope)s AND h.lane = ANY(%(lanes)s) AND h.blocker_id IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM duly_{box} b WHERE b.id = h.blocker_id AND b.status IN ('retry', 'held', 'failed'))

-- name: {box}.sweep_empty
DELETE FROM duly_key_hold h
WHERE h.scope = %(scope)s AND h.lane = ANY(%(lanes)s) AND h.blocker_id IS NULL AND NOT EXISTS (
    SELECT 1 FROM duly_{box} b
    WHERE b.topic = h.topic AND b.key = h.key AND b.status = 'held' AND b.last_error IS NULL {mine})

-- name: {box}.sweep_orphans
INSERT INTO duly_key_hold (scope, topic, key, lane)
SELECT DISTINCT %(scope)s, b.topic, b.key, b.lane FROM duly_{box} b
WHERE b.status = 'held' AND b.last_error IS NULL AND b.key IS NOT NULL AND b.lane = ANY(%(lanes)s) {mine}
ON CONFLICT (scope, topic, key) DO NOTHING

-- name: {box}.sweep_holds
SELECT h.topic, h.key, h.blocker_id FROM duly_key_hold h
WHERE h.scope = %(scope)s AND h.lane = ANY(%(lanes)s)
