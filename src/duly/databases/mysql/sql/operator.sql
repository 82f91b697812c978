-- What an operator sees of the boxes.  Rows that need somebody are found by their own index.

-- name: operator.outbox_list
SELECT b.id, b.message_id, b.message_type, b.kind, b.topic, b.key, '' AS group_name, '' AS handler,
    b.status, b.attempts, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', b.due_at) / 1e6, b.last_error,
    TIMESTAMPDIFF(MICROSECOND, '1970-01-01', b.created_at) / 1e6, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', b.settled_at) / 1e6
FROM duly_outbox b
WHERE b.id > %(after)s AND b.status IN %(statuses)s AND (%(topic)s = '' OR b.topic = %(topic)s)
    AND LEFT(COALESCE(b.last_error, ''), CHAR_LENGTH(%(error)s)) = %(error)s AND b.created_at >= CAST('1970-01-01 00:00:00' AS DATETIME(6)) + INTERVAL %(since)s SECOND
ORDER BY b.id LIMIT %(limit)s

-- name: operator.outbox_kept
SELECT b.id, b.message_id, b.message_type, b.kind, b.topic, b.key, '' AS group_name, '' AS handler,
    b.status, b.attempts, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', b.due_at) / 1e6, b.last_error,
    TIMESTAMPDIFF(MICROSECOND, '1970-01-01', b.created_at) / 1e6, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', b.settled_at) / 1e6
FROM duly_outbox b
WHERE b.status IN ('retry', 'held', 'failed') AND b.id > %(after)s AND b.status IN %(statuses)s AND (%(topic)s = '' OR b.topic = %(topic)s)
    AND LEFT(COALESCE(b.last_error, ''), CHAR_LENGTH(%(error)s)) = %(error)s AND b.created_at >= CAST('1970-01-01 00:00:00' AS DATETIME(6)) + INTERVAL %(since)s SECOND
ORDER BY b.id LIMIT %(limit)s

-- name: operator.outbox_count
SELECT count(*) FROM duly_outbox b WHERE b.status IN %(statuses)s AND (%(topic)s = '' OR b.topic = %(topic)s)
    AND LEFT(COALESCE(b.last_error, ''), CHAR_LENGTH(%(error)s)) = %(error)s AND b.created_at >= CAST('1970-01-01 00:00:00' AS DATETIME(6)) + INTERVAL %(since)s SECOND

-- name: operator.outbox_count_kept
SELECT count(*) FROM duly_outbox b WHERE b.status IN ('retry', 'held', 'failed') AND b.status IN %(statuses)s AND (%(topic)s = '' OR b.topic = %(topic)s)
    AND LEFT(COALESCE(b.last_error, ''), CHAR_LENGTH(%(error)s)) = %(error)s AND b.created_at >= CAST('1970-01-01 00:00:00' AS DATETIME(6)) + INTERVAL %(since)s SECOND

-- name: operator.outbox_show
SELECT b.id, b.message_id, b.message_type, b.kind, b.topic, b.key, '' AS group_name, '' AS handler,
    b.status, b.attempts, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', b.due_at) / 1e6, b.last_error,
    TIMESTAMPDIFF(MICROSECOND, '1970-01-01', b.created_at) / 1e6, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', b.settled_at) / 1e6,
    b.lane, b.payload, b.headers, '' AS dedupe_key
FROM duly_outbox b WHERE b.id = %(id)s

-- name: operator.outbox_stats
SELECT '' AS group_name, topic, status, count(*), TIMESTAMPDIFF(MICROSECOND, '1970-01-01', min(created_at)) / 1e6
FROM duly_outbox GROUP BY topic, status ORDER BY 1, topic, status

-- name: operator.inbox_list
SELECT b.id, b.message_id, b.message_type, b.kind, b.topic, b.key, b.group_name, b.handler,
    b.status, b.attempts, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', b.due_at) / 1e6, b.last_error,
    TIMESTAMPDIFF(MICROSECOND, '1970-01-01', b.created_at) / 1e6, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', b.settled_at) / 1e6
FROM duly_inbox b
WHERE b.id > %(after)s AND b.status IN %(statuses)s AND (%(topic)s = '' OR b.topic = %(topic)s)
    AND LEFT(COALESCE(b.last_error, ''), CHAR_LENGTH(%(error)s)) = %(error)s AND b.created_at >= CAST('1970-01-01 00:00:00' AS DATETIME(6)) + INTERVAL %(since)s SECOND
    AND (%(group)s = '' OR b.group_name = %(group)s)
ORDER BY b.id LIMIT %(limit)s

-- name: operator.inbox_kept
SELECT b.id, b.message_id, b.message_type, b.kind, b.topic, b.key, b.group_name, b.handler,
    b.status, b.attempts, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', b.due_at) / 1e6, b.last_error,
    TIMESTAMPDIFF(MICROSECOND, '1970-01-01', b.created_at) / 1e6, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', b.settled_at) / 1e6
FROM duly_inbox b
WHERE b.status IN ('retry', 'held', 'failed') AND b.id > %(after)s AND b.status IN %(statuses)s AND (%(topic)s = '' OR b.topic = %(topic)s)
    AND LEFT(COALESCE(b.last_error, ''), CHAR_LENGTH(%(error)s)) = %(error)s AND b.created_at >= CAST('1970-01-01 00:00:00' AS DATETIME(6)) + INTERVAL %(since)s SECOND
    AND (%(group)s = '' OR b.group_name = %(group)s)
ORDER BY b.id LIMIT %(limit)s

-- name: operator.inbox_count
SELECT count(*) FROM duly_inbox b WHERE b.status IN %(statuses)s AND (%(topic)s = '' OR b.topic = %(topic)s)
    AND LEFT(COALESCE(b.last_error, ''), CHAR_LENGTH(%(error)s)) = %(error)s AND b.created_at >= CAST('1970-01-01 00:00:00' AS DATETIME(6)) + INTERVAL %(since)s SECOND
    AND (%(group)s = '' OR b.group_name = %(group)s)

-- name: operator.inbox_count_kept
SELECT count(*) FROM duly_inbox b WHERE b.status IN ('retry', 'held', 'failed') AND b.status IN %(statuses)s AND (%(topic)s = '' OR b.topic = %(topic)s)
    AND LEFT(COALESCE(b.last_error, ''), CHAR_LENGTH(%(error)s)) = %(error)s AND b.created_at >= CAST('1970-01-01 00:00:00' AS DATETIME(6)) + INTERVAL %(since)s SECOND
    AND (%(group)s = '' OR b.group_name = %(group)s)

-- name: operator.inbox_show
SELECT b.id, b.message_id, b.message_type, b.kind, b.topic, b.key, b.group_name, b.handler,
    b.status, b.attempts, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', b.due_at) / 1e6, b.last_error,
    TIMESTAMPDIFF(MICROSECOND, '1970-01-01', b.created_at) / 1e6, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', b.settled_at) / 1e6,
    b.lane, b.payload, b.headers, b.dedupe_key AS dedupe_key
FROM duly_inbox b WHERE b.id = %(id)s

-- name: operator.inbox_stats
SELECT group_name AS group_name, topic, status, count(*), TIMESTAMPDIFF(MICROSECOND, '1970-01-01', min(created_at)) / 1e6
FROM duly_inbox GROUP BY topic, status, group_name ORDER BY 1, topic, status

-- name: operator.effects
SELECT step, state, provider_key, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', created_at) / 1e6, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', settled_at) / 1e6
FROM duly_effect
WHERE group_name = %(group)s AND handler = %(handler)s AND dedupe_key = %(dedupe_key)s ORDER BY created_at, step
