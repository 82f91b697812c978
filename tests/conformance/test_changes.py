"""Our own change sources, held to the public suite with the features that required.toml pins."""

from __future__ import annotations

import sqlite3
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pymysql
import pytest

from duly.databases.mysql.changes import MysqlChanges
from duly.databases.mysql.changes_catalog import find_server, rows_of
from duly.databases.mysql.changes_readers import Readers
from duly.databases.postgres.changes import PostgresChanges
from duly.databases.sqlite.changes import SqliteChanges
from duly.runtime.clock import SystemClock
from duly.sources import ChangeFeatures
from duly.testing.change_conformance import THING, ChangeConformance, Target
from tests.conftest import mariadb

REQUIRED = tomllib.loads((Path(__file__).parent / "required.toml").read_text())["changes"]


def required(name: str) -> ChangeFeatures:
    return ChangeFeatures(**REQUIRED[name])


class TestSqlite(ChangeConformance):
    """A foreign program on connections of its own, with the settings that sqlite3 has by itself."""

    @pytest.fixture
    def target(self, sqlite_url: str, tmp_path: Path) -> Target:
        path = str(tmp_path / "duly.db")

        def connect() -> Any:
            return closing(sqlite3.connect(path, isolation_level=None, timeout=10))

        def run(statements: Sequence[str], commit: bool) -> None:
            with connect() as db:
                db.execute("BEGIN IMMEDIATE")
                for text in statements:
                    db.execute(text)
                db.execute("COMMIT" if commit else "ROLLBACK")

        def rows(table: str) -> list[Mapping[str, Any]]:
            with connect() as db:
                db.row_factory = sqlite3.Row
                return [dict(row) for row in db.execute(f'SELECT * FROM "{table}"')]

        with connect() as db:
            db.execute("PRAGMA journal_mode=WAL")
        return Target(
            make=lambda reader: SqliteChanges(
                sqlite_url, reader=reader, clock=SystemClock(), keep=0
            ),
            features=required("sqlite"),
            run=run,
            rows=rows,
            mark=lambda statements: [_say("BEGIN"), *statements, _say("COMMIT")],
            intent=lambda name, data: _say(name, f"x'{data.hex()}'"),
            replace=lambda table, values: f"INSERT OR REPLACE INTO {table} VALUES {values}",
            gaps=_gaps(path, run),
        )


def _say(name: str, data: str = "NULL") -> str:
    return f"INSERT INTO duly_intent (name, data) VALUES ('{name}', {data})"


def _gaps(path: str, run: Callable[[Sequence[str], bool], None]) -> dict[str, Callable[[], None]]:
    def purge() -> None:
        run(["DELETE FROM duly_change WHERE seq = (SELECT max(seq) FROM duly_change)"], True)
        run(
            ["INSERT INTO duly_change (seq, shape, op) SELECT max(seq) + 2, 0, 0 FROM duly_change"],
            True,
        )

    def rebuild() -> None:
        run(
            [
                "CREATE TABLE fresh (id INTEGER PRIMARY KEY, name TEXT, amount BIGINT)",
                "INSERT INTO fresh SELECT * FROM gap2",
                "DROP TABLE gap2",
                "ALTER TABLE fresh RENAME TO gap2",
            ],
            True,
        )

    def drop_trigger() -> None:
        run(['DROP TRIGGER "duly_change update gap3"'], True)

    def restore() -> None:
        with closing(sqlite3.connect(path)) as db:
            db.execute("DELETE FROM duly_change WHERE seq > 1")
            db.commit()

    return {"purged": purge, "rebuilt": rebuild, "dropped": drop_trigger, "restored": restore}


class TestPostgres(ChangeConformance):
    """A foreign program on psycopg; history is lost by what can befall a replication slot."""

    @pytest.fixture
    def target(self, postgres_url: str) -> Iterator[Target]:
        db = psycopg.connect(postgres_url)

        def run(statements: Sequence[str], commit: bool) -> None:
            for text in statements:
                db.execute(text.encode())
            (db.commit if commit else db.rollback)()

        def rows(table: str) -> list[Mapping[str, Any]]:
            with db.cursor(row_factory=psycopg.rows.dict_row) as cursor:
                found: list[Mapping[str, Any]] = [
                    *cursor.execute(f'SELECT * FROM "{table}"'.encode())
                ]
            db.commit()
            return found

        def slots(sql: str) -> None:
            where = "FROM pg_replication_slots WHERE database = current_database()"
            run([f"SELECT {sql} {where}"], True)

        yield Target(
            make=lambda reader: PostgresChanges(postgres_url, reader=reader, clock=SystemClock()),
            features=required("postgres"),
            run=run,
            rows=rows,
            named=lambda table: f"public.{table}",
            whole=lambda table: [f'ALTER TABLE "{table.replace(chr(34), 2 * chr(34))}" {_FULL}'],
            intent=lambda name, data: (
                f"SELECT pg_logical_emit_message(true, 'duly.intent:{name}', {_bytea(data)})"
            ),
            gaps={
                "moved": lambda: slots(
                    "pg_replication_slot_advance(slot_name, pg_current_wal_lsn())"
                ),
                "dropped": lambda: slots("pg_drop_replication_slot(slot_name)"),
            },
            cut=lambda: slots("pg_terminate_backend(active_pid)"),
        )
        _drop_slots(db)


_FULL = "REPLICA IDENTITY FULL"
_NOW = "pg_current_wal_lsn()"


def _bytea(data: bytes) -> str:
    return f"'\\x{data.hex()}'::bytea"


def _drop_slots(db: Any) -> None:
    """A database with a slot that is being left cannot be dropped."""
    where = "FROM pg_replication_slots WHERE database = current_database()"
    db.rollback()
    db.autocommit = True
    end = time.monotonic() + 20
    while db.execute(f"SELECT active_pid {where} AND active_pid IS NOT NULL").fetchall():
        assert time.monotonic() < end, "a reader did not let go"
        time.sleep(0.02)  # a server process needs a moment to end
    db.execute(f"SELECT pg_drop_replication_slot(slot_name) {where}")
    db.close()


class TestMariadb(ChangeConformance):
    """A foreign program on PyMySQL; history is lost by what can befall a table in the log. What the
    whole server's log can lose is tried on a server of its own, in tests/integration.
    """

    @pytest.fixture
    def target(self, mariadb_url: str) -> Iterator[Target]:
        db = mariadb(mariadb_url)
        db.autocommit(False)  # the driver's signature
        ask = rows_of(db)
        schema = mariadb_url.rpartition("/")[2]

        def run(statements: Sequence[str], commit: bool) -> None:
            for text in statements:
                ask(text)
            (db.commit if commit else db.rollback)()

        def rows(table: str) -> list[Mapping[str, Any]]:
            with db.cursor(pymysql.cursors.DictCursor) as cursor:
                cursor.execute(f"SELECT * FROM `{table}`")
                found: list[Mapping[str, Any]] = [*cursor.fetchall()]
            db.commit()
            return found

        def swap() -> None:
            ask("CREATE TABLE fresh LIKE gap2")
            ask("RENAME TABLE gap2 TO old, fresh TO gap2")

        def as_text() -> None:
            ask("SET SESSION binlog_format = STATEMENT")
            run(["UPDATE gap3 SET name = 'text'"], True)
            ask("SET SESSION binlog_format = ROW")

        def cut() -> None:
            for reader in Readers(schema, "r").known(ask, find_server(ask)):
                ask(f"KILL {reader.connection}")

        ask(_INTENTS)
        yield Target(
            make=lambda reader: MysqlChanges(mariadb_url, reader=reader, clock=SystemClock()),
            features=required("mariadb"),
            run=run,
            rows=rows,
            quote=lambda name: "`" + name.replace("`", "``") + "`",
            intent=lambda name, data: (
                f"INSERT INTO duly_intent (name, data) VALUES ('{name}', x'{data.hex()}')"
            ),
            replace=lambda table, values: f"REPLACE INTO {table} VALUES {values}",
            replaced_by=("delete", "update"),
            upsert=lambda key, changes: (
                f"ON DUPLICATE KEY UPDATE {changes or '{0} = {0}'.format(key.split(',')[0])}"
            ),
            gaps={
                "made anew": lambda: run([f"CREATE OR REPLACE TABLE gap1 ({THING})"], True),
                "swapped": swap,
                "logged as text": as_text,
            },
            cut=cut,
        )
        db.close()


_INTENTS = """
CREATE TABLE duly_intent (
  id BIGINT AUTO_INCREMENT PRIMARY KEY, name VARCHAR(200) NOT NULL, data LONGBLOB)
"""
