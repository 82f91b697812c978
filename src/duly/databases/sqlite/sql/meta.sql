-- name: meta.all
SELECT name, value FROM duly_meta

-- name: meta.put
INSERT INTO duly_meta (name, value) VALUES (:name, :value) ON CONFLICT (name) DO UPDATE SET value = excluded.value

-- name: meta.put_new
INSERT INTO duly_meta (name, value) VALUES (:name, :value) ON CONFLICT (name) DO NOTHING

-- name: meta.drop
DELETE FROM duly_meta WHERE name = :name

-- name: meta.identity
PRAGMA database_list

-- name: meta.unfinished
-- What will still be worked on without anybody's doing: ready, due soon, or draining.
SELECT (SELECT count(*) FROM duly_outbox WHERE status IN ('ready', 'retry')),
    (SELECT count(*) FROM duly_inbox WHERE status IN ('ready', 'retry')),
    (SELECT count(*) FROM duly_key_hold WHERE blocker_id IS NULL)

-- name: meta.tables
SELECT 1 FROM sqlite_master WHERE name = 'duly_outbox'
