-- Forgetting what is finished.  Each statement itself names the statuses that may go: no caller can widen them.

-- name: retention.outbox_page
SELECT coalesce(max(id), 0), count(*), coalesce(sum(created_at < :now - :keep_seconds), 0)
FROM (SELECT id, created_at FROM duly_outbox WHERE id > :after ORDER BY id LIMIT :limit)

-- name: retention.outbox
DELETE FROM duly_outbox
WHERE id > :after AND id <= :upto AND status IN ('sent', 'unrouted', 'skipped', 'dropped') AND settled_at < :now - :keep_seconds

-- name: retention.inbox_old
SELECT id FROM duly_inbox
WHERE status IN ('done', 'skipped', 'dropped') AND settled_at < :now - :keep_seconds ORDER BY settled_at LIMIT :limit

-- name: retention.effects
DELETE FROM duly_effect WHERE (group_name, handler, dedupe_key) IN (
    SELECT b.group_name, b.handler, b.dedupe_key FROM duly_inbox b
    WHERE b.id IN (SELECT value FROM json_each(:ids)) AND b.status IN ('done', 'skipped', 'dropped')
        AND b.settled_at < :now - :keep_seconds)

-- name: retention.inbox
DELETE FROM duly_inbox
WHERE id IN (SELECT value FROM json_each(:ids)) AND status IN ('done', 'skipped', 'dropped') AND settled_at < :now - :keep_seconds

-- name: retention.failures
DELETE FROM duly_failure WHERE id IN (
    SELECT id FROM duly_failure WHERE state IN ('resolved', 'dropped') AND settled_at < :now - :keep_seconds LIMIT :limit)

-- name: retention.audit
DELETE FROM duly_audit WHERE id IN (
    SELECT id FROM duly_audit WHERE created_at < :now - :keep_seconds ORDER BY id LIMIT :limit)

-- name: retention.count
SELECT (SELECT count(*) FROM duly_outbox WHERE status IN ('sent', 'unrouted', 'skipped', 'dropped') AND settled_at < :now - :outbox_seconds),
    (SELECT count(*) FROM duly_inbox WHERE status IN ('done', 'skipped', 'dropped') AND settled_at < :now - :inbox_seconds),
    (SELECT count(*) FROM duly_effect e JOIN duly_inbox b
        ON b.group_name = e.group_name AND b.handler = e.handler AND b.dedupe_key = e.dedupe_key
        WHERE b.status IN ('done', 'skipped', 'dropped') AND b.settled_at < :now - :inbox_seconds),
    (SELECT count(*) FROM duly_failure WHERE state IN ('resolved', 'dropped') AND settled_at < :now - :failure_seconds),
    (SELECT count(*) FROM duly_audit WHERE created_at < :now - :audit_seconds)
