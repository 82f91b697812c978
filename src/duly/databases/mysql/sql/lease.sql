-- Leases.  A node holds its lanes through ONE renewed row, its member row; a lane row says whose it is and counts takes.
-- Whoever finds a member expired deletes it (and so fences it: a renewal needs the row); its lanes are then free.

-- name: lease.join
INSERT IGNORE INTO duly_lease (name, kind, scope, holder, token, until, seen_at)
VALUES (%(name)s, 'member', %(scopes)s, %(holder)s, 1, UTC_TIMESTAMP(6) + INTERVAL %(ttl_seconds)s SECOND, UTC_TIMESTAMP(6))

-- name: lease.seed
INSERT IGNORE INTO duly_lease (name, kind, scope, lane)
WITH RECURSIVE n(lane) AS (SELECT 0 UNION ALL SELECT lane + 1 FROM n WHERE lane + 1 < %(lanes)s)
SELECT CONCAT('lane/', %(scope)s, '/', n.lane), 'lane', %(scope)s, n.lane FROM n

-- name: lease.beat
UPDATE duly_lease SET until = UTC_TIMESTAMP(6) + INTERVAL %(ttl_seconds)s SECOND, seen_at = UTC_TIMESTAMP(6), asleep = %(asleep)s
WHERE name = %(name)s AND until > UTC_TIMESTAMP(6)
-- then
SELECT (SELECT count(*) FROM duly_lease WHERE name = %(name)s AND until > UTC_TIMESTAMP(6)),
    (SELECT COALESCE(JSON_ARRAYAGG(JSON_ARRAY(m.name, m.scope, TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), m.until) / 1e6)), '[]')
        FROM duly_lease m WHERE m.kind = 'member'),
    EXISTS (SELECT 1 FROM duly_outbox WHERE status = 'retry' AND due_at <= UTC_TIMESTAMP(6)),
    EXISTS (SELECT 1 FROM duly_outbox WHERE status = 'ready'),
    EXISTS (SELECT 1 FROM duly_inbox WHERE status = 'retry' AND due_at <= UTC_TIMESTAMP(6)),
    EXISTS (SELECT 1 FROM duly_inbox WHERE status = 'ready'),
    (SELECT COALESCE(JSON_ARRAYAGG(JSON_ARRAY(p.name, p.value)), '[]') FROM duly_meta p WHERE p.name LIKE 'pause/%%')

-- name: lease.sleep
UPDATE duly_lease SET asleep = 1 WHERE name = %(name)s AND asleep = 0

-- name: lease.bury
SELECT holder FROM duly_lease WHERE kind = 'member' AND until < UTC_TIMESTAMP(6) ORDER BY name FOR UPDATE
-- then
DELETE FROM duly_lease WHERE kind = 'member' AND until < UTC_TIMESTAMP(6)

-- name: lease.lanes
SELECT l.lane, l.holder, l.token FROM duly_lease l WHERE l.scope = %(scope)s AND l.kind = 'lane'

-- name: lease.take
-- The lanes are locked first, in the order of names.  What the second statement sees is younger than these locks, so it
-- meets no taker whose member row it cannot see; it reads the members without a lock, as a single-table UPDATE does.
UPDATE duly_lease FORCE INDEX (PRIMARY) SET seen_at = seen_at WHERE name IN %(names)s ORDER BY name
-- then
UPDATE duly_lease FORCE INDEX (PRIMARY) SET holder = %(holder)s, token = token + 1, seen_at = UTC_TIMESTAMP(6)
WHERE name IN %(names)s AND (holder IS NULL OR holder NOT IN (
    SELECT alive.holder FROM (SELECT m.holder FROM duly_lease m WHERE m.kind = 'member') AS alive))
ORDER BY name
-- then
SELECT l.lane, l.token FROM duly_lease l WHERE l.name IN %(names)s AND l.holder = %(holder)s

-- name: lease.release
UPDATE duly_lease FORCE INDEX (PRIMARY) SET holder = NULL WHERE name IN %(names)s AND holder = %(holder)s ORDER BY name

-- name: lease.guard
SELECT 1 FROM duly_lease WHERE name = %(name)s AND holder = %(holder)s AND token = %(token)s LOCK IN SHARE MODE

-- name: lease.leave
DELETE FROM duly_lease WHERE name = %(name)s
-- then
UPDATE duly_lease SET holder = NULL WHERE kind = 'lane' AND holder = %(holder)s ORDER BY name

-- name: lease.free_stripes
-- Shared, so that two nodes that look at once do not see each other; held for this statement only.
SELECT id FROM duly_stripe /*M!100600 LOCK IN SHARE MODE */ /*!80000 FOR SHARE */ SKIP LOCKED

-- name: lease.stripes
SELECT id, flushes FROM duly_stripe WHERE id IN %(stripes)s

-- name: lease.highest
SELECT (SELECT MAX(id) FROM duly_outbox), (SELECT MAX(id) FROM duly_inbox)
