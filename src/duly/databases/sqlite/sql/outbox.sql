-- name: outbox.insert
INSERT INTO duly_outbox (message_id, message_type, kind, topic, key, lane, payload, headers, created_at)
VALUES (:message_id, :message_type, :kind, :topic, :key, :lane, :payload, :headers, :now)

-- name: outbox.settle :arrays
-- CROSS JOIN keeps the order of the tables: each row by its id.
DELETE FROM duly_outbox WHERE id IN (
    SELECT b.id FROM json_each(:rows) AS r CROSS JOIN duly_outbox b
        ON b.id = json_extract(r.value, '$.id') AND b.message_id = json_extract(r.value, '$.message_id'))

-- name: outbox.keep :arrays
UPDATE duly_outbox SET status = r.status, settled_at = :now
FROM (
    SELECT json_extract(value, '$.id') AS id, json_extract(value, '$.message_id') AS message_id,
        json_extract(value, '$.status') AS status
    FROM json_each(:rows)
) AS r
WHERE duly_outbox.id = r.id AND duly_outbox.message_id = r.message_id
