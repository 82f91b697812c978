-- Roles that one node at a time may play.

-- name: role.take
-- Taken, or prolonged when it is ours; the token counts the changes of hands.
INSERT INTO duly_lease (name, kind, holder, token, until, seen_at)
VALUES (%(name)s, 'role', %(holder)s, 1, clock_timestamp() + make_interval(secs => %(ttl_seconds)s), clock_timestamp())
ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until, seen_at = excluded.seen_at,
    token = duly_lease.token + (duly_lease.holder IS DISTINCT FROM excluded.holder)::int
WHERE duly_lease.holder = excluded.holder OR duly_lease.until < clock_timestamp()
RETURNING token

-- name: role.leave
UPDATE duly_lease SET until = clock_timestamp() WHERE name = %(name)s AND holder = %(holder)s AND until > clock_timestamp()

-- name: role.holder
SELECT holder, token FROM duly_lease WHERE name = %(name)s
