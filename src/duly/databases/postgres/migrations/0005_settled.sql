-- Makes deferred constraints speak now: the flush of keyed messages asks before it locks their keys.
CREATE OR REPLACE FUNCTION duly_settled() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    SET CONSTRAINTS ALL IMMEDIATE;
    RETURN true;
END
$$;
