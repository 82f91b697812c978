"""What a table has to be to be kept in step, and what is done with values."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from duly.errors import ConfigurationError, SinkRefusedError, SinkUnavailableError
from duly.kernel.upserts import Put, Remove
from duly.sink import Batch, Feed
from duly.sinks import SqlUpsert
from duly.sinks.tabular import as_json, value_for

MARK = "duly_mark BIGINT"
NOON = datetime(2026, 1, 1, 12, 0, 0, 500, tzinfo=timezone(timedelta(hours=2)))


def run(path: Path, sql: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as db, db:
        return db.execute(sql).fetchall()


def opened(path: Path, **options: Any) -> SqlUpsert:
    sink = SqlUpsert(f"sqlite:///{path}", table="copied", **options)
    sink.open(Feed("s", 1, 1))
    return sink


@pytest.mark.parametrize(
    ("columns", "key", "code"),
    [
        ("id INTEGER PRIMARY KEY, name TEXT", (), "SINK_COLUMN"),
        (f"id INTEGER, {MARK}", (), "SINK_KEY"),
        (f"id INTEGER PRIMARY KEY, other INTEGER, {MARK}", "other", "SINK_KEY"),
        (f"id INTEGER PRIMARY KEY, name TEXT UNIQUE, {MARK}", (), ""),
    ],
)
def test_a_table_that_cannot_be_kept_in_step_is_refused(
    tmp_path: Path, columns: str, key: Any, code: str
) -> None:
    path = tmp_path / "copy.db"
    run(path, f"CREATE TABLE copied ({columns})")
    if not code:  # SQLite tells of an index only where it was made by itself
        run(path, "CREATE UNIQUE INDEX once ON copied (name)")
        code = "SINK_UNIQUE"
    with pytest.raises(ConfigurationError) as refused:
        opened(path, key=key)
    assert refused.value.code == code


def test_a_table_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        opened(tmp_path / "copy.db")
    assert refused.value.code == "SINK_TABLE"


@pytest.mark.parametrize("url", ["oracle://host/x", "nonsense", "postgresql://host:port/x"])
def test_a_url_of_nothing_we_know_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        SqlUpsert(url, table="copied").look("s")
    assert refused.value.code == "SINK_URL"


def test_a_key_of_several_columns_goes_by_names_or_as_it_is_said(tmp_path: Path) -> None:
    path = tmp_path / "copy.db"
    run(path, f"CREATE TABLE copied (a TEXT, b TEXT, v TEXT, {MARK}, PRIMARY KEY (b, a))")
    put = Put({"a": "1", "b": "2"}, {"v": "x"})
    opened(path).apply(Batch([put], "0001"))
    assert run(path, "SELECT a, b, v FROM copied") == [("1", "2", "x")]
    other = Put({"left": "3", "right": "4"}, {"v": "y"})
    with pytest.raises(SinkRefusedError) as refused:
        opened(path).apply(Batch([other], "0002"))
    assert refused.value.code == "SINK_KEY"
    opened(path, key=["a", "b"]).apply(Batch([other, Remove(put.key)], "0002"))
    assert run(path, "SELECT a, b, v FROM copied") == [("3", "4", "y")]


def test_a_row_of_another_layout_is_a_statement_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "copy.db"
    run(path, f"CREATE TABLE copied (id INTEGER PRIMARY KEY, a TEXT, b TEXT, {MARK})")
    rows = [{"a": "1"}, {"b": "2"}, {"b": "3", "a": "3"}]
    puts = [Put({"id": n}, row) for n, row in enumerate(rows)]
    opened(path).apply(Batch(puts, "0001"))
    found = run(path, "SELECT id, a, b, duly_mark FROM copied ORDER BY id")
    assert found == [(0, "1", None, 1), (1, None, "2", 1), (2, "3", "3", 1)]


def test_a_row_that_does_not_fit_is_refused_and_a_lock_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "copy.db"
    run(path, f"CREATE TABLE copied (id INTEGER PRIMARY KEY, a TEXT NOT NULL, {MARK})")
    sink = opened(path)
    with pytest.raises(SinkRefusedError):
        sink.apply(Batch([Put({"id": 1}, {"a": None})], "0001"))
    monkeypatch.setattr("duly.sinks.sql.PATIENCE_SECONDS", 0.01)
    sink = opened(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(SinkUnavailableError):
            sink.apply(Batch([Put({"id": 1}, {"a": "1"})], "0001"))
    sink.apply(Batch([Put({"id": 1}, {"a": "1"})], "0001"))
    sink.close()
    assert run(path, "SELECT id FROM copied") == [(1,)]


@pytest.mark.parametrize(
    ("value", "sqlite", "mysql"),
    [
        (NOON, "2026-01-01 12:00:00.000500+02:00", datetime(2026, 1, 1, 10, 0, 0, 500)),  # noqa: DTZ001
        (date(2026, 1, 1), "2026-01-01", date(2026, 1, 1)),
        (time(1, 2), "01:02:00", time(1, 2)),
        (timedelta(hours=1), "1:00:00", timedelta(hours=1)),
        (Decimal("1.50"), "1.50", Decimal("1.50")),
        (UUID(int=1), str(UUID(int=1)), str(UUID(int=1))),
        ([1, None], "[1,null]", "[1,null]"),
        ({"a": 1}, '{"a":1}', '{"a":1}'),
        (b"x", b"x", b"x"),
        (None, None, None),
    ],
)
def test_values_as_drivers_take_them(value: Any, sqlite: Any, mysql: Any) -> None:
    assert value_for("sqlite")(value) == sqlite
    assert value_for("mariadb")(value) == mysql


def test_postgresql_takes_all_but_objects() -> None:
    adapt = value_for("postgresql")
    assert adapt([1]) == [1]
    assert adapt({"a": NOON.astimezone(UTC)}) == '{"a":"2026-01-01T10:00:00.000500Z"}'


def test_what_has_no_form_in_json_is_refused_without_being_shown() -> None:
    with pytest.raises(SinkRefusedError, match="a value of object has no form in JSON"):
        as_json(object())
