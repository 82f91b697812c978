-- The record of what every handler has done, and of what it could not do yet.

-- name: inbox.deadline
-- A file has no server that could end a transaction; the supervising process does.
SELECT 1

-- name: inbox.guard
-- Gone as soon as somebody ends the transaction, however that is done.
SAVEPOINT duly_guard

-- name: inbox.unguard
RELEASE SAVEPOINT duly_guard

-- name: inbox.unwind
ROLLBACK TO SAVEPOINT duly_guard

-- name: inbox.claim
INSERT INTO duly_inbox (group_name, handler, dedupe_key, message_id, message_type, kind, topic, key, status, created_at, settled_at)
VALUES (:group, :handler, :dedupe_key, :message_id, :message_type, :kind, :topic, :key, 'done', :now, :now)
ON CONFLICT (group_name, handler, dedupe_key) DO NOTHING

-- name: inbox.claim_all
-- rows: [dedupe_key, message_id, key] each; taking each value out of the JSON costs as much as storing it.
INSERT INTO duly_inbox (group_name, handler, message_type, kind, topic, dedupe_key, message_id, key, status, created_at, settled_at)
SELECT :group, :handler, :message_type, :kind, :topic,
    json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'), 'done', :now, :now
FROM json_each(:rows) WHERE true
ON CONFLICT (group_name, handler, dedupe_key) DO NOTHING

-- name: inbox.claim_many
INSERT INTO duly_inbox (group_name, handler, message_type, kind, topic, dedupe_key, message_id, key, status, created_at, settled_at)
SELECT :group, :handler, :message_type, :kind, :topic,
    json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'), 'done', :now, :now
FROM json_each(:rows) WHERE true
ON CONFLICT (group_name, handler, dedupe_key) DO NOTHING
RETURNING dedupe_key

-- name: inbox.look
SELECT message_id, status FROM duly_inbox
WHERE group_name = :group AND handler = :handler AND dedupe_key = :dedupe_key

-- name: inbox.seen
-- CROSS JOIN keeps the order of the tables: the planner would walk the whole group for every key.
SELECT b.dedupe_key, b.message_id, b.status FROM json_each(:dedupe_keys) AS k
CROSS JOIN duly_inbox b ON b.group_name = :group AND b.handler = :handler AND b.dedupe_key = k.value

-- name: inbox.store
INSERT INTO duly_inbox (group_name, handler, dedupe_key, message_id, message_type, kind, topic, key, lane, payload, headers,
    status, attempts, due_at, last_error, created_at)
VALUES (:group, :handler, :dedupe_key, :message_id, :message_type, :kind, :topic, :key, :lane, :payload, :headers,
    :status, :attempts, :now + :delay_seconds, :error, :now)
ON CONFLICT (group_name, handler, dedupe_key) DO NOTHING

-- name: inbox.wake
SELECT 1

-- name: inbox.reopen
-- The handler committed half of its work and the record that all is done.
UPDATE duly_inbox SET status = 'failed', attempts = :attempts, last_error = :error, payload = :payload, headers = :headers,
    lane = :lane, settled_at = NULL
WHERE group_name = :group AND handler = :handler AND dedupe_key = :dedupe_key AND message_id = :message_id AND status = 'done'

-- name: inbox.attempt
UPDATE duly_inbox SET attempts = :attempts
WHERE id = :id AND message_id = :message_id AND status IN ('ready', 'retry', 'held') AND EXISTS (
    SELECT 1 FROM duly_lease l WHERE l.name = :lease AND l.token = :token)

-- name: inbox.finish
UPDATE duly_inbox SET status = 'done', payload = NULL, headers = '{}', due_at = NULL, last_error = NULL, settled_at = :now
WHERE id = :id AND message_id = :message_id AND status IN ('ready', 'retry', 'held') AND EXISTS (
    SELECT 1 FROM duly_lease l WHERE l.name = :lease AND l.token = :token)

-- name: inbox.pass_over
UPDATE duly_inbox SET status = 'skipped', last_error = :error, settled_at = :now
WHERE id = :id AND message_id = :message_id AND status IN ('ready', 'retry', 'held') AND EXISTS (
    SELECT 1 FROM duly_lease l WHERE l.name = :lease AND l.token = :token)

-- name: inbox.rekey
UPDATE duly_inbox AS b SET dedupe_key = :dedupe_key
WHERE b.id = :id AND b.message_id = :message_id AND NOT EXISTS (
    SELECT 1 FROM duly_inbox o
    WHERE o.group_name = b.group_name AND o.handler = b.handler AND o.dedupe_key = :dedupe_key)

-- name: inbox.of_message
-- Every id is followed by U+001F in the key, so this is a range of the unique index.
SELECT i.value, coalesce((
    SELECT b.status FROM duly_inbox b
    WHERE b.group_name = :group AND b.handler = h.value AND b.dedupe_key > i.value || char(31)
        AND b.dedupe_key < i.value || char(32)
    ORDER BY b.status IN ('done', 'skipped', 'dropped') LIMIT 1), '')
FROM json_each(:message_ids) AS i CROSS JOIN json_each(:handlers) AS h

-- name: inbox.lag
SELECT 'ready', count(*), :now - min(created_at) FROM duly_inbox INDEXED BY duly_inbox_ready
WHERE group_name = :group AND status = 'ready' HAVING count(*) > 0
UNION ALL
SELECT status, count(*), :now - min(created_at) FROM duly_inbox INDEXED BY duly_inbox_kept
WHERE group_name = :group AND status IN ('retry', 'held', 'failed') GROUP BY status

-- name: inbox.receive
INSERT INTO duly_inbox (group_name, handler, dedupe_key, message_id, message_type, kind, topic, key, lane, payload, headers,
    status, created_at)
VALUES (:group, :handler, :dedupe_key, :message_id, :message_type, :kind, :topic, :key, :lane, :payload, :headers, 'ready', :now)
ON CONFLICT (group_name, handler, dedupe_key) DO NOTHING
