-- Runs of batch jobs.  Whoever changes a run names the token and the status that it saw: what an older holder has in hand is dropped.

-- name: run.add
INSERT INTO duly_run (instance, job, params, status, scheduled_for, due_at, created_at, moved_at)
VALUES (:instance, :job, :params, 'due', :scheduled_for, :now, :now, :now) ON CONFLICT (instance) DO NOTHING

-- name: run.read
SELECT instance, job, params, definition, status, attempt, tries, token, wanted, owner, last_error, scheduled_for,
    due_at, created_at, started_at, moved_at, ended_at
FROM duly_run WHERE instance = :instance

-- name: run.lock
-- Nothing to lock: whoever changes something is alone.
SELECT 1 FROM duly_run WHERE instance = :instance

-- name: run.list
SELECT instance, job, params, definition, status, attempt, tries, token, wanted, owner, last_error, scheduled_for,
    due_at, created_at, started_at, moved_at, ended_at
FROM duly_run WHERE (:job = '' OR job = :job) AND (:status = '' OR status = :status)
ORDER BY created_at DESC, instance LIMIT :limit

-- name: run.waiting
-- What could be taken up: running ones with the holder of their lease, NULL where it is over, then due ones.
SELECT r.instance, r.job, r.status, (SELECT l.holder FROM duly_lease l WHERE l.name = 'role/batch/' || r.instance AND l.until > :now)
FROM duly_run r
WHERE r.job IN (SELECT value FROM json_each(:jobs)) AND ((r.status = 'due' AND r.due_at <= :now) OR r.status = 'running')
ORDER BY r.status DESC, r.due_at LIMIT :limit

-- name: run.move
UPDATE duly_run SET status = :status, attempt = :attempt, tries = :tries, token = :next_token, wanted = :wanted,
    definition = :definition, owner = :owner, last_error = :last_error, due_at = :now + :due_in_seconds, moved_at = :now,
    started_at = CASE WHEN :starts THEN :now ELSE started_at END, ended_at = CASE WHEN :ends THEN :now END
WHERE instance = :instance AND token = :token AND status = :was

-- name: run.touch
-- Where it got on, attempts are counted from here again.
UPDATE duly_run SET tries = CASE WHEN :got_on THEN 0 ELSE tries END, moved_at = :now WHERE instance = :instance AND token = :token AND status = 'running'

-- name: run.lease
SELECT holder, :now - seen_at, until - :now FROM duly_lease WHERE name = 'role/batch/' || :instance

-- name: run.forget_lease
DELETE FROM duly_lease WHERE name = 'role/batch/' || :instance AND holder = :holder

-- name: run.asked
SELECT detail FROM duly_audit WHERE target = :target AND message_id = :request ORDER BY id LIMIT 1

-- name: attempt.add
INSERT INTO duly_attempt (instance, attempt, token, owner, definition, spool, status, started_at)
VALUES (:instance, :attempt, :token, :owner, :definition, :spool, 'running', :now)

-- name: attempt.end
UPDATE duly_attempt SET status = :status, error = :error, ended_at = :now
WHERE instance = :instance AND attempt = :attempt AND status = 'running'

-- name: attempt.lost
-- Whoever began it did not come back.
UPDATE duly_attempt SET status = 'lost', ended_at = :now WHERE instance = :instance AND status = 'running'

-- name: attempt.of
SELECT attempt, token, owner, definition, spool, status, error, started_at, ended_at FROM duly_attempt
WHERE instance = :instance ORDER BY attempt DESC LIMIT :limit

-- name: checkpoint.put
INSERT INTO duly_checkpoint (instance, step, attempt, status, data, row_count, size_bytes, facts, moved_at)
VALUES (:instance, :step, :attempt, :status, :data, :row_count, :size_bytes, :facts, :now)
ON CONFLICT (instance, step) DO UPDATE SET attempt = excluded.attempt, status = excluded.status, data = excluded.data,
    row_count = excluded.row_count, size_bytes = excluded.size_bytes, facts = excluded.facts, saves = duly_checkpoint.saves + 1,
    moved_at = excluded.moved_at

-- name: checkpoint.of
SELECT step, attempt, status, data, row_count, size_bytes, facts, saves, moved_at FROM duly_checkpoint WHERE instance = :instance

-- name: checkpoint.drop
DELETE FROM duly_checkpoint WHERE instance = :instance AND step IN (SELECT value FROM json_each(:steps))
