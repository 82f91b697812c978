-- name: outbox.stripes
-- Locks first, in the order of the stripes, then the ids: id order is commit order per key.  Counted, not only locked:
-- whoever sees a stripe locked can tell one flush from the next (lease.horizon).  MySQL has no WAIT and no SET STATEMENT:
-- there the session's own innodb_lock_wait_timeout bounds it.
/*M!100600 SET STATEMENT innodb_lock_wait_timeout = %(wait_seconds)s FOR */
UPDATE duly_stripe FORCE INDEX (PRIMARY) SET flushes = flushes + 1 WHERE id IN %(stripes)s ORDER BY id

-- name: outbox.insert :arrays
INSERT INTO duly_outbox (message_id, message_type, kind, topic, `key`, lane, payload, headers)
VALUES (%(message_id)s, %(message_type)s, %(kind)s, %(topic)s, %(key)s, %(lane)s, %(payload)s, %(headers)s)

-- name: outbox.settle
-- By id and by message: of these rows those that still carry one of these messages, which are all confirmed.  Comparing
-- pairs says the same and takes half as long again.
DELETE FROM duly_outbox WHERE id IN %(ids)s AND message_id IN %(message_ids)s

-- name: outbox.keep
UPDATE duly_outbox SET status = %(status)s, settled_at = UTC_TIMESTAMP(6)
WHERE id IN %(ids)s AND message_id IN %(message_ids)s
