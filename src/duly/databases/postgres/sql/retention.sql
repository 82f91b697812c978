-- Forgetting what is finished.  Each statement itself names the statuses that may go: no caller can widen them.

-- name: retention.outbox_page
SELECT coalesce(max(id), 0), count(*), count(*) FILTER (WHERE created_at < clock_timestamp() - make_interval(secs => %(keep_seconds)s))
FROM (SELECT id, created_at FROM duly_outbox WHERE id > %(after)s ORDER BY id LIMIT %(limit)s) AS page

-- name: retention.outbox
DELETE FROM duly_outbox
WHERE id > %(after)s AND id <= %(upto)s AND status IN ('sent', 'unrouted', 'skipped', 'dropped')
    AND settled_at < clock_timestamp() - make_interval(secs => %(keep_seconds)s)

-- name: retention.inbox_old
SELECT id FROM duly_inbox
WHERE status IN ('done', 'skipped', 'dropped') AND settled_at < clock_timestamp() - make_interval(secs => %(keep_seconds)s)
ORDER BY settled_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED

-- name: retention.effects
DELETE FROM duly_effect e USING duly_inbox b
WHERE e.group_name = b.group_name AND e.handler = b.handler AND e.dedupe_key = b.dedupe_key AND b.id = ANY(%(ids)s)
    AND b.status IN ('done', 'skipped', 'dropped') AND b.settled_at < clock_timestamp() - make_interval(secs => %(keep_seconds)s)

-- name: retention.inbox
DELETE FROM duly_inbox
WHERE id = ANY(%(ids)s) AND status IN ('done', 'skipped', 'dropped') AND settled_at < clock_timestamp() - make_interval(secs => %(keep_seconds)s)

-- name: retention.failures
DELETE FROM duly_failure WHERE id IN (
    SELECT id FROM duly_failure WHERE state IN ('resolved', 'dropped') AND settled_at < clock_timestamp() - make_interval(secs => %(keep_seconds)s) LIMIT %(limit)s)

-- name: retention.audit
DELETE FROM duly_audit WHERE id IN (
    SELECT id FROM duly_audit WHERE created_at < clock_timestamp() - make_interval(secs => %(keep_seconds)s) ORDER BY id LIMIT %(limit)s)

-- name: retention.count
SELECT (SELECT count(*) FROM duly_outbox WHERE status IN ('sent', 'unrouted', 'skipped', 'dropped')
        AND settled_at < clock_timestamp() - make_interval(secs => %(outbox_seconds)s)),
    (SELECT count(*) FROM duly_inbox WHERE status IN ('done', 'skipped', 'dropped')
        AND settled_at < clock_timestamp() - make_interval(secs => %(inbox_seconds)s)),
    (SELECT count(*) FROM duly_effect e JOIN duly_inbox b
        ON b.group_name = e.group_name AND b.handler = e.handler AND b.dedupe_key = e.dedupe_key
        WHERE b.status IN ('done', 'skipped', 'dropped') AND b.settled_at < clock_timestamp() - make_interval(secs => %(inbox_seconds)s)),
    (SELECT count(*) FROM duly_failure WHERE state IN ('resolved', 'dropped')
        AND settled_at < clock_timestamp() - make_interval(secs => %(failure_seconds)s)),
    (SELECT count(*) FROM duly_audit WHERE created_at < clock_timestamp() - make_interval(secs => %(audit_seconds)s))
