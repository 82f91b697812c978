-- What the live tables look like, and the record of the migration that made them.

-- name: schema.exists
SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'duly_meta'

-- name: schema.record
INSERT INTO duly_meta (name, value) VALUES ('schema_version', '{version}'), ('min_code_version', '{least}')
ON CONFLICT (name) DO UPDATE SET value = excluded.value
WHERE CAST(duly_meta.value AS INTEGER) < CAST(excluded.value AS INTEGER);

-- name: schema.columns
SELECT m.name, c.name, lower(c.type), c."notnull" AND c.dflt_value IS NULL AND c.pk = 0
FROM sqlite_master m JOIN pragma_table_info(m.name) c
WHERE m.type = 'table' AND substr(m.name, 1, length('duly_')) = 'duly_'

-- name: schema.indexes
SELECT m.name, m.tbl_name, l."unique", l.partial, 1,
    (SELECT group_concat(i.name, ',') FROM (SELECT name FROM pragma_index_info(m.name) ORDER BY seqno) i)
FROM sqlite_master m JOIN pragma_index_list(m.tbl_name) l ON l.name = m.name
WHERE m.type = 'index' AND substr(m.name, 1, length('duly_')) = 'duly_'

-- name: schema.functions
-- None: a database without a server has none.
SELECT name FROM sqlite_master WHERE 0
