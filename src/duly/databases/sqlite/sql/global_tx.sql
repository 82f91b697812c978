-- Global transactions.  Only these compare-and-sets move a row; branches are told what the row says.

-- name: global_tx.add
INSERT INTO duly_global_tx (id, status, branches, decide_by, created_at)
VALUES (:id, 'preparing', :branches, :now + :seconds, :now) ON CONFLICT (id) DO NOTHING

-- name: global_tx.decide
UPDATE duly_global_tx SET status = :status, decided_at = :now WHERE id = :id AND status = 'preparing'

-- name: global_tx.presume
-- Presumed abort: its coordinator had its time.
UPDATE duly_global_tx SET status = 'aborting', decided_at = :now WHERE id = :id AND status = 'preparing' AND decide_by < :now

-- name: global_tx.end
UPDATE duly_global_tx SET status = :status, branches = :branches, ended_at = :now WHERE id = :id AND status = :was

-- name: global_tx.read
SELECT id, status, branches, 0, created_at, decided_at, ended_at FROM duly_global_tx WHERE id IN (SELECT value FROM json_each(:ids))

-- name: global_tx.due
-- What has not ended and should have: the coordinator gets a moment for itself after its decision.
SELECT id, status, branches, 1, created_at, decided_at, NULL FROM duly_global_tx
WHERE (status = 'preparing' AND decide_by < :now) OR (status IN ('committing', 'aborting') AND decided_at < :now - :grace_seconds)
ORDER BY created_at LIMIT :limit

-- name: global_tx.list
SELECT id, status, branches, decide_by < :now, created_at, decided_at, ended_at
FROM duly_global_tx WHERE status IN (SELECT value FROM json_each(:statuses)) ORDER BY created_at DESC LIMIT :limit

-- name: global_tx.prune
DELETE FROM duly_global_tx WHERE id IN (
    SELECT id FROM duly_global_tx WHERE status IN ('committed', 'aborted') AND ended_at < :now - :keep_seconds LIMIT :limit)

-- name: global_tx.drop
-- By a person, who has seen it.
DELETE FROM duly_global_tx WHERE id = :id AND status = 'heuristic'
