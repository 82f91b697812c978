-- Calls to the outside world: intent, then the call, then its result.  Each statement is a transaction of its own.

-- name: effect.intend
INSERT IGNORE INTO duly_effect (group_name, handler, dedupe_key, step, provider_key, arguments, state, holder, until)
SELECT %(group)s, %(handler)s, %(dedupe_key)s, %(step)s, %(provider_key)s, %(arguments)s, 'intent', %(holder)s,
    UTC_TIMESTAMP(6) + INTERVAL %(limit_seconds)s SECOND
FROM DUAL WHERE NOT EXISTS (
    SELECT 1 FROM duly_inbox b
    WHERE b.group_name = %(group)s AND b.handler = %(handler)s AND b.dedupe_key = %(dedupe_key)s
        AND b.status IN ('done', 'skipped', 'dropped'))

-- name: effect.look
SELECT e.state, e.arguments, e.result, e.holder, COALESCE(e.until <= UTC_TIMESTAMP(6), 1), EXISTS (
    SELECT 1 FROM duly_lease m
    WHERE m.kind = 'member' AND m.until > UTC_TIMESTAMP(6) AND m.holder = SUBSTRING_INDEX(e.holder, '#', 1))
FROM duly_effect e
WHERE e.group_name = %(group)s AND e.handler = %(handler)s AND e.dedupe_key = %(dedupe_key)s AND e.step = %(step)s

-- name: effect.take
UPDATE duly_effect SET state = 'intent', holder = %(holder)s, until = UTC_TIMESTAMP(6) + INTERVAL %(limit_seconds)s SECOND
WHERE group_name = %(group)s AND handler = %(handler)s AND dedupe_key = %(dedupe_key)s AND step = %(step)s
    AND state = %(state)s AND holder = %(old_holder)s AND NOT EXISTS (
    SELECT 1 FROM duly_inbox b
    WHERE b.group_name = %(group)s AND b.handler = %(handler)s AND b.dedupe_key = %(dedupe_key)s
        AND b.status IN ('done', 'skipped', 'dropped'))

-- name: effect.settle
UPDATE duly_effect SET state = %(state)s, result = %(result)s, until = UTC_TIMESTAMP(6),
    settled_at = CASE WHEN %(state)s = 'done' THEN UTC_TIMESTAMP(6) END
WHERE group_name = %(group)s AND handler = %(handler)s AND dedupe_key = %(dedupe_key)s AND step = %(step)s
    AND state = 'intent' AND holder = %(holder)s
