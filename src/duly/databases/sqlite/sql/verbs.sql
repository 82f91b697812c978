-- What an operator's verbs do to a row, rendered once for each box: always a compare-and-set.

-- name: operator.{box}_move
UPDATE duly_{box} SET status = :status, attempts = :attempts, last_error = :error, due_at = :now,
    settled_at = CASE WHEN :final THEN :now END
WHERE id = :id AND message_id = :message_id AND status = :was AND (last_error IS NULL) = :follower

-- name: operator.{box}_edit
UPDATE duly_{box} SET message_id = :new_id, payload = :payload, headers = :headers
WHERE id = :id AND message_id = :message_id

-- name: operator.{box}_block
INSERT INTO duly_key_hold (scope, topic, key, lane, blocker_id, created_at)
SELECT :scope, b.topic, b.key, b.lane, b.id, :now FROM duly_{box} b WHERE b.id = :id AND b.key IS NOT NULL
ON CONFLICT (scope, topic, key) DO NOTHING
