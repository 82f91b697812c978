-- duly_publish: a message from a trigger, or from a program in any language, in the transaction at hand.
-- Keyed messages take their key's lock before the id is drawn, as duly's own flush does.
CREATE PROCEDURE duly_publish(
    IN new_kind varchar(16), IN new_topic varchar(255) CHARACTER SET utf8mb4, IN new_type varchar(255) CHARACTER SET utf8mb4,
    IN new_payload longblob, IN new_key varbinary(2048)
)
MODIFIES SQL DATA SQL SECURITY INVOKER
BEGIN
    DECLARE hash bigint;
    DECLARE place int DEFAULT floor(rand() * {lanes});
    IF new_kind IS NULL OR new_kind NOT IN ('event', 'command') OR new_type IS NULL OR new_type = '' OR new_payload IS NULL
        OR new_topic IS NULL OR new_topic NOT REGEXP '^[A-Za-z0-9][A-Za-z0-9._-]*$' OR char_length(new_topic) > 120 THEN
        SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'duly_publish(kind, topic, type, payload, key): kind is event or command';
    END IF;
    IF new_key IS NOT NULL THEN
        IF length(new_key) NOT BETWEEN 1 AND 1024 THEN
            SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'duly_publish: a key has 1 to 1024 bytes';
        END IF;
        SET hash = conv(left(md5(concat(length(new_topic), ':', CAST(new_topic AS BINARY), length(new_key), ':', new_key)), 8), 16, 10);
        SET place = (hash MOD {stripes}) MOD {lanes};
        UPDATE duly_stripe FORCE INDEX (PRIMARY) SET flushes = flushes + 1 WHERE id = hash MOD {stripes};
    END IF;
    INSERT INTO duly_outbox (message_id, message_type, kind, topic, `key`, lane, payload, headers)
    VALUES (replace(uuid(), '-', ''), new_type, new_kind, new_topic, new_key, place, new_payload,
        JSON_OBJECT('source', '{app}', 'time', date_format(UTC_TIMESTAMP(6), '%Y-%m-%dT%H:%i:%s.%f+00:00')));
END
