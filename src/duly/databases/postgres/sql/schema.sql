-- What the live tables look like, and the record of the migration that made them.

-- name: schema.exists
SELECT 1 WHERE to_regclass('duly_meta') IS NOT NULL

-- name: schema.record
INSERT INTO duly_meta (name, value) VALUES ('schema_version', '{version}'), ('min_code_version', '{least}')
ON CONFLICT (name) DO UPDATE SET value = excluded.value
WHERE duly_meta.value::integer < excluded.value::integer;

-- name: schema.columns
SELECT c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod) || coalesce((
        SELECT ' collate ' || o.collname FROM pg_collation o JOIN pg_type t ON t.oid = a.atttypid
        WHERE o.oid = a.attcollation AND a.attcollation <> t.typcollation), ''),
    a.attnotnull AND NOT a.atthasdef AND a.attidentity = ''
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND starts_with(c.relname::text, 'duly_')

-- name: schema.indexes
SELECT i.relname::text, t.relname::text, x.indisunique, x.indpred IS NOT NULL, x.indisvalid, (
    SELECT string_agg(a.attname::text, ',' ORDER BY k.place) FROM unnest(x.indkey::smallint[]) WITH ORDINALITY AS k(number, place)
    JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = k.number)
FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class t ON t.oid = x.indrelid
WHERE t.relnamespace = current_schema()::regnamespace AND starts_with(i.relname::text, 'duly_')

-- name: schema.functions
SELECT p.proname::text FROM pg_proc p
WHERE p.pronamespace = current_schema()::regnamespace AND starts_with(p.proname::text, 'duly_')
