-- How far each stream of changes is.  The token counts the readers: what an older one writes is dropped.

-- name: offset.add
INSERT IGNORE INTO duly_offset (stream, position, state) VALUES (%(stream)s, '', '{}')

-- name: offset.claim
UPDATE duly_offset SET token = token + 1, updated_at = UTC_TIMESTAMP(6) WHERE stream = %(stream)s

-- name: offset.read
SELECT position, token, state, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', updated_at) / 1e6 FROM duly_offset WHERE stream = %(stream)s

-- name: offset.move
UPDATE duly_offset SET position = %(position)s, state = %(state)s, updated_at = UTC_TIMESTAMP(6)
WHERE stream = %(stream)s AND token = %(token)s

-- name: offset.reset
-- By a person: whoever reads now finds itself put out and begins again from here.
UPDATE duly_offset SET position = %(position)s, state = %(state)s, token = token + 1, updated_at = UTC_TIMESTAMP(6)
WHERE stream = %(stream)s AND token = %(token)s
