-- Global transactions.  Only these compare-and-sets move a row; branches are told what the row says.

-- name: global_tx.add
INSERT INTO duly_global_tx (id, status, branches, decide_by)
VALUES (%(id)s, 'preparing', %(branches)s, clock_timestamp() + make_interval(secs => %(seconds)s)) ON CONFLICT (id) DO NOTHING

-- name: global_tx.decide
UPDATE duly_global_tx SET status = %(status)s, decided_at = clock_timestamp() WHERE id = %(id)s AND status = 'preparing'

-- name: global_tx.presume
-- Presumed abort: its coordinator had its time.
UPDATE duly_global_tx SET status = 'aborting', decided_at = clock_timestamp()
WHERE id = %(id)s AND status = 'preparing' AND decide_by < clock_timestamp()

-- name: global_tx.end
UPDATE duly_global_tx SET status = %(status)s, branches = %(branches)s, ended_at = clock_timestamp()
WHERE id = %(id)s AND status = %(was)s

-- name: global_tx.read
SELECT id, status, branches, false, extract(epoch FROM created_at)::float8, extract(epoch FROM decided_at)::float8, extract(epoch FROM ended_at)::float8
FROM duly_global_tx WHERE id = ANY(%(ids)s)

-- name: global_tx.due
-- What has not ended and should have: the coordinator gets a moment for itself after its decision.
SELECT id, status, branches, true, extract(epoch FROM created_at)::float8, extract(epoch FROM decided_at)::float8, NULL::float8
FROM duly_global_tx
WHERE (status = 'preparing' AND decide_by < clock_timestamp())
    OR (status IN ('committing', 'aborting') AND decided_at < clock_timestamp() - make_interval(secs => %(grace_seconds)s))
ORDER BY created_at LIMIT %(limit)s

-- name: global_tx.list
SELECT id, status, branches, decide_by < clock_timestamp(), extract(epoch FROM created_at)::float8, extract(epoch FROM decided_at)::float8, extract(epoch FROM ended_at)::float8
FROM duly_global_tx WHERE status = ANY(%(statuses)s) ORDER BY created_at DESC LIMIT %(limit)s

-- name: global_tx.prune
DELETE FROM duly_global_tx WHERE id IN (
    SELECT id FROM duly_global_tx WHERE status IN ('committed', 'aborted') AND ended_at < clock_timestamp() - make_interval(secs => %(keep_seconds)s)
    LIMIT %(limit)s)

-- name: global_tx.drop
-- By a person, who has seen it.
DELETE FROM duly_global_tx WHERE id = %(id)s AND status = 'heuristic'
