-- Leases.  A node holds its lanes through ONE renewed row, its member row; a lane row says whose it is and counts takes.
-- Whoever finds a member expired deletes it (and so fences it: a renewal needs the row); its lanes are then free.

-- name: lease.join
INSERT INTO duly_lease (name, kind, scope, holder, token, until, seen_at)
VALUES (:name, 'member', :scopes, :holder, 1, :now + :ttl_seconds, :now)
ON CONFLICT (name) DO NOTHING

-- name: lease.seed
WITH RECURSIVE n(lane) AS (SELECT 0 UNION ALL SELECT lane + 1 FROM n WHERE lane + 1 < :lanes)
INSERT INTO duly_lease (name, kind, scope, lane)
SELECT 'lane/' || :scope || '/' || n.lane, 'lane', :scope, n.lane FROM n WHERE true
ON CONFLICT (name) DO NOTHING

-- name: lease.beat
UPDATE duly_lease SET until = :now + :ttl_seconds, seen_at = :now, asleep = :asleep WHERE name = :name AND until > :now
-- then
SELECT (SELECT count(*) FROM duly_lease WHERE name = :name AND until > :now),
    (SELECT json_group_array(json_array(m.name, m.scope, m.until - :now)) FROM duly_lease m WHERE m.kind = 'member'),
    EXISTS (SELECT 1 FROM duly_outbox WHERE status = 'retry' AND due_at <= :now),
    EXISTS (SELECT 1 FROM duly_outbox WHERE status = 'ready'),
    EXISTS (SELECT 1 FROM duly_inbox WHERE status = 'retry' AND due_at <= :now),
    EXISTS (SELECT 1 FROM duly_inbox WHERE status = 'ready'),
    (SELECT json_group_array(json_array(p.name, p.value)) FROM duly_meta p WHERE p.name LIKE 'pause/%')

-- name: lease.sleep
UPDATE duly_lease SET asleep = 1 WHERE name = :name AND NOT asleep

-- name: lease.bury
DELETE FROM duly_lease WHERE kind = 'member' AND until < :now RETURNING holder

-- name: lease.lanes
SELECT l.lane, l.holder, l.token FROM duly_lease l WHERE l.scope = :scope AND l.kind = 'lane'

-- name: lease.take
UPDATE duly_lease AS l SET holder = :holder, token = token + 1, seen_at = :now
WHERE l.scope = :scope AND l.lane IN (SELECT value FROM json_each(:lanes))
    AND (l.holder IS NULL OR NOT EXISTS (SELECT 1 FROM duly_lease m WHERE m.kind = 'member' AND m.holder = l.holder))
RETURNING lane, token

-- name: lease.release
UPDATE duly_lease SET holder = NULL WHERE scope = :scope AND lane IN (SELECT value FROM json_each(:lanes)) AND holder = :holder

-- name: lease.guard
SELECT 1 FROM duly_lease WHERE name = :name AND holder = :holder AND token = :token

-- name: lease.leave
DELETE FROM duly_lease WHERE name = :name
-- then
UPDATE duly_lease SET holder = NULL WHERE kind = 'lane' AND holder = :holder

-- name: lease.horizon
-- One writer: an id that is visible has no unfinished one below it.
SELECT NULL, 0, 0
