-- The failure log: messages that could not be handed over and have no place in the outbox.

-- name: failure.add
INSERT INTO duly_failure (source, message_id, message_type, kind, topic, key, payload, headers, state, due_at, error, created_at)
VALUES (:source, :message_id, :message_type, :kind, :topic, :key, :payload, :headers, 'open', :now + :delay_seconds, :error, :now)
RETURNING id

-- name: failure.due
SELECT id, message_id, message_type, kind, topic, key, payload, headers, attempts FROM duly_failure
WHERE state = 'open' AND due_at <= :now AND source = :source ORDER BY due_at, id LIMIT :limit

-- name: failure.settle
UPDATE duly_failure SET state = :state, due_at = NULL, settled_at = :now
WHERE id = :id AND message_id = :message_id AND state = 'open'

-- name: failure.postpone
UPDATE duly_failure SET attempts = :attempts, error = :error, due_at = :now + :delay_seconds
WHERE id = :id AND state = 'open' AND attempts = :was

-- name: failure.again
UPDATE duly_failure SET attempts = 0, due_at = :now WHERE id = :id AND message_id = :message_id AND state = 'open'

-- name: failure.list
SELECT id, source, message_id, message_type, kind, topic, key, state, attempts, due_at, error, created_at, settled_at FROM duly_failure
WHERE id > :after AND state IN (SELECT value FROM json_each(:states)) AND (:source = '' OR source = :source) AND (:topic = '' OR topic = :topic)
    AND substr(coalesce(error, ''), 1, length(:error)) = :error AND created_at >= :since
ORDER BY id LIMIT :limit

-- name: failure.count
SELECT count(*) FROM duly_failure WHERE state IN (SELECT value FROM json_each(:states)) AND (:source = '' OR source = :source) AND (:topic = '' OR topic = :topic)
    AND substr(coalesce(error, ''), 1, length(:error)) = :error AND created_at >= :since

-- name: failure.show
SELECT id, source, message_id, message_type, kind, topic, key, state, attempts, due_at, error, created_at, settled_at, payload, headers
FROM duly_failure WHERE id = :id
