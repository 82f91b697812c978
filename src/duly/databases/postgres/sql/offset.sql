-- How far each stream of changes is.  The token counts the readers: what an older one writes is dropped.

-- name: offset.add
INSERT INTO duly_offset (stream, position, state) VALUES (%(stream)s, '', '{}') ON CONFLICT (stream) DO NOTHING

-- name: offset.claim
UPDATE duly_offset SET token = token + 1, updated_at = clock_timestamp() WHERE stream = %(stream)s

-- name: offset.read
SELECT position, token, state, extract(epoch FROM updated_at)::float8 FROM duly_offset WHERE stream = %(stream)s

-- name: offset.move
UPDATE duly_offset SET position = %(position)s, state = %(state)s, updated_at = clock_timestamp()
WHERE stream = %(stream)s AND token = %(token)s

-- name: offset.reset
-- By a person: whoever reads now finds itself put out and begins again from here.
UPDATE duly_offset SET position = %(position)s, state = %(state)s, token = token + 1, updated_at = clock_timestamp()
WHERE stream = %(stream)s AND token = %(token)s
