-- Global transactions.  Only these compare-and-sets move a row; branches are told what the row says.

-- name: global_tx.add
INSERT IGNORE INTO duly_global_tx (id, status, branches, decide_by)
VALUES (%(id)s, 'preparing', %(branches)s, UTC_TIMESTAMP(6) + INTERVAL %(seconds)s SECOND)

-- name: global_tx.decide
UPDATE duly_global_tx SET status = %(status)s, decided_at = UTC_TIMESTAMP(6) WHERE id = %(id)s AND status = 'preparing'

-- name: global_tx.presume
-- Presumed abort: its coordinator had its time.
UPDATE duly_global_tx SET status = 'aborting', decided_at = UTC_TIMESTAMP(6)
WHERE id = %(id)s AND status = 'preparing' AND decide_by < UTC_TIMESTAMP(6)

-- name: global_tx.end
UPDATE duly_global_tx SET status = %(status)s, branches = %(branches)s, ended_at = UTC_TIMESTAMP(6)
WHERE id = %(id)s AND status = %(was)s

-- name: global_tx.read
SELECT id, status, branches, 0, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', created_at) / 1e6, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', decided_at) / 1e6,
    TIMESTAMPDIFF(MICROSECOND, '1970-01-01', ended_at) / 1e6
FROM duly_global_tx WHERE id IN %(ids)s

-- name: global_tx.due
-- What has not ended and should have: the coordinator gets a moment for itself after its decision.
SELECT id, status, branches, 1, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', created_at) / 1e6, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', decided_at) / 1e6, NULL
FROM duly_global_tx
WHERE (status = 'preparing' AND decide_by < UTC_TIMESTAMP(6))
    OR (status IN ('committing', 'aborting') AND decided_at < UTC_TIMESTAMP(6) - INTERVAL %(grace_seconds)s SECOND)
ORDER BY created_at LIMIT %(limit)s

-- name: global_tx.list
SELECT id, status, branches, decide_by < UTC_TIMESTAMP(6), TIMESTAMPDIFF(MICROSECOND, '1970-01-01', created_at) / 1e6,
    TIMESTAMPDIFF(MICROSECOND, '1970-01-01', decided_at) / 1e6, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', ended_at) / 1e6
FROM duly_global_tx WHERE status IN %(statuses)s ORDER BY created_at DESC LIMIT %(limit)s

-- name: global_tx.prune
DELETE FROM duly_global_tx WHERE status IN ('committed', 'aborted') AND ended_at < UTC_TIMESTAMP(6) - INTERVAL %(keep_seconds)s SECOND
LIMIT %(limit)s

-- name: global_tx.drop
-- By a person, who has seen it.
DELETE FROM duly_global_tx WHERE id = %(id)s AND status = 'heuristic'
