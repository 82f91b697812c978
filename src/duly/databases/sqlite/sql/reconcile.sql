-- What was stored, sent, handled, held and dropped, and whether it adds up.

-- name: reconcile.stored
SELECT topic, status, count(*) FROM duly_outbox GROUP BY topic, status ORDER BY topic, status

-- name: reconcile.handled
SELECT i.status, count(*) FROM duly_inbox i
WHERE i.group_name = :group AND i.message_type IN (SELECT value FROM json_each(:types)) GROUP BY i.status ORDER BY i.status

-- name: reconcile.expected
-- What was sent and should be in the group's inbox, and how much of it is: under its own id, or edited there.
SELECT count(*), coalesce(sum(CASE WHEN i.message_id IS NULL AND e.message_id IS NULL THEN 0 ELSE 1 END), 0)
FROM duly_outbox o
LEFT JOIN (SELECT DISTINCT message_id FROM duly_inbox WHERE group_name = :group) i ON i.message_id = o.message_id
LEFT JOIN (SELECT DISTINCT message_id FROM duly_audit WHERE verb = 'edit' AND target LIKE 'inbox/%') e
    ON e.message_id = o.message_id
WHERE o.status = 'sent' AND o.message_type IN (SELECT value FROM json_each(:types))

-- name: reconcile.accounted
SELECT count(*) FROM (
    SELECT message_id FROM duly_outbox WHERE topic = :topic
    UNION SELECT message_id FROM duly_inbox WHERE topic = :topic AND group_name = :group
) AS ids
