-- The record of what every handler has done, and of what it could not do yet.  INSERT IGNORE overlooks more than a row
-- that is there: what could be cut or emptied is refused before (values.py), on any connection.

-- name: inbox.deadline
-- A frozen worker cannot block its successor for longer than a handler may run.  MySQL's nearest to MariaDB's limit on idle
-- transactions is the limit on idle connections.  In READ COMMITTED a read takes no lock on the gaps of a table.
SET SESSION innodb_lock_wait_timeout = %(seconds)s /*M!100300 , idle_transaction_timeout = %(seconds)s */ /*!80000 , wait_timeout = %(seconds)s */
-- then
SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED

-- name: inbox.guard
-- Gone as soon as somebody ends the transaction, however that is done.
SAVEPOINT duly_guard

-- name: inbox.unguard
RELEASE SAVEPOINT duly_guard

-- name: inbox.unwind
ROLLBACK TO SAVEPOINT duly_guard

-- name: inbox.claim
INSERT IGNORE INTO duly_inbox (group_name, handler, dedupe_key, message_id, message_type, kind, topic, `key`, status, settled_at)
VALUES (%(group)s, %(handler)s, %(dedupe_key)s, %(message_id)s, %(message_type)s, %(kind)s, %(topic)s, %(key)s,
    'done', UTC_TIMESTAMP(6))

-- name: inbox.claim_all :arrays
INSERT IGNORE INTO duly_inbox (group_name, handler, message_type, kind, topic, dedupe_key, message_id, `key`, status, settled_at)
VALUES (%(group)s, %(handler)s, %(message_type)s, %(kind)s, %(topic)s, %(dedupe_key)s, %(message_id)s, %(key)s,
    'done', UTC_TIMESTAMP(6))

-- name: inbox.claim_many :arrays
-- Marked with a word that nobody else has, so that what was there before can be told from what is new.
INSERT IGNORE INTO duly_inbox (group_name, handler, message_type, kind, topic, dedupe_key, message_id, `key`, status, last_error,
    settled_at)
VALUES (%(group)s, %(handler)s, %(message_type)s, %(kind)s, %(topic)s, %(dedupe_key)s, %(message_id)s, %(key)s,
    'done', %(mark)s, UTC_TIMESTAMP(6))
-- then
SELECT CONVERT(b.dedupe_key USING utf8mb4) FROM duly_inbox b
WHERE b.group_name = %(group)s AND b.handler = %(handler)s AND b.dedupe_key IN %(dedupe_keys)s AND b.last_error = %(mark)s
-- then
UPDATE duly_inbox b SET b.last_error = NULL
WHERE b.group_name = %(group)s AND b.handler = %(handler)s AND b.dedupe_key IN %(dedupe_keys)s AND b.last_error = %(mark)s

-- name: inbox.look
SELECT message_id, status FROM duly_inbox
WHERE group_name = %(group)s AND handler = %(handler)s AND dedupe_key = %(dedupe_key)s

-- name: inbox.seen
SELECT CONVERT(b.dedupe_key USING utf8mb4), b.message_id, b.status FROM duly_inbox b
WHERE b.group_name = %(group)s AND b.handler = %(handler)s AND b.dedupe_key IN %(dedupe_keys)s

-- name: inbox.store
INSERT IGNORE INTO duly_inbox (group_name, handler, dedupe_key, message_id, message_type, kind, topic, `key`, lane, payload, headers,
    status, attempts, due_at, last_error)
VALUES (%(group)s, %(handler)s, %(dedupe_key)s, %(message_id)s, %(message_type)s, %(kind)s, %(topic)s, %(key)s, %(lane)s,
    %(payload)s, %(headers)s, %(status)s, %(attempts)s,
    UTC_TIMESTAMP(6) + INTERVAL %(delay_seconds)s SECOND, %(error)s)

-- name: inbox.wake
-- Nobody can be called here; whoever waits looks by itself.
SELECT 1

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
    settled_at = UTC_TIMESTAMP(6)
WHERE id = %(id)s AND message_id = %(message_id)s AND status IN ('ready', 'retry', 'held') AND EXISTS (
    SELECT 1 FROM duly_lease l WHERE l.name = %(lease)s AND l.token = %(token)s)

-- name: inbox.pass_over
UPDATE duly_inbox SET status = 'skipped', last_error = %(error)s, settled_at = UTC_TIMESTAMP(6)
WHERE id = %(id)s AND message_id = %(message_id)s AND status IN ('ready', 'retry', 'held') AND EXISTS (
    SELECT 1 FROM duly_lease l WHERE l.name = %(lease)s AND l.token = %(token)s)

-- name: inbox.rekey
-- Two that want one key at once: the unique index refuses the second, which is run again.
UPDATE duly_inbox b
LEFT JOIN duly_inbox o ON o.group_name = b.group_name AND o.handler = b.handler AND o.dedupe_key = %(dedupe_key)s
SET b.dedupe_key = %(dedupe_key)s
WHERE b.id = %(id)s AND b.message_id = %(message_id)s AND o.id IS NULL

-- name: inbox.of_message :arrays
-- Every id is followed by U+001F in the key, so this is a range of the unique index.
SELECT %(message_id)s, COALESCE((
    SELECT b.status FROM duly_inbox b
    WHERE b.group_name = %(group)s AND b.handler = %(handler)s AND b.dedupe_key > CONCAT(%(message_id)s, CHAR(31))
        AND b.dedupe_key < CONCAT(%(message_id)s, CHAR(32))
    ORDER BY b.status IN ('done', 'skipped', 'dropped') LIMIT 1), '')

-- name: inbox.lag
SELECT status, count(*), TIMESTAMPDIFF(MICROSECOND, min(created_at), UTC_TIMESTAMP(6)) / 1e6 FROM duly_inbox
WHERE group_name = %(group)s AND status IN ('ready', 'retry', 'held', 'failed')
GROUP BY status

-- name: inbox.receive :arrays
INSERT IGNORE INTO duly_inbox (group_name, handler, dedupe_key, message_id, message_type, kind, topic, `key`, lane, payload, headers,
    status)
VALUES (%(group)s, %(handler)s, %(dedupe_key)s, %(message_id)s, %(message_type)s, %(kind)s, %(topic)s, %(key)s, %(lane)s,
    %(payload)s, %(headers)s, 'ready')
