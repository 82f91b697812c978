-- What an operator sees of the boxes.  Rows that need somebody are found by their own index.

-- name: operator.outbox_list
SELECT b.id, b.message_id, b.message_type, b.kind, b.topic, b.key, '' AS group_name, '' AS handler,
    b.status, b.attempts, b.due_at, b.last_error, b.created_at, b.settled_at
FROM duly_outbox b
WHERE b.id > :after AND b.status IN (SELECT value FROM json_each(:statuses)) AND (:topic = '' OR b.topic = :topic)
    AND substr(coalesce(b.last_error, ''), 1, length(:error)) = :error AND b.created_at >= :since
ORDER BY b.id LIMIT :limit

-- name: operator.outbox_kept
SELECT b.id, b.message_id, b.message_type, b.kind, b.topic, b.key, '' AS group_name, '' AS handler,
    b.status, b.attempts, b.due_at, b.last_error, b.created_at, b.settled_at
FROM duly_outbox b INDEXED BY duly_outbox_kept
WHERE b.status IN ('retry', 'held', 'failed') AND b.id > :after AND b.status IN (SELECT value FROM json_each(:statuses)) AND (:topic = '' OR b.topic = :topic)
    AND substr(coalesce(b.last_error, ''), 1, length(:error)) = :error AND b.created_at >= :since
ORDER BY b.id LIMIT :limit

-- name: operator.outbox_count
SELECT count(*) FROM duly_outbox b WHERE b.status IN (SELECT value FROM json_each(:statuses)) AND (:topic = '' OR b.topic = :topic)
    AND substr(coalesce(b.last_error, ''), 1, length(:error)) = :error AND b.created_at >= :since

-- name: operator.outbox_count_kept
SELECT count(*) FROM duly_outbox b INDEXED BY duly_outbox_kept WHERE b.status IN ('retry', 'held', 'failed') AND b.status IN (SELECT value FROM json_each(:statuses)) AND (:topic = '' OR b.topic = :topic)
    AND substr(coalesce(b.last_error, ''), 1, length(:error)) = :error AND b.created_at >= :since

-- name: operator.outbox_show
SELECT b.id, b.message_id, b.message_type, b.kind, b.topic, b.key, '' AS group_name, '' AS handler,
    b.status, b.attempts, b.due_at, b.last_error, b.created_at, b.settled_at,
    b.lane, b.payload, b.headers, '' AS dedupe_key
FROM duly_outbox b WHERE b.id = :id

-- name: operator.outbox_stats
SELECT '' AS group_name, topic, status, count(*), min(created_at)
FROM duly_outbox GROUP BY topic, status ORDER BY 1, topic, status

-- name: operator.inbox_list
SELECT b.id, b.message_id, b.message_type, b.kind, b.topic, b.key, b.group_name, b.handler,
    b.status, b.attempts, b.due_at, b.last_error, b.created_at, b.settled_at
FROM duly_inbox b
WHERE b.id > :after AND b.status IN (SELECT value FROM json_each(:statuses)) AND (:topic = '' OR b.topic = :topic)
    AND substr(coalesce(b.last_error, ''), 1, length(:error)) = :error AND b.created_at >= :since
    AND (:group = '' OR b.group_name = :group)
ORDER BY b.id LIMIT :limit

-- name: operator.inbox_kept
SELECT b.id, b.message_id, b.message_type, b.kind, b.topic, b.key, b.group_name, b.handler,
    b.status, b.attempts, b.due_at, b.last_error, b.created_at, b.settled_at
FROM duly_inbox b INDEXED BY duly_inbox_kept
WHERE b.status IN ('retry', 'held', 'failed') AND b.id > :after AND b.status IN (SELECT value FROM json_each(:statuses)) AND (:topic = '' OR b.topic = :topic)
    AND substr(coalesce(b.last_error, ''), 1, length(:error)) = :error AND b.created_at >= :since
    AND (:group = '' OR b.group_name = :group)
ORDER BY b.id LIMIT :limit

-- name: operator.inbox_count
SELECT count(*) FROM duly_inbox b WHERE b.status IN (SELECT value FROM json_each(:statuses)) AND (:topic = '' OR b.topic = :topic)
    AND substr(coalesce(b.last_error, ''), 1, length(:error)) = :error AND b.created_at >= :since
    AND (:group = '' OR b.group_name = :group)

-- name: operator.inbox_count_kept
SELECT count(*) FROM duly_inbox b INDEXED BY duly_inbox_kept WHERE b.status IN ('retry', 'held', 'failed') AND b.status IN (SELECT value FROM json_each(:statuses)) AND (:topic = '' OR b.topic = :topic)
    AND substr(coalesce(b.last_error, ''), 1, length(:error)) = :error AND b.created_at >= :since
    AND (:group = '' OR b.group_name = :group)

-- name: operator.inbox_show
SELECT b.id, b.message_id, b.message_type, b.kind, b.topic, b.key, b.group_name, b.handler,
    b.status, b.attempts, b.due_at, b.last_error, b.created_at, b.settled_at,
    b.lane, b.payload, b.headers, b.dedupe_key AS dedupe_key
FROM duly_inbox b WHERE b.id = :id

-- name: operator.inbox_stats
SELECT group_name AS group_name, topic, status, count(*), min(created_at)
FROM duly_inbox GROUP BY topic, status, group_name ORDER BY 1, topic, status

-- name: operator.effects
SELECT step, state, provider_key, created_at, settled_at FROM duly_effect
WHERE group_name = :group AND handler = :handler AND dedupe_key = :dedupe_key ORDER BY created_at, step
