-- What the live tables look like, and the record of the migration that made them.

-- name: schema.exists
SELECT 1 FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = 'duly_meta'

-- name: schema.record
INSERT INTO duly_meta (name, value) VALUES ('schema_version', '{version}'), ('min_code_version', '{least}')
ON DUPLICATE KEY UPDATE value = IF(CAST(value AS SIGNED) < CAST(VALUES(value) AS SIGNED), VALUES(value), value);

-- name: schema.columns
-- MySQL and MariaDB disagree on display widths and on how a default is shown; a stored NULL is the word.
SELECT c.table_name, c.column_name,
    CONCAT(IF(c.data_type = 'int', 'integer', IF(c.data_type LIKE '%%int', c.data_type, LOWER(c.column_type))),
        IF(c.collation_name IS NULL OR c.collation_name = 'utf8mb4_bin', '', CONCAT(' collate ', c.collation_name))),
    c.is_nullable = 'NO' AND c.column_default IS NULL AND c.extra = ''
FROM information_schema.columns c
WHERE c.table_schema = DATABASE() AND LEFT(c.table_name, CHAR_LENGTH('duly_')) = 'duly_'

-- name: schema.indexes
SELECT s.index_name, s.table_name, MAX(s.non_unique) = 0, 0, 1, GROUP_CONCAT(s.column_name ORDER BY s.seq_in_index)
FROM information_schema.statistics s
WHERE s.table_schema = DATABASE() AND LEFT(s.index_name, CHAR_LENGTH('duly_')) = 'duly_'
GROUP BY s.index_name, s.table_name

-- name: schema.functions
SELECT r.routine_name FROM information_schema.routines r
WHERE r.routine_schema = DATABASE() AND LEFT(r.routine_name, CHAR_LENGTH('duly_')) = 'duly_'
