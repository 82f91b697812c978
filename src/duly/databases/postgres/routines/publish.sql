-- duly_publish: a message from a trigger, or from a program in any language, in the transaction at hand.
-- Keyed messages take their key's lock before the id is drawn, as duly's own flush does.
CREATE OR REPLACE FUNCTION duly_publish(
    kind text, topic text, message_type text, payload bytea, key text DEFAULT NULL, source text DEFAULT '{app}'
) RETURNS text LANGUAGE plpgsql AS $duly$
DECLARE
    hash bigint;
    place integer := floor(random() * {lanes});
    new_id text := replace(gen_random_uuid()::text, '-', '');
    sent text := to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"');
BEGIN
    IF kind NOT IN ('event', 'command') OR topic !~ '^[A-Za-z0-9][A-Za-z0-9._-]{{0,119}}$' OR message_type = '' OR payload IS NULL THEN
        RAISE EXCEPTION 'duly_publish(kind, topic, message_type, payload, key): kind is event or command, topic is a name';
    END IF;
    IF key IS NOT NULL THEN
        IF octet_length(key) NOT BETWEEN 1 AND 1024 THEN
            RAISE EXCEPTION 'duly_publish: a key has 1 to 1024 bytes';
        END IF;
        hash := ('x' || left(md5(octet_length(topic) || ':' || topic || octet_length(key) || ':' || key), 8))::bit(32)::bigint;
        place := (hash % {stripes}) % {lanes};
        PERFORM pg_advisory_xact_lock({namespace}, (hash % {stripes})::integer);
    END IF;
    INSERT INTO duly_outbox AS o (message_id, message_type, kind, topic, key, lane, payload, headers)
    VALUES (new_id, duly_publish.message_type, duly_publish.kind, duly_publish.topic, duly_publish.key, place,
        duly_publish.payload, json_build_object('source', source, 'time', sent)::text);
    PERFORM pg_notify('duly_wake', '') FROM duly_lease WHERE asleep LIMIT 1;
    RETURN new_id;
END
$duly$;
