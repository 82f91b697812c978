"""Copies of a table in another database, whatever is killed and whatever its columns hold."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy

from duly.errors import SinkUnavailableError
from duly.kernel import failpoints
from duly.outbox.schema import Schema
from duly.sink import Feed
from duly.sinks import SqlUpsert
from duly.testing.failpoints import ENVIRONMENT
from tests.integration.sinks_worker import make_app

ROOT = Path(__file__).resolve().parents[2]
WAIT_SECONDS = 60
TAG = 0x11111111222233334444555555555555
KILLED_AT = (failpoints.SINK_WRITTEN, failpoints.SINK_APPLIED)

pytestmark = pytest.mark.timeout(180)


class Place:
    """A database of the test, asked by a plain engine."""

    def __init__(self, url: str, driver: str) -> None:
        rest = url.partition("://")[2]
        self.engine = sqlalchemy.create_engine(f"{driver}://{rest}", poolclass=sqlalchemy.NullPool)

    def run(self, sql: str) -> list[Any]:
        with self.engine.begin() as connection:
            result = connection.exec_driver_sql(sql)
            return [tuple(row) for row in result] if result.returns_rows else []

    async def until(self, sql: str, expected: list[Any]) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while (found := await asyncio.to_thread(self.run, sql)) != expected:
                await asyncio.sleep(0.05)
        assert found == expected


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the App keeps its own database."""
    monkeypatch.setenv("CDC_DATABASE", f"sqlite:///{tmp_path}/duly.db")
    return tmp_path


def killed(at: str, after: int) -> None:
    """Run the program until it dies there."""
    env = {**os.environ, ENVIRONMENT: f"{at}@{after}", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    command = [sys.executable, "-m", "tests.integration.sinks_worker"]
    process = subprocess.Popen(command, cwd=ROOT, env=env)
    try:
        assert process.wait(WAIT_SECONDS) == -signal.SIGKILL
    finally:
        process.kill()


async def test_a_copy_is_the_table_whatever_is_killed(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = f"sqlite:///{own}/items.db", f"sqlite:///{own}/copy.db"
    for name, value in (("SOURCE", source), ("TARGET", target), ("TABLE", "items")):
        monkeypatch.setenv(f"SINK_{name}", value)
    items, copied = Place(source, "sqlite"), Place(target, "sqlite")
    items.run("CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT)")
    items.run(
        "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 1200) "
        "INSERT INTO items SELECT i, 'item ' || i FROM n"
    )
    copied.run("CREATE TABLE copied (id INTEGER PRIMARY KEY, name TEXT, duly_mark BIGINT)")
    copied.run("CREATE TABLE seen (id INTEGER, name TEXT)")  # every version of row 1 that there was
    for verb in ("INSERT", "UPDATE"):
        copied.run(
            f"CREATE TRIGGER after_{verb} AFTER {verb} ON copied WHEN new.id = 1 "
            "BEGIN INSERT INTO seen VALUES (new.id, new.name); END"
        )
    for number, at in enumerate(KILLED_AT):
        killed(at, 2 if number else 1)
        items.run(f"UPDATE items SET name = 'round {number}' WHERE id IN (1, 5)")
        items.run(f"DELETE FROM items WHERE id = {100 + number}")
        items.run(f"UPDATE items SET id = {9000 + number} WHERE id = {200 + number}")
    app = make_app()
    async with app.running(["cdc"]):
        query = "SELECT id, name FROM {} ORDER BY id"
        await copied.until(query.format("copied"), items.run(query.format("items")))
    versions = [name for _, name in copied.run("SELECT * FROM seen")]
    rounds = [name for name in versions if name.startswith("round")]
    assert rounds == sorted(rounds), versions  # never back in time


async def test_values_keys_and_emptied_tables_from_one_server_to_another(
    own: Path, monkeypatch: pytest.MonkeyPatch, postgres_url: str, mariadb_url: str
) -> None:
    for name, value in (
        ("SOURCE", postgres_url),
        ("TARGET", mariadb_url),
        ("TABLE", "public.items"),
    ):
        monkeypatch.setenv(f"SINK_{name}", value)
    items = Place(postgres_url, "postgresql+psycopg")
    copied = Place(mariadb_url, "mysql+pymysql")
    items.run(
        "CREATE TABLE items (id int, part text, price numeric(10,2), at timestamptz, tag uuid, "
        "extra jsonb, raw bytea, ok boolean, story text, PRIMARY KEY (id, part))"
    )
    items.run("ALTER TABLE items ALTER COLUMN story SET STORAGE EXTERNAL")
    copied.run(
        "CREATE TABLE copied (part VARCHAR(20), id INT, price DECIMAL(10,2), at DATETIME(6), "
        "tag CHAR(36), extra JSON, raw BLOB, ok BOOLEAN, story LONGTEXT, duly_mark BIGINT, "
        "PRIMARY KEY (part, id)) CHARACTER SET utf8mb4"
    )
    values = "12.50, '2026-01-01 12:00:00.5+02', '11111111-2222-3333-4444-555555555555'"
    values += """, '{"a": ["ü%?", null]}', '\\x00ff', true"""
    long = "repeat('long ', 1000)"  # lies aside, and is not in the log of an update that leaves it
    insert = f"INSERT INTO items VALUES (1, 'a', {values}, {long}), (2, 'b', {values}, 'short')"
    items.run(insert.replace("%", "%%"))
    at = datetime(2026, 1, 1, 10, 0, 0, 500_000)  # noqa: DTZ001  # MySQL has no zones
    rest: tuple[Any, ...] = (Decimal("12.50"), at, str(UUID(int=TAG)))
    rest += ('{"a":["ü%?",null]}', b"\x00\xff", 1)
    app = make_app()
    Schema(app.database, "shop").upgrade()
    everything = "SELECT id, part, price, at, tag, extra, raw, ok, story FROM copied ORDER BY id"
    async with app.running(["cdc"]):
        one, two = (1, "a", *rest, "long " * 1000), (2, "b", *rest, "short")
        await copied.until(everything, [one, two])
        items.run("UPDATE items SET price = -0.01, ok = NULL WHERE id = 1")
        items.run("UPDATE items SET part = 'c' WHERE id = 2")  # only the old key is in the log
        one = (1, "a", Decimal("-0.01"), *rest[1:5], None, "long " * 1000)
        await copied.until(everything, [one, (2, "c", *rest, "short")])
        items.run("TRUNCATE items")
        await copied.until(everything, [])
    assert copied.run("SELECT epoch FROM duly_sink") == [(1,)]  # it never began anew


def begun_beside(url: str, copied: Place, *statements: str) -> Future[None]:
    """A reader that begins while another one is at it, which commits when this one waits for it."""
    sink = SqlUpsert(url, table="copied")
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
    waiting += "AND wait_event_type = 'Lock'"
    with ThreadPoolExecutor(1) as thread, closing(copied.engine.connect()) as other:
        for statement in statements:
            other.exec_driver_sql(statement)
        opened = thread.submit(sink.open, Feed("second", 2, 1))
        while not opened.done() and copied.run(waiting) == [(0,)]:
            time.sleep(0.01)  # between two looks at what the server waits for
        other.commit()
        opened.exception(WAIT_SECONDS)
        thread.submit(sink.close).result(WAIT_SECONDS)
    return opened


def test_who_begins_beside_another_one_is_not_refused(postgres_url: str) -> None:
    copied = Place(postgres_url, "postgresql+psycopg")
    copied.run("CREATE TABLE copied (id INT PRIMARY KEY, name TEXT, duly_mark BIGINT)")
    made = "CREATE TABLE duly_sink (name VARCHAR(120) PRIMARY KEY, token BIGINT, epoch BIGINT, "
    begun_beside(postgres_url, copied, f"{made} place VARCHAR(200))").result()
    assert copied.run("SELECT name, epoch FROM duly_sink") == [("second", 1)]
    copied.run("DELETE FROM duly_sink")
    again = begun_beside(postgres_url, copied, "INSERT INTO duly_sink VALUES ('second', 1, 1, '')")
    assert isinstance(again.exception(), SinkUnavailableError)  # tried again, it finds that row
    begun_beside(postgres_url, copied, "SELECT 1").result()
    assert copied.run("SELECT name, token FROM duly_sink") == [("second", 2)]
