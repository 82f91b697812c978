-- Forgetting what is finished.  Each statement itself names the statuses that may go: no caller can widen them.

-- name: retention.outbox_page
SELECT coalesce(max(id), 0), count(*), count(IF(created_at < UTC_TIMESTAMP(6) - INTERVAL %(keep_seconds)s SECOND, 1, NULL))
FROM (SELECT id, created_at FROM duly_outbox WHERE id > %(after)s ORDER BY id LIMIT %(limit)s) AS page

-- name: retention.outbox
DELETE FROM duly_outbox
WHERE id > %(after)s AND id <= %(upto)s AND status IN ('sent', 'unrouted', 'skipped', 'dropped')
    AND settled_at < UTC_TIMESTAMP(6) - INTERVAL %(keep_seconds)s SECOND

-- name: retention.inbox_old
SELECT id FROM duly_inbox
WHERE status IN ('done', 'skipped', 'dropped') AND settled_at < UTC_TIMESTAMP(6) - INTERVAL %(keep_seconds)s SECOND
ORDER BY settled_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED

-- name: retention.effects
DELETE e FROM duly_effect e
JOIN duly_inbox b ON e.group_name = b.group_name AND e.handler = b.handler AND e.dedupe_key = b.dedupe_key
WHERE b.id IN %(ids)s
    AND b.status IN ('done', 'skipped', 'dropped') AND b.settled_at < UTC_TIMESTAMP(6) - INTERVAL %(keep_seconds)s SECOND

-- name: retention.inbox
DELETE FROM duly_inbox
WHERE id IN %(ids)s AND status IN ('done', 'skipped', 'dropped') AND settled_at < UTC_TIMESTAMP(6) - INTERVAL %(keep_seconds)s SECOND

-- name: retention.failures
DELETE FROM duly_failure
WHERE state IN ('resolved', 'dropped') AND settled_at < UTC_TIMESTAMP(6) - INTERVAL %(keep_seconds)s SECOND ORDER BY id LIMIT %(limit)s

-- name: retention.audit
DELETE FROM duly_audit WHERE created_at < UTC_TIMESTAMP(6) - INTERVAL %(keep_seconds)s SECOND ORDER BY id LIMIT %(limit)s

-- name: retention.count
SELECT (SELECT count(*) FROM duly_outbox WHERE status IN ('sent', 'unrouted', 'skipped', 'dropped')
        AND settled_at < UTC_TIMESTAMP(6) - INTERVAL %(outbox_seconds)s SECOND),
    (SELECT count(*) FROM duly_inbox WHERE status IN ('done', 'skipped', 'dropped')
        AND settled_at < UTC_TIMESTAMP(6) - INTERVAL %(inbox_seconds)s SECOND),
    (SELECT count(*) FROM duly_effect e JOIN duly_inbox b
        ON b.group_name = e.group_name AND b.handler = e.handler AND b.dedupe_key = e.dedupe_key
        WHERE b.status IN ('done', 'skipped', 'dropped') AND b.settled_at < UTC_TIMESTAMP(6) - INTERVAL %(inbox_seconds)s SECOND),
    (SELECT count(*) FROM duly_failure WHERE state IN ('resolved', 'dropped')
        AND settled_at < UTC_TIMESTAMP(6) - INTERVAL %(failure_seconds)s SECOND),
    (SELECT count(*) FROM duly_audit WHERE created_at < UTC_TIMESTAMP(6) - INTERVAL %(audit_seconds)s SECOND)
