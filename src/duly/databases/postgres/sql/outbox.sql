-- name: outbox.insert_one
-- One row without a key, the most frequent flush of all: no arrays to build or to unfold.
WITH added AS (
    INSERT INTO duly_outbox (message_id, message_type, kind, topic, key, lane, payload, headers)
    VALUES (%(message_id)s, %(message_type)s, %(kind)s, %(topic)s, %(key)s, %(lane)s, %(payload)s, %(headers)s)
)
SELECT pg_notify('duly_wake', '') FROM duly_lease WHERE asleep LIMIT 1

-- name: outbox.insert_one_keyed
-- One row with a key: the condition takes the lock before the row, and with it the id, is made.
-- In the middle of a transaction a deferred constraint may still be waiting for its other half; at
-- its end the check comes before the locks, or it could close a circle of waiting.
WITH added AS (
    INSERT INTO duly_outbox (message_id, message_type, kind, topic, key, lane, payload, headers)
    SELECT %(message_id)s, %(message_type)s, %(kind)s, %(topic)s, %(key)s, %(lane)s, %(payload)s, %(headers)s
    WHERE CASE WHEN (NOT %(last)s OR duly_settled())
            AND (current_setting('lock_timeout') NOT IN ('0', '0ms') OR set_config('lock_timeout', %(lock_timeout)s, true) <> '')
        THEN pg_advisory_xact_lock(%(namespace)s::int, %(stripe)s::int) IS NOT NULL END
)
SELECT pg_notify('duly_wake', '') FROM duly_lease WHERE asleep LIMIT 1

-- name: outbox.insert_plain
WITH added AS (
    INSERT INTO duly_outbox (message_id, message_type, kind, topic, key, lane, payload, headers)
    SELECT message_id, message_type, kind, topic, key, lane, payload, headers
    FROM unnest(%(message_id)b::text[], %(message_type)b::text[], %(kind)b::text[], %(topic)b::text[], %(key)b::text[],
                %(lane)b::smallint[], %(payload)b::bytea[], %(headers)b::text[])
        WITH ORDINALITY AS r(message_id, message_type, kind, topic, key, lane, payload, headers, place)
    ORDER BY place
)
SELECT pg_notify('duly_wake', '') FROM duly_lease WHERE asleep LIMIT 1

-- name: outbox.insert_keyed
-- Locks first, in the order of the stripes, then the ids: id order is commit order per key.
WITH patience AS MATERIALIZED (
    SELECT CASE WHEN (NOT %(last)s OR duly_settled()) AND current_setting('lock_timeout') IN ('0', '0ms')
        THEN set_config('lock_timeout', %(lock_timeout)s, true) END
), locks AS MATERIALIZED (
    SELECT count(pg_advisory_xact_lock(%(namespace)s, s.stripe) IS NULL) AS taken
    FROM patience, unnest(%(stripes)b::int[]) AS s(stripe)
), added AS (
    INSERT INTO duly_outbox (message_id, message_type, kind, topic, key, lane, payload, headers)
    SELECT message_id, message_type, kind, topic, key, lane, payload, headers
    FROM locks, unnest(%(message_id)b::text[], %(message_type)b::text[], %(kind)b::text[], %(topic)b::text[],
                %(key)b::text[], %(lane)b::smallint[], %(payload)b::bytea[], %(headers)b::text[])
        WITH ORDINALITY AS r(message_id, message_type, kind, topic, key, lane, payload, headers, place)
    WHERE locks.taken >= 0
    ORDER BY place
)
SELECT pg_notify('duly_wake', '') FROM duly_lease WHERE asleep LIMIT 1

-- name: outbox.settle :arrays
DELETE FROM duly_outbox b USING unnest(%(id)s::bigint[], %(message_id)b::text[]) AS d(id, message_id)
WHERE b.id = d.id AND b.message_id = d.message_id

-- name: outbox.keep :arrays
UPDATE duly_outbox b SET status = d.status, settled_at = clock_timestamp()
FROM unnest(%(id)s::bigint[], %(message_id)b::text[], %(status)b::text[]) AS d(id, message_id, status)
WHERE b.id = d.id AND b.message_id = d.message_id
