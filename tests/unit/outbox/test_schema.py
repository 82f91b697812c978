"""The life of the tables, on SQLite; the same on PostgreSQL: integration/test_operator_schema."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from duly.databases.sqlite.database import SqliteDatabase
from duly.errors import ConfigurationError, InvalidNameError, SchemaError
from duly.outbox.schema import Schema


class WithMigrations(SqliteDatabase):
    """A database whose code knows other migrations."""

    def __init__(self, url: str, *more: tuple[int, str, str]) -> None:
        super().__init__(url)
        self._more = list(more)

    def migrations(self) -> list[tuple[int, str, str]]:
        return [*super().migrations(), *self._more]


ADD_NOTE = (100, "note", "ALTER TABLE duly_outbox ADD COLUMN note TEXT;")


def meta(path: Path) -> dict[str, str]:
    with sqlite3.connect(path) as connection:
        return dict(connection.execute("SELECT name, value FROM duly_meta"))


def test_tables_make_themselves_at_start(sqlite_url: str, tmp_path: Path) -> None:
    schema = Schema(SqliteDatabase(sqlite_url), "shop")
    every = ("0001_house", "0002_offset", "0003_run", "0004_global_tx", "0005_settled")
    assert schema.status().pending == every
    schema.start()
    schema.start()
    assert meta(tmp_path / "duly.db") == {
        "schema_version": "5",
        "min_code_version": "1",
        "app": "shop",
        "lanes": "64",
        "stripes": "1024",
    }
    assert schema.check() == []
    assert schema.upgrade() == ()


def test_a_newer_program_upgrades_and_an_older_one_goes_on(sqlite_url: str) -> None:
    Schema(SqliteDatabase(sqlite_url), "shop").start()
    newer = Schema(WithMigrations(sqlite_url, ADD_NOTE), "shop")
    assert newer.status().pending == ("0100_note",)
    assert [finding.code for finding in newer.check()] == ["SCHEMA_OLDER"]
    assert newer.upgrade() == ("0100_note",)
    assert newer.check() == []
    older = Schema(SqliteDatabase(sqlite_url), "shop")
    older.start()
    assert (older.status().current, older.check()) == (100, [])


def test_tables_that_need_newer_code_are_refused(sqlite_url: str, tmp_path: Path) -> None:
    schema = Schema(SqliteDatabase(sqlite_url), "shop")
    schema.start()
    with sqlite3.connect(tmp_path / "duly.db") as connection:
        connection.execute("UPDATE duly_meta SET value = '100' WHERE name LIKE '%_version'")
    for refused in (schema.start, schema.verify, schema.upgrade):
        with pytest.raises(SchemaError) as error:
            refused()
        assert error.value.code == "SCHEMA_NEWER"


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("app", "other", "SCHEMA_OTHER_APP"),
        ("lanes", "32", "SCHEMA_LANES"),
        ("stripes", "7", "SCHEMA_LANES"),
    ],
)
def test_tables_of_others_are_refused_and_left_alone(
    sqlite_url: str, tmp_path: Path, name: str, value: str, code: str
) -> None:
    schema = Schema(WithMigrations(sqlite_url, ADD_NOTE), "shop")
    Schema(SqliteDatabase(sqlite_url), "shop").start()
    with sqlite3.connect(tmp_path / "duly.db") as connection:
        connection.execute("UPDATE duly_meta SET value = ? WHERE name = ?", (value, name))
    before = meta(tmp_path / "duly.db")
    for refused in (schema.start, schema.upgrade):
        with pytest.raises(SchemaError) as error:
            refused()
        assert error.value.code == code
    assert meta(tmp_path / "duly.db") == before


def test_a_migration_that_fails_leaves_the_version_before_it(
    sqlite_url: str, tmp_path: Path
) -> None:
    text = "ALTER TABLE duly_outbox ADD COLUMN other TEXT; SELECT 1 FROM nowhere;"
    broken = (101, "broken", text)
    schema = Schema(WithMigrations(sqlite_url, ADD_NOTE, broken), "shop")
    with pytest.raises(Exception, match="nowhere"):
        schema.upgrade()
    assert meta(tmp_path / "duly.db")["schema_version"] == "100"
    with sqlite3.connect(tmp_path / "duly.db") as connection:
        columns = {row[1] for row in connection.execute("PRAGMA table_info(duly_outbox)")}
    assert "note" in columns
    assert "other" not in columns


def test_many_starts_at_once(sqlite_url: str, tmp_path: Path) -> None:
    errors: list[Exception] = []
    start = threading.Barrier(6, timeout=10)

    def go() -> None:
        schema = Schema(WithMigrations(sqlite_url, ADD_NOTE), "shop")
        start.wait()
        try:
            schema.start()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=go) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []
    assert meta(tmp_path / "duly.db")["schema_version"] == "100"


def test_the_sql_that_is_printed_makes_the_same_tables(sqlite_url: str, tmp_path: Path) -> None:
    schema = Schema(SqliteDatabase(sqlite_url), "shop")
    with sqlite3.connect(tmp_path / "duly.db") as connection:
        connection.executescript(schema.sql())
    assert schema.status().current == 5
    assert schema.check() == []
    assert schema.sql(after=5) == ""


def test_what_somebody_changed_is_found(sqlite_url: str, tmp_path: Path) -> None:
    schema = Schema(SqliteDatabase(sqlite_url), "shop")
    schema.start()
    with sqlite3.connect(tmp_path / "duly.db") as connection:
        connection.execute("DROP INDEX duly_outbox_due")
        connection.execute("ALTER TABLE duly_failure DROP COLUMN error")
        connection.execute("DROP TABLE duly_audit")
    codes = sorted(finding.code for finding in schema.check())
    assert codes == ["COLUMN_MISSING", "INDEX_MISSING", "TABLE_MISSING"]


def test_the_mode_of_a_group_is_kept(sqlite_url: str) -> None:
    schema = Schema(SqliteDatabase(sqlite_url), "shop")
    schema.start()
    schema.record_groups({"billing": "key", "mail": "none"})
    schema.record_groups({"billing": "key"})
    schema.record_groups({})
    with pytest.raises(SchemaError) as error:
        schema.record_groups({"billing": "none", "new": "key"})
    assert error.value.code == "GROUP_MODE_CHANGED"
    with pytest.raises(InvalidNameError):
        schema.record_groups({"a b": "key"})


def test_another_prefix_is_another_house(sqlite_url: str, tmp_path: Path) -> None:
    Schema(SqliteDatabase(sqlite_url), "shop").start()
    other = Schema(SqliteDatabase(sqlite_url, prefix="mail_"), "mail")
    other.start()
    assert other.check() == []
    assert other.status().app == "mail"


def test_a_file_that_is_no_database(sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "duly.db").write_bytes(b"not a database, but longer than sixteen bytes")
    with pytest.raises(ConfigurationError) as error:
        Schema(SqliteDatabase(sqlite_url), "shop").start()
    assert error.value.code == "NOT_A_DATABASE"
