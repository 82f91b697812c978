-- The failure log: messages that could not be handed over and have no place in the outbox.

-- name: failure.add
INSERT INTO duly_failure (source, message_id, message_type, kind, topic, key, payload, headers, state, due_at, error)
VALUES (%(source)s, %(message_id)s, %(message_type)s, %(kind)s, %(topic)s, %(key)s, %(payload)s, %(headers)s, 'open',
    clock_timestamp() + make_interval(secs => %(delay_seconds)s::float8), %(error)s)
RETURNING id

-- name: failure.due
SELECT id, message_id, message_type, kind, topic, key, payload, headers, attempts FROM duly_failure
WHERE state = 'open' AND due_at <= clock_timestamp() AND source = %(source)s ORDER BY due_at, id LIMIT %(limit)s

-- name: failure.settle
UPDATE duly_failure SET state = %(state)s, due_at = NULL, settled_at = clock_timestamp()
WHERE id = %(id)s AND message_id = %(message_id)s AND state = 'open'

-- name: failure.postpone
UPDATE duly_failure SET attempts = %(attempts)s, error = %(error)s,
    due_at = clock_timestamp() + make_interval(secs => %(delay_seconds)s::float8)
WHERE id = %(id)s AND state = 'open' AND attempts = %(was)s

-- name: failure.again
UPDATE duly_failure SET attempts = 0, due_at = clock_timestamp()
WHERE id = %(id)s AND message_id = %(message_id)s AND state = 'open'

-- name: failure.list
SELECT id, source, message_id, message_type, kind, topic, key, state, attempts, extract(epoch FROM due_at)::float8, error,
    extract(epoch FROM created_at)::float8, extract(epoch FROM settled_at)::float8
FROM duly_failure
WHERE id > %(after)s AND state = ANY(%(states)s::text[]) AND (%(source)s::text = '' OR source = %(source)s::text)
    AND (%(topic)s::text = '' OR topic = %(topic)s::text)
    AND starts_with(coalesce(error, ''), %(error)s::text) AND created_at >= to_timestamp(%(since)s)
ORDER BY id LIMIT %(limit)s

-- name: failure.count
SELECT count(*) FROM duly_failure WHERE state = ANY(%(states)s::text[]) AND (%(source)s::text = '' OR source = %(source)s::text)
    AND (%(topic)s::text = '' OR topic = %(topic)s::text)
    AND starts_with(coalesce(error, ''), %(error)s::text) AND created_at >= to_timestamp(%(since)s)

-- name: failure.show
SELECT id, source, message_id, message_type, kind, topic, key, state, attempts, extract(epoch FROM due_at)::float8, error,
    extract(epoch FROM created_at)::float8, extract(epoch FROM settled_at)::float8, payload, headers
FROM duly_failure WHERE id = %(id)s
