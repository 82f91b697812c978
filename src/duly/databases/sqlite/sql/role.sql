-- Roles that one node at a time may play.

-- name: role.take
-- Taken, or prolonged when it is ours; the token counts the changes of hands.
INSERT INTO duly_lease (name, kind, holder, token, until, seen_at) VALUES (:name, 'role', :holder, 1, :now + :ttl_seconds, :now)
ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until, seen_at = excluded.seen_at,
    token = duly_lease.token + (duly_lease.holder IS NOT excluded.holder)
WHERE duly_lease.holder = excluded.holder OR duly_lease.until < :now
RETURNING token

-- name: role.leave
UPDATE duly_lease SET until = :now WHERE name = :name AND holder = :holder AND until > :now

-- name: role.holder
SELECT holder, token FROM duly_lease WHERE name = :name
