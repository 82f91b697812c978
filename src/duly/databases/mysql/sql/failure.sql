-- The failure log: messages that could not be handed over and have no place in the outbox.

-- name: failure.add
INSERT INTO duly_failure (source, message_id, message_type, kind, topic, `key`, payload, headers, state, due_at, error)
VALUES (%(source)s, %(message_id)s, %(message_type)s, %(kind)s, %(topic)s, %(key)s, %(payload)s, %(headers)s, 'open',
    UTC_TIMESTAMP(6) + INTERVAL %(delay_seconds)s SECOND, %(error)s)
-- then
SELECT LAST_INSERT_ID()

-- name: failure.due
SELECT id, message_id, message_type, kind, topic, `key`, payload, headers, attempts FROM duly_failure
WHERE state = 'open' AND due_at <= UTC_TIMESTAMP(6) AND source = %(source)s ORDER BY due_at, id LIMIT %(limit)s

-- name: failure.settle
UPDATE duly_failure SET state = %(state)s, due_at = NULL, settled_at = UTC_TIMESTAMP(6)
WHERE id = %(id)s AND message_id = %(message_id)s AND state = 'open'

-- name: failure.postpone
UPDATE duly_failure SET attempts = %(attempts)s, error = %(error)s,
    due_at = UTC_TIMESTAMP(6) + INTERVAL %(delay_seconds)s SECOND
WHERE id = %(id)s AND state = 'open' AND attempts = %(was)s

-- name: failure.again
UPDATE duly_failure SET attempts = 0, due_at = UTC_TIMESTAMP(6)
WHERE id = %(id)s AND message_id = %(message_id)s AND state = 'open'

-- name: failure.list
SELECT id, source, message_id, message_type, kind, topic, `key`, state, attempts, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', due_at) / 1e6, error,
    TIMESTAMPDIFF(MICROSECOND, '1970-01-01', created_at) / 1e6, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', settled_at) / 1e6
FROM duly_failure
WHERE id > %(after)s AND state IN %(states)s AND (%(source)s = '' OR source = %(source)s)
    AND (%(topic)s = '' OR topic = %(topic)s)
    AND LEFT(COALESCE(error, ''), CHAR_LENGTH(%(error)s)) = %(error)s AND created_at >= CAST('1970-01-01 00:00:00' AS DATETIME(6)) + INTERVAL %(since)s SECOND
ORDER BY id LIMIT %(limit)s

-- name: failure.count
SELECT count(*) FROM duly_failure WHERE state IN %(states)s AND (%(source)s = '' OR source = %(source)s)
    AND (%(topic)s = '' OR topic = %(topic)s)
    AND LEFT(COALESCE(error, ''), CHAR_LENGTH(%(error)s)) = %(error)s AND created_at >= CAST('1970-01-01 00:00:00' AS DATETIME(6)) + INTERVAL %(since)s SECOND

-- name: failure.show
SELECT id, source, message_id, message_type, kind, topic, `key`, state, attempts, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', due_at) / 1e6, error,
    TIMESTAMPDIFF(MICROSECOND, '1970-01-01', created_at) / 1e6, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', settled_at) / 1e6, payload, headers
FROM duly_failure WHERE id = %(id)s
