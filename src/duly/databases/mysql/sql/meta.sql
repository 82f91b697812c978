-- name: meta.all
SELECT name, value FROM duly_meta

-- name: meta.put
INSERT INTO duly_meta (name, value) VALUES (%(name)s, %(value)s) ON DUPLICATE KEY UPDATE value = %(value)s

-- name: meta.put_new
-- A count of 1 is a new row: this never updates one.
INSERT IGNORE INTO duly_meta (name, value) VALUES (%(name)s, %(value)s)

-- name: meta.drop
DELETE FROM duly_meta WHERE name = %(name)s

-- name: meta.identity
-- Which server and database; then what makes a connection unfit: a replica, another character set, a lax mode, our tables
-- on an engine without transactions.
SELECT /*M! @@server_uid */ /*!80000 @@server_uuid */, DATABASE(), @@global.read_only, @@character_set_client,
    @@sql_mode LIKE '%%STRICT_%%', (
    SELECT count(*) FROM information_schema.tables t
    WHERE t.table_schema = DATABASE() AND t.engine <> 'InnoDB' AND LEFT(t.table_name, CHAR_LENGTH('duly_')) = 'duly_')

-- name: meta.unfinished
-- What will still be worked on without anybody's doing: ready, due soon, or draining.
SELECT (SELECT count(*) FROM duly_outbox WHERE status IN ('ready', 'retry')),
    (SELECT count(*) FROM duly_inbox WHERE status IN ('ready', 'retry')),
    (SELECT count(*) FROM duly_key_hold WHERE blocker_id IS NULL)
