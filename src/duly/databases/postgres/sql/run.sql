-- Runs of batch jobs.  Whoever changes a run names the token and the status that it saw: what an older holder has in hand is dropped.

-- name: run.add
INSERT INTO duly_run (instance, job, params, status, scheduled_for, due_at, created_at, moved_at)
VALUES (%(instance)s, %(job)s, %(params)s, 'due', %(scheduled_for)s, clock_timestamp(), clock_timestamp(), clock_timestamp()) ON CONFLICT (instance) DO NOTHING

-- name: run.read
SELECT instance, job, params, definition, status, attempt, tries, token, wanted, owner, last_error, scheduled_for,
    extract(epoch FROM due_at)::float8, extract(epoch FROM created_at)::float8, extract(epoch FROM started_at)::float8, extract(epoch FROM moved_at)::float8, extract(epoch FROM ended_at)::float8
FROM duly_run WHERE instance = %(instance)s

-- name: run.lock
-- Until the end of the transaction nobody else changes the run, nor stores how far it is.
SELECT 1 FROM duly_run WHERE instance = %(instance)s FOR NO KEY UPDATE

-- name: run.list
SELECT instance, job, params, definition, status, attempt, tries, token, wanted, owner, last_error, scheduled_for,
    extract(epoch FROM due_at)::float8, extract(epoch FROM created_at)::float8, extract(epoch FROM started_at)::float8, extract(epoch FROM moved_at)::float8, extract(epoch FROM ended_at)::float8
FROM duly_run WHERE (%(job)s::text = '' OR job = %(job)s) AND (%(status)s::text = '' OR status = %(status)s)
ORDER BY created_at DESC, instance LIMIT %(limit)s

-- name: run.waiting
-- What could be taken up: running ones with the holder of their lease, NULL where it is over, then due ones.
SELECT r.instance, r.job, r.status, (SELECT l.holder FROM duly_lease l WHERE l.name = 'role/batch/' || r.instance AND l.until > clock_timestamp())
FROM duly_run r
WHERE r.job = ANY(%(jobs)s) AND ((r.status = 'due' AND r.due_at <= clock_timestamp()) OR r.status = 'running')
ORDER BY r.status DESC, r.due_at LIMIT %(limit)s

-- name: run.move
UPDATE duly_run SET status = %(status)s, attempt = %(attempt)s, tries = %(tries)s, token = %(next_token)s, wanted = %(wanted)s,
    definition = %(definition)s, owner = %(owner)s, last_error = %(last_error)s, due_at = clock_timestamp() + make_interval(secs => %(due_in_seconds)s), moved_at = clock_timestamp(),
    started_at = CASE WHEN %(starts)s THEN clock_timestamp() ELSE started_at END, ended_at = CASE WHEN %(ends)s THEN clock_timestamp() END
WHERE instance = %(instance)s AND token = %(token)s AND status = %(was)s

-- name: run.touch
-- Where it got on, attempts are counted from here again.
UPDATE duly_run SET tries = CASE WHEN %(got_on)s THEN 0 ELSE tries END, moved_at = clock_timestamp() WHERE instance = %(instance)s AND token = %(token)s AND status = 'running'

-- name: run.lease
SELECT holder, extract(epoch FROM clock_timestamp() - seen_at)::float8, extract(epoch FROM until - clock_timestamp())::float8 FROM duly_lease WHERE name = 'role/batch/' || %(instance)s::text

-- name: run.forget_lease
DELETE FROM duly_lease WHERE name = 'role/batch/' || %(instance)s::text AND holder = %(holder)s

-- name: run.asked
SELECT detail FROM duly_audit WHERE target = %(target)s AND message_id = %(request)s ORDER BY id LIMIT 1

-- name: attempt.add
INSERT INTO duly_attempt (instance, attempt, token, owner, definition, spool, status, started_at)
VALUES (%(instance)s, %(attempt)s, %(token)s, %(owner)s, %(definition)s, %(spool)s, 'running', clock_timestamp())

-- name: attempt.end
UPDATE duly_attempt SET status = %(status)s, error = %(error)s, ended_at = clock_timestamp()
WHERE instance = %(instance)s AND attempt = %(attempt)s AND status = 'running'

-- name: attempt.lost
-- Whoever began it did not come back.
UPDATE duly_attempt SET status = 'lost', ended_at = clock_timestamp() WHERE instance = %(instance)s AND status = 'running'

-- name: attempt.of
SELECT attempt, token, owner, definition, spool, status, error, extract(epoch FROM started_at)::float8, extract(epoch FROM ended_at)::float8 FROM duly_attempt
WHERE instance = %(instance)s ORDER BY attempt DESC LIMIT %(limit)s

-- name: checkpoint.put
INSERT INTO duly_checkpoint (instance, step, attempt, status, data, row_count, size_bytes, facts, moved_at)
VALUES (%(instance)s, %(step)s, %(attempt)s, %(status)s, %(data)s, %(row_count)s, %(size_bytes)s, %(facts)s, clock_timestamp())
ON CONFLICT (instance, step) DO UPDATE SET attempt = excluded.attempt, status = excluded.status, data = excluded.data,
    row_count = excluded.row_count, size_bytes = excluded.size_bytes, facts = excluded.facts, saves = duly_checkpoint.saves + 1,
    moved_at = excluded.moved_at

-- name: checkpoint.of
SELECT step, attempt, status, data, row_count, size_bytes, facts, saves, extract(epoch FROM moved_at)::float8 FROM duly_checkpoint WHERE instance = %(instance)s

-- name: checkpoint.drop
DELETE FROM duly_checkpoint WHERE instance = %(instance)s AND step = ANY(%(steps)s)
