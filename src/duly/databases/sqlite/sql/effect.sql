-- Calls to the outside world: intent, then the call, then its result.  Each statement is a transaction of its own.

-- name: effect.intend
INSERT INTO duly_effect (group_name, handler, dedupe_key, step, provider_key, arguments, state, holder, until, created_at)
SELECT :group, :handler, :dedupe_key, :step, :provider_key, :arguments, 'intent', :holder, :now + :limit_seconds, :now
WHERE NOT EXISTS (
    SELECT 1 FROM duly_inbox b
    WHERE b.group_name = :group AND b.handler = :handler AND b.dedupe_key = :dedupe_key AND b.status IN ('done', 'skipped', 'dropped'))
ON CONFLICT (group_name, handler, dedupe_key, step) DO NOTHING

-- name: effect.look
SELECT e.state, e.arguments, e.result, e.holder, coalesce(e.until <= :now, 1), EXISTS (
    SELECT 1 FROM duly_lease m WHERE m.kind = 'member' AND m.until > :now AND e.holder LIKE m.holder || '#%')
FROM duly_effect e
WHERE e.group_name = :group AND e.handler = :handler AND e.dedupe_key = :dedupe_key AND e.step = :step

-- name: effect.take
UPDATE duly_effect SET state = 'intent', holder = :holder, until = :now + :limit_seconds
WHERE group_name = :group AND handler = :handler AND dedupe_key = :dedupe_key AND step = :step
    AND state = :state AND holder = :old_holder AND NOT EXISTS (
    SELECT 1 FROM duly_inbox b
    WHERE b.group_name = :group AND b.handler = :handler AND b.dedupe_key = :dedupe_key AND b.status IN ('done', 'skipped', 'dropped'))

-- name: effect.settle
UPDATE duly_effect SET state = :state, result = :result, until = :now, settled_at = CASE WHEN :state = 'done' THEN :now END
WHERE group_name = :group AND handler = :handler AND dedupe_key = :dedupe_key AND step = :step
    AND state = 'intent' AND holder = :holder
