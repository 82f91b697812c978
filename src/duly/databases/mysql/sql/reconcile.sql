-- What was stored, sent, handled, held and dropped, and whether it adds up.

-- name: reconcile.stored
SELECT topic, status, count(*) FROM duly_outbox GROUP BY topic, status ORDER BY topic, status

-- name: reconcile.handled
SELECT i.status, count(*) FROM duly_inbox i
WHERE i.group_name = %(group)s AND i.message_type IN %(types)s GROUP BY i.status ORDER BY i.status

-- name: reconcile.expected
-- What was sent and should be in the group's inbox, and how much of it is: under its own id, or edited there.
SELECT count(*), count(coalesce(i.message_id, e.message_id))
FROM duly_outbox o
LEFT JOIN (SELECT DISTINCT message_id FROM duly_inbox WHERE group_name = %(group)s) i ON i.message_id = o.message_id
LEFT JOIN (SELECT DISTINCT message_id FROM duly_audit WHERE verb = 'edit' AND target LIKE 'inbox/%%') e
    ON e.message_id = o.message_id
WHERE o.status = 'sent' AND o.message_type IN %(types)s

-- name: reconcile.accounted
SELECT count(*) FROM (
    SELECT message_id FROM duly_outbox WHERE topic = %(topic)s
    UNION SELECT message_id FROM duly_inbox WHERE topic = %(topic)s AND group_name = %(group)s
) AS ids
