"""What a test is given is empty, whatever the one before has left."""

from __future__ import annotations

import psycopg
import pytest

from tests.fresh_postgres import FreshPostgres

LEFT = """
CREATE SCHEMA other; CREATE TABLE public.a (id int); CREATE TYPE other.b AS ENUM ('x');
CREATE FUNCTION c() RETURNS int LANGUAGE sql AS 'SELECT 1';
"""
OIDS = "SELECT oid FROM pg_database WHERE datname = current_database()"
THINGS = "SELECT (SELECT count(*) FROM pg_class), (SELECT count(*) FROM pg_proc)"


def asked(url: str, text: str) -> object:
    with psycopg.connect(url, autocommit=True) as db:
        cursor = db.execute(text.encode())
        return cursor.fetchone() if cursor.description else None


def test_a_database_comes_again_empty_under_another_name(fresh_postgres: FreshPostgres) -> None:
    first = fresh_postgres.take()
    new, things = asked(first, OIDS), asked(first, THINGS)
    asked(first, LEFT)
    with psycopg.connect(first) as somebody:
        somebody.execute("SELECT 1")
        fresh_postgres.give_back(first)
        with pytest.raises(psycopg.OperationalError):
            somebody.execute("SELECT 1")
    second = fresh_postgres.take()
    assert (asked(second, OIDS), asked(second, THINGS)) == (new, things)
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        asked(first, "SELECT 1")
    fresh_postgres.give_back(second)


@pytest.mark.parametrize(
    "text",
    ["CREATE PUBLICATION p", "SELECT lo_create(0)", "GRANT TEMP ON DATABASE {name} TO PUBLIC",
     "ALTER DATABASE {name} SET jit = off"],
)  # fmt: skip
def test_a_database_with_more_than_schemas_does_not_come_again(
    fresh_postgres: FreshPostgres, text: str
) -> None:
    url = fresh_postgres.take()
    used = asked(url, OIDS)
    asked(url, text.format(name=url.rpartition("/")[2]))
    fresh_postgres.give_back(url)
    after = fresh_postgres.take()
    assert asked(after, OIDS) != used
    fresh_postgres.give_back(after)
