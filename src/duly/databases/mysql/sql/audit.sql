-- Who did what, and why.

-- name: audit.add
INSERT INTO duly_audit (actor, verb, target, message_id, reason, detail)
VALUES (%(actor)s, %(verb)s, %(target)s, %(message_id)s, %(reason)s, %(detail)s)

-- name: audit.of
SELECT id, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', created_at) / 1e6, actor, verb, target, message_id, reason, detail FROM duly_audit
WHERE target = %(target)s ORDER BY id DESC LIMIT %(limit)s
