"""The life of the tables on PostgreSQL, where they do not make themselves."""

from __future__ import annotations

import threading

import psycopg
import pytest

from duly.databases.postgres.database import PostgresDatabase
from duly.errors import SchemaError
from duly.outbox.schema import Schema

ADD_NOTE = (100, "note", "ALTER TABLE duly_outbox ADD COLUMN note text;")


class WithMigrations(PostgresDatabase):
    """A database whose code knows one migration more."""

    def migrations(self) -> list[tuple[int, str, str]]:
        return [*super().migrations(), ADD_NOTE]


def test_a_start_without_or_with_older_tables_is_refused_with_the_hint(postgres_url: str) -> None:
    schema = Schema(PostgresDatabase(postgres_url), "shop")
    with pytest.raises(SchemaError, match="duly db upgrade") as error:
        schema.start()
    assert error.value.code == "SCHEMA_MISSING"
    made = ("0001_house", "0002_offset", "0003_run", "0004_global_tx", "0005_settled")
    assert schema.upgrade() == made
    schema.start()
    newer = Schema(WithMigrations(postgres_url), "shop")
    with pytest.raises(SchemaError) as error:
        newer.start()
    assert error.value.code == "SCHEMA_OLDER"
    assert newer.upgrade() == ("0100_note",)
    newer.start()
    schema.start()  # code N-1 on schema N


def test_upgrades_at_once_run_each_migration_once(postgres_url: str) -> None:
    done: list[str] = []
    errors: list[Exception] = []
    start = threading.Barrier(5, timeout=10)

    def go() -> None:
        schema = Schema(WithMigrations(postgres_url), "shop")
        start.wait()
        try:
            done.extend(schema.upgrade())
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=go) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    assert errors == []
    assert done.count("0100_note") == 1
    assert Schema(WithMigrations(postgres_url), "shop").check() == []


def test_what_somebody_changed_is_found(postgres_url: str) -> None:
    schema = Schema(PostgresDatabase(postgres_url), "shop")
    schema.upgrade()
    assert schema.check() == []
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("DROP INDEX duly_inbox_once")
        connection.execute("CREATE INDEX duly_inbox_once ON duly_inbox (dedupe_key)")
        connection.execute("ALTER TABLE duly_outbox ALTER COLUMN attempts TYPE smallint")
        connection.execute("ALTER TABLE duly_outbox ADD COLUMN tenant text NOT NULL")
        connection.execute("DROP FUNCTION duly_settled")
    codes = sorted(finding.code for finding in schema.check())
    assert codes == ["COLUMN_REQUIRED", "COLUMN_TYPE", "FUNCTION_MISSING", "INDEX_DIFFERS"]


def test_the_sql_that_is_printed_makes_the_same_tables(postgres_url: str) -> None:
    schema = Schema(PostgresDatabase(postgres_url), "shop")
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(schema.sql().encode())
    assert schema.check() == []
    assert schema.status().current == 5


def test_tables_in_another_schema_are_not_ours(postgres_url: str) -> None:
    Schema(PostgresDatabase(postgres_url), "shop").upgrade()
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA other")
        connection.execute(
            "ALTER ROLE CURRENT_USER IN DATABASE "
            + connection.info.dbname
            + " SET search_path = other"
        )
    other = Schema(PostgresDatabase(postgres_url), "mail")
    assert other.status().current == 0
    other.upgrade()
    assert other.check() == []


def test_two_apps_cannot_claim_the_same_tables(postgres_url: str) -> None:
    Schema(PostgresDatabase(postgres_url)).upgrade()
    claimed: list[str] = []
    start = threading.Barrier(2, timeout=10)

    def go(name: str) -> None:
        schema = Schema(PostgresDatabase(postgres_url), name)
        start.wait()
        try:
            schema.start()
        except SchemaError:
            return
        claimed.append(name)

    threads = [threading.Thread(target=go, args=(name,)) for name in ("shop", "mail")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(claimed) == 1
    assert Schema(PostgresDatabase(postgres_url)).status().app == claimed[0]
