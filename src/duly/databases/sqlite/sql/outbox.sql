-- name: outbox.insert
INSERT INTO duly_outbox (message_id, message_type, kind, topic, key, lane, payload, headers, created_at)
VALUES (:message_id, :message_type, :kind, :topic, :key, :lane, :payload, :headers, :now)

-- name: outbox.settle
DELETE FROM duly_outbox WHERE id = :id AND message_id = :message_id

-- name: outbox.keep
UPDATE duly_outbox SET status = :status, settled_at = :now WHERE id = :id AND message_id = :message_id
