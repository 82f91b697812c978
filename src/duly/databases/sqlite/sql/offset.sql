-- How far each stream of changes is.  The token counts the readers: what an older one writes is dropped.

-- name: offset.add
INSERT INTO duly_offset (stream, position, state, updated_at) VALUES (:stream, '', '{}', :now) ON CONFLICT (stream) DO NOTHING

-- name: offset.claim
UPDATE duly_offset SET token = token + 1, updated_at = :now WHERE stream = :stream

-- name: offset.read
SELECT position, token, state, updated_at FROM duly_offset WHERE stream = :stream

-- name: offset.move
UPDATE duly_offset SET position = :position, state = :state, updated_at = :now
WHERE stream = :stream AND token = :token

-- name: offset.reset
-- By a person: whoever reads now finds itself put out and begins again from here.
UPDATE duly_offset SET position = :position, state = :state, token = token + 1, updated_at = :now
WHERE stream = :stream AND token = :token
