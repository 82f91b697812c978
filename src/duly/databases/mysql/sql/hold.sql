-- Holds: a queue per key behind a message that failed.

-- name: hold.block
INSERT INTO duly_key_hold (scope, topic, `key`, lane, blocker_id)
VALUES (%(scope)s, %(topic)s, %(key)s, %(lane)s, %(blocker_id)s)
ON DUPLICATE KEY UPDATE blocker_id = %(blocker_id)s

-- name: hold.lock
SELECT h.topic, h.key, h.blocker_id FROM duly_key_hold h
WHERE h.scope = %(scope)s AND h.topic IN %(topics)s AND (h.topic, h.key) IN %(pairs)s
ORDER BY h.topic, h.key FOR UPDATE
