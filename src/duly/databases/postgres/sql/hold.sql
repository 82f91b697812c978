-- Holds: a queue per key behind a message that failed.

-- name: hold.block
INSERT INTO duly_key_hold (scope, topic, key, lane, blocker_id)
VALUES (%(scope)s, %(topic)s, %(key)s, %(lane)s, %(blocker_id)s)
ON CONFLICT (scope, topic, key) DO UPDATE SET blocker_id = excluded.blocker_id

-- name: hold.lock
SELECT h.topic, h.key, h.blocker_id FROM duly_key_hold h
JOIN unnest(%(topics)s::text[], %(keys)s::text[]) AS k(topic, key) ON h.topic = k.topic AND h.key = k.key
WHERE h.scope = %(scope)s
ORDER BY h.topic, h.key FOR UPDATE OF h
