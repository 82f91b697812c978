-- What an operator sees of the boxes.  Rows that need somebody are found by their own index.

-- name: operator.outbox_list
SELECT b.id, b.message_id, b.message_type, b.kind, b.topic, b.key, '' AS group_name, '' AS handler,
    b.status, b.attempts, extract(epoch FROM b.due_at)::float8, b.last_error,
    extract(epoch FROM b.created_at)::float8, extract(epoch FROM b.settled_at)::float8
FROM duly_outbox b
WHERE b.id > %(after)s AND b.status = ANY(%(statuses)s::text[]) AND (%(topic)s::text = '' OR b.topic = %(topic)s::text)
    AND starts_with(coalesce(b.last_error, ''), %(error)s::text) AND b.created_at >= to_timestamp(%(since)s)
ORDER BY b.id LIMIT %(limit)s

-- name: operator.outbox_kept
SELECT b.id, b.message_id, b.message_type, b.kind, b.topic, b.key, '' AS group_name, '' AS handler,
    b.status, b.attempts, extract(epoch FROM b.due_at)::float8, b.last_error,
    extract(epoch FROM b.created_at)::float8, extract(epoch FROM b.settled_at)::float8
FROM duly_outbox b
WHERE b.status IN ('retry', 'held', 'failed') AND b.id > %(after)s AND b.status = ANY(%(statuses)s::text[]) AND (%(topic)s::text = '' OR b.topic = %(topic)s::text)
    AND starts_with(coalesce(b.last_error, ''), %(error)s::text) AND b.created_at >= to_timestamp(%(since)s)
ORDER BY b.id LIMIT %(limit)s

-- name: operator.outbox_count
SELECT count(*) FROM duly_outbox b WHERE b.status = ANY(%(statuses)s::text[]) AND (%(topic)s::text = '' OR b.topic = %(topic)s::text)
    AND starts_with(coalesce(b.last_error, ''), %(error)s::text) AND b.created_at >= to_timestamp(%(since)s)

-- name: operator.outbox_count_kept
SELECT count(*) FROM duly_outbox b WHERE b.status IN ('retry', 'held', 'failed') AND b.status = ANY(%(statuses)s::text[]) AND (%(topic)s::text = '' OR b.topic = %(topic)s::text)
    AND starts_with(coalesce(b.last_error, ''), %(error)s::text) AND b.created_at >= to_timestamp(%(since)s)

-- name: operator.outbox_show
SELECT b.id, b.message_id, b.message_type, b.kind, b.topic, b.key, '' AS group_name, '' AS handler,
    b.status, b.attempts, extract(epoch FROM b.due_at)::float8, b.last_error,
    extract(epoch FROM b.created_at)::float8, extract(epoch FROM b.settled_at)::float8,
    b.lane, b.payload, b.headers, '' AS dedupe_key
FROM duly_outbox b WHERE b.id = %(id)s

-- name: operator.outbox_stats
SELECT '' AS group_name, topic, status, count(*), extract(epoch FROM min(created_at))::float8
FROM duly_outbox GROUP BY topic, status ORDER BY 1, topic, status

-- name: operator.inbox_list
SELECT b.id, b.message_id, b.message_type, b.kind, b.topic, b.key, b.group_name, b.handler,
    b.status, b.attempts, extract(epoch FROM b.due_at)::float8, b.last_error,
    extract(epoch FROM b.created_at)::float8, extract(epoch FROM b.settled_at)::float8
FROM duly_inbox b
WHERE b.id > %(after)s AND b.status = ANY(%(statuses)s::text[]) AND (%(topic)s::text = '' OR b.topic = %(topic)s::text)
    AND starts_with(coalesce(b.last_error, ''), %(error)s::text) AND b.created_at >= to_timestamp(%(since)s)
    AND (%(group)s::text = '' OR b.group_name = %(group)s::text)
ORDER BY b.id LIMIT %(limit)s

-- name: operator.inbox_kept
SELECT b.id, b.message_id, b.message_type, b.kind, b.topic, b.key, b.group_name, b.handler,
    b.status, b.attempts, extract(epoch FROM b.due_at)::float8, b.last_error,
    extract(epoch FROM b.created_at)::float8, extract(epoch FROM b.settled_at)::float8
FROM duly_inbox b
WHERE b.status IN ('retry', 'held', 'failed') AND b.id > %(after)s AND b.status = ANY(%(statuses)s::text[]) AND (%(topic)s::text = '' OR b.topic = %(topic)s::text)
    AND starts_with(coalesce(b.last_error, ''), %(error)s::text) AND b.created_at >= to_timestamp(%(since)s)
    AND (%(group)s::text = '' OR b.group_name = %(group)s::text)
ORDER BY b.id LIMIT %(limit)s

-- name: operator.inbox_count
SELECT count(*) FROM duly_inbox b WHERE b.status = ANY(%(statuses)s::text[]) AND (%(topic)s::text = '' OR b.topic = %(topic)s::text)
    AND starts_with(coalesce(b.last_error, ''), %(error)s::text) AND b.created_at >= to_timestamp(%(since)s)
    AND (%(group)s::text = '' OR b.group_name = %(group)s::text)

-- name: operator.inbox_count_kept
SELECT count(*) FROM duly_inbox b WHERE b.status IN ('retry', 'held', 'failed') AND b.status = ANY(%(statuses)s::text[]) AND (%(topic)s::text = '' OR b.topic = %(topic)s::text)
    AND starts_with(coalesce(b.last_error, ''), %(error)s::text) AND b.created_at >= to_timestamp(%(since)s)
    AND (%(group)s::text = '' OR b.group_name = %(group)s::text)

-- name: operator.inbox_show
SELECT b.id, b.message_id, b.message_type, b.kind, b.topic, b.key, b.group_name, b.handler,
    b.status, b.attempts, extract(epoch FROM b.due_at)::float8, b.last_error,
    extract(epoch FROM b.created_at)::float8, extract(epoch FROM b.settled_at)::float8,
    b.lane, b.payload, b.headers, b.dedupe_key AS dedupe_key
FROM duly_inbox b WHERE b.id = %(id)s

-- name: operator.inbox_stats
SELECT group_name AS group_name, topic, status, count(*), extract(epoch FROM min(created_at))::float8
FROM duly_inbox GROUP BY topic, status, group_name ORDER BY 1, topic, status

-- name: operator.effects
SELECT step, state, provider_key, extract(epoch FROM created_at)::float8, extract(epoch FROM settled_at)::float8
FROM duly_effect
WHERE group_name = %(group)s AND handler = %(handler)s AND dedupe_key = %(dedupe_key)s ORDER BY created_at, step
