-- Who did what, and why.

-- name: audit.add
INSERT INTO duly_audit (actor, verb, target, message_id, reason, detail)
VALUES (%(actor)s, %(verb)s, %(target)s, %(message_id)s, %(reason)s, %(detail)s)

-- name: audit.of
SELECT id, extract(epoch FROM created_at)::float8, actor, verb, target, message_id, reason, detail FROM duly_audit
WHERE target = %(target)s ORDER BY id DESC LIMIT %(limit)s
