-- Roles that one node at a time may play.

-- name: role.take
-- Taken, or prolonged when it is ours; the token counts the changes of hands (assignments run from left to right).
INSERT IGNORE INTO duly_lease (name, kind) VALUES (%(name)s, 'role')
-- then
UPDATE duly_lease SET token = token + IF(holder <=> %(holder)s, 0, 1), holder = %(holder)s,
    until = UTC_TIMESTAMP(6) + INTERVAL %(ttl_seconds)s SECOND, seen_at = UTC_TIMESTAMP(6)
WHERE name = %(name)s AND (holder <=> %(holder)s OR until IS NULL OR until < UTC_TIMESTAMP(6))
-- then
SELECT token FROM duly_lease WHERE name = %(name)s AND holder = %(holder)s

-- name: role.leave
UPDATE duly_lease SET until = UTC_TIMESTAMP(6) WHERE name = %(name)s AND holder = %(holder)s AND until > UTC_TIMESTAMP(6)

-- name: role.holder
SELECT holder, token FROM duly_lease WHERE name = %(name)s
