-- Leases.  A node holds its lanes through ONE renewed row, its member row; a lane row says whose it is and counts takes.
-- Whoever finds a member expired deletes it (and so fences it: a renewal needs the row); its lanes are then free.

-- name: lease.join
INSERT INTO duly_lease (name, kind, scope, holder, token, until, seen_at)
VALUES (%(name)s, 'member', %(scopes)s, %(holder)s, 1, clock_timestamp() + make_interval(secs => %(ttl_seconds)s), clock_timestamp())
ON CONFLICT (name) DO NOTHING

-- name: lease.seed
INSERT INTO duly_lease (name, kind, scope, lane)
SELECT 'lane/' || %(scope)s || '/' || n, 'lane', %(scope)s, n FROM generate_series(0, %(lanes)s - 1) AS n
WHERE (SELECT count(*) FROM duly_lease WHERE scope = %(scope)s AND kind = 'lane') < %(lanes)s
ON CONFLICT (name) DO NOTHING

-- name: lease.beat
WITH me AS (
    UPDATE duly_lease SET until = clock_timestamp() + make_interval(secs => %(ttl_seconds)s), seen_at = clock_timestamp(),
        asleep = %(asleep)s
    WHERE name = %(name)s AND until > clock_timestamp()
    RETURNING 1
)
SELECT (SELECT count(*) FROM me),
    (SELECT coalesce(json_agg(json_build_array(m.name, m.scope, extract(epoch FROM m.until - clock_timestamp()))), '[]')::text
        FROM duly_lease m WHERE m.kind = 'member'),
    EXISTS (SELECT 1 FROM duly_outbox WHERE status = 'retry' AND due_at <= clock_timestamp()),
    EXISTS (SELECT 1 FROM duly_outbox WHERE status = 'ready'),
    EXISTS (SELECT 1 FROM duly_inbox WHERE status = 'retry' AND due_at <= clock_timestamp()),
    EXISTS (SELECT 1 FROM duly_inbox WHERE status = 'ready'),
    (SELECT coalesce(json_agg(json_build_array(p.name, p.value)), '[]')::text FROM duly_meta p WHERE p.name LIKE 'pause/%%')

-- name: lease.sleep
UPDATE duly_lease SET asleep = true WHERE name = %(name)s AND NOT asleep

-- name: lease.bury
DELETE FROM duly_lease WHERE kind = 'member' AND until < clock_timestamp() RETURNING holder

-- name: lease.lanes
SELECT l.lane, l.holder, l.token FROM duly_lease l WHERE l.scope = %(scope)s AND l.kind = 'lane'

-- name: lease.take
-- From nobody, or from an owner that this very snapshot knows as dead. Not "from one that has no member row": an UPDATE
-- that waited for another taker meets that one's lanes, but looks for its member row in the past, and would rob it.
UPDATE duly_lease l SET holder = %(holder)s, token = token + 1, seen_at = clock_timestamp()
WHERE l.kind = 'lane' AND l.scope = %(scope)s AND l.lane = ANY(%(lanes)s) AND (l.holder IS NULL OR l.holder IN (
    SELECT o.holder FROM duly_lease o
    WHERE o.scope = %(scope)s AND o.kind = 'lane' AND NOT EXISTS (
        SELECT 1 FROM duly_lease m WHERE m.kind = 'member' AND m.holder = o.holder)))
RETURNING l.lane, l.token

-- name: lease.release
UPDATE duly_lease SET holder = NULL
WHERE kind = 'lane' AND scope = %(scope)s AND lane = ANY(%(lanes)s) AND holder = %(holder)s

-- name: lease.guard
SELECT 1 FROM duly_lease WHERE name = %(name)s AND holder = %(holder)s AND token = %(token)s FOR SHARE

-- name: lease.leave
DELETE FROM duly_lease WHERE name = %(name)s
-- then
UPDATE duly_lease SET holder = NULL WHERE kind = 'lane' AND holder = %(holder)s

-- name: lease.horizon
-- Flushes hold the locks of their stripes; a number of our own is above all that were given out before.
SELECT (SELECT array_agg(l.virtualtransaction) FROM pg_locks l
        WHERE l.locktype = 'advisory' AND l.classid::bigint = %(namespace)s AND l.objsubid = 2 AND l.granted
            AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())),
    pg_snapshot_xmin(pg_current_snapshot())::text::bigint, pg_current_xact_id()::text::bigint
