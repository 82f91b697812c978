-- The record of what every handler has done, and of what it could not do yet.

-- name: inbox.deadline
-- A frozen worker cannot block its successor for longer than a handler may run.
SELECT set_config('lock_timeout', %(milliseconds)s, false), set_config('idle_in_transaction_session_timeout', %(milliseconds)s, false)

-- name: inbox.guard
-- Gone as soon as somebody ends the transaction, however that is done.
SAVEPOINT duly_guard

-- name: inbox.unguard
RELEASE SAVEPOINT duly_guard

-- name: inbox.unwind
ROLLBACK TO SAVEPOINT duly_guard

-- name: inbox.claim
INSERT INTO duly_inbox (group_name, handler, dedupe_key, message_id, message_type, kind, topic, key, status, settled_at)
VALUES (%(group)s, %(handler)s, %(dedupe_key)s, %(message_id)s, %(message_type)s, %(kind)s, %(topic)s, %(key)s,
    'done', clock_timestamp())
ON CONFLICT (group_name, handler, dedupe_key) DO NOTHING

-- name: inbox.claim_all
-- rows: [dedupe_key, message_id, key] each, as JSON: the driver takes six times as long to write arrays.
INSERT INTO duly_inbox (group_name, handler, message_type, kind, topic, dedupe_key, message_id, key, status, settled_at)
SELECT %(group)s, %(handler)s, %(message_type)s, %(kind)s, %(topic)s, r ->> 0, r ->> 1, r ->> 2, 'done', clock_timestamp()
FROM json_array_elements(%(rows)s::json) AS r
ON CONFLICT (group_name, handler, dedupe_key) DO NOTHING

-- name: inbox.claim_many
INSERT INTO duly_inbox (group_name, handler, message_type, kind, topic, dedupe_key, message_id, key, status, settled_at)
SELECT %(group)s, %(handler)s, %(message_type)s, %(kind)s, %(topic)s, r ->> 0, r ->> 1, r ->> 2, 'done', clock_timestamp()
FROM json_array_elements(%(rows)s::json) AS r
ON CONFLICT (group_name, handler, dedupe_key) DO NOTHING
RETURNING dedupe_key

-- name: inbox.look
SELECT message_id, status FROM duly_inbox
WHERE group_name = %(group)s AND handler = %(handler)s AND dedupe_key = %(dedupe_key)s

-- name: inbox.seen
SELECT b.dedupe_key, b.message_id, b.status FROM duly_inbox b
WHERE b.group_name = %(group)s AND b.handler = %(handler)s AND b.dedupe_key = ANY(%(dedupe_keys)s)

-- name: inbox.store
INSERT INTO duly_inbox (group_name, handler, dedupe_key, message_id, message_type, kind, topic, key, lane, payload, headers,
    status, attempts, due_at, last_error)
VALUES (%(group)s, %(handler)s, %(dedupe_key)s, %(message_id)s, %(message_type)s, %(kind)s, %(topic)s, %(key)s, %(lane)s,
    %(payload)s, %(headers)s, %(status)s, %(attempts)s,
    clock_timestamp() + make_interval(secs => %(delay_seconds)s::float8), %(error)s)
ON CONFLICT (group_name, handler, dedupe_key) DO NOTHING

-- name: inbox.wake
SELECT pg_notify('duly_wake', '') FROM duly_lease WHERE asleep LIMIT 1

-- name: inbox.reopen
-- The handler committed half of its work and the record that all is done.
UPDATE duly_inbox SET status = 'failed', attempts = %(attempts)s, last_error = %(error)s, payload = %(payload)s,
    headers = %(headers)s, lane = %(lane)s, settled_at = NULL
WHERE group_name = %(group)s AND handler = %(handler)s AND dedupe_key = %(dedupe_key)s AND message_id = %(message_id)s
    AND status = 'done'

-- name: inbox.attempt
UPDATE duly_inbox SET attempts = %(attempts)s
WHERE id = %(id)s AND message_id = %(message_id)s AND status IN ('ready', 'retry', 'held') AND EXISTS (
    SELECT 1 FROM duly_lease l WHERE l.name = %(lease)s AND l.token = %(token)s)

-- name: inbox.finish
UPDATE duly_inbox SET status = 'done', payload = NULL, headers = '{}', due_at = NULL, last_error = NULL,
    settled_at = clock_timestamp()
WHERE id = %(id)s AND message_id = %(message_id)s AND status IN ('ready', 'retry', 'held') AND EXISTS (
    SELECT 1 FROM duly_lease l WHERE l.name = %(lease)s AND l.token = %(token)s)

-- name: inbox.pass_over
UPDATE duly_inbox SET status = 'skipped', last_error = %(error)s, settled_at = clock_timestamp()
WHERE id = %(id)s AND message_id = %(message_id)s AND status IN ('ready', 'retry', 'held') AND EXISTS (
    SELECT 1 FROM duly_lease l WHERE l.name = %(lease)s AND l.token = %(token)s)

-- name: inbox.rekey
UPDATE duly_inbox b SET dedupe_key = %(dedupe_key)s
WHERE b.id = %(id)s AND b.message_id = %(message_id)s AND NOT EXISTS (
    SELECT 1 FROM duly_inbox o
    WHERE o.group_name = b.group_name AND o.handler = b.handler AND o.dedupe_key = %(dedupe_key)s)

-- name: inbox.of_message
-- Every id is followed by U+001F in the key, so this is a range of the unique index.
SELECT i.id, coalesce((
    SELECT b.status FROM duly_inbox b
    WHERE b.group_name = %(group)s AND b.handler = h.name AND b.dedupe_key > i.id || chr(31)
        AND b.dedupe_key < i.id || chr(32)
    ORDER BY b.status IN ('done', 'skipped', 'dropped') LIMIT 1), '')
FROM unnest(%(message_ids)s::text[]) AS i(id) CROSS JOIN unnest(%(handlers)s::text[]) AS h(name)

-- name: inbox.lag
SELECT status, count(*), extract(epoch FROM clock_timestamp() - min(created_at))::float8 FROM duly_inbox
WHERE group_name = %(group)s AND status IN ('ready', 'retry', 'held', 'failed')
GROUP BY status

-- name: inbox.receive :arrays
INSERT INTO duly_inbox (group_name, handler, dedupe_key, message_id, message_type, kind, topic, key, lane, payload, headers,
    status)
SELECT group_name, handler, dedupe_key, message_id, message_type, kind, topic, key, lane, payload, headers, 'ready'
FROM unnest(%(group)b::text[], %(handler)b::text[], %(dedupe_key)b::text[], %(message_id)b::text[],
            %(message_type)b::text[], %(kind)b::text[], %(topic)b::text[], %(key)b::text[], %(lane)b::smallint[],
            %(payload)b::bytea[], %(headers)b::text[])
    WITH ORDINALITY AS r(group_name, handler, dedupe_key, message_id, message_type, kind, topic, key, lane, payload,
        headers, place)
ORDER BY place
ON CONFLICT (group_name, handler, dedupe_key) DO NOTHING
