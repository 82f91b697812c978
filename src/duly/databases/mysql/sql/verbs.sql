-- What an operator's verbs do to a row, rendered once for each box: always a compare-and-set.

-- name: operator.{box}_move
UPDATE duly_{box} SET status = %(status)s, attempts = %(attempts)s, last_error = %(error)s, due_at = UTC_TIMESTAMP(6),
    settled_at = CASE WHEN %(final)s THEN UTC_TIMESTAMP(6) END
WHERE id = %(id)s AND message_id = %(message_id)s AND status = %(was)s AND (last_error IS NULL) = %(follower)s

-- name: operator.{box}_edit
UPDATE duly_{box} SET message_id = %(new_id)s, payload = %(payload)s, headers = %(headers)s
WHERE id = %(id)s AND message_id = %(message_id)s

-- name: operator.{box}_block
INSERT IGNORE INTO duly_key_hold (scope, topic, `key`, lane, blocker_id)
SELECT %(scope)s, b.topic, b.key, b.lane, b.id FROM duly_{box} b WHERE b.id = %(id)s AND b.key IS NOT NULL
