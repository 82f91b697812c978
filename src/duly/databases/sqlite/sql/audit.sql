-- Who did what, and why.

-- name: audit.add
INSERT INTO duly_audit (created_at, actor, verb, target, message_id, reason, detail)
VALUES (:now, :actor, :verb, :target, :message_id, :reason, :detail)

-- name: audit.of
SELECT id, created_at, actor, verb, target, message_id, reason, detail FROM duly_audit
WHERE target = :target ORDER BY id DESC LIMIT :limit
