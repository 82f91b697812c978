"""The example of an index and a cache: killed on the way, both hold what the table holds."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 90.0
FLIGHTS = 120
KILLED_AT = (30,)

pytestmark = pytest.mark.timeout(240)


class Copies:
    """The example in a folder of its own."""

    def __init__(self, folder: Path, server: str, prefix: str) -> None:
        for name in ("service.py", "copies.py"):
            shutil.copy(ROOT / "examples" / "copies" / name, folder)
        known = {name: value for name, value in os.environ.items() if not name.startswith("DULY_")}
        own = {"PYTHONPATH": str(ROOT / "src"), "REDIS_URL": server, "REDIS_PREFIX": prefix}
        self.folder, self.environ, self.prefix = folder, {**known, **own}, prefix
        self.redis = redis.Redis.from_url(server, protocol=2, socket_timeout=10)
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, *words]
        process = subprocess.Popen(command, cwd=self.folder, env=self.environ)
        self.started.append(process)
        return process

    def ask(self, file: str, sql: str) -> list[Any]:
        with closing(sqlite3.connect(self.folder / file, timeout=30)) as db:
            try:
                return db.execute(sql).fetchall()
            except sqlite3.OperationalError:  # there is no such table yet
                return []

    def indexed(self) -> dict[int, tuple[str, ...]]:
        rows = self.ask(
            "search.db",
            "SELECT key, flight, text FROM found_duly AS f JOIN found ON found.rowid = f.id",
        )
        return {int(key): tuple(rest) for key, *rest in rows}

    def cached(self) -> dict[int, dict[str, Any]]:
        names = list(self.redis.scan_iter(match=f"{self.prefix}*", count=1000))
        names = [name for name in names if not name.startswith(f"{self.prefix}duly".encode())]
        values = self.redis.mget(names) if names else []
        found = [json.loads(value) for value in values if value is not None]
        return {row["id"]: row for row in found}

    def table(self) -> dict[int, dict[str, Any]]:
        names = ("id", "carrier", "number", "dest", "status", "delay")
        rows = self.ask("flights.db", "SELECT * FROM flights")
        return {row[0]: dict(zip(names, row, strict=True)) for row in rows}

    def until(self, what: Callable[[], object]) -> None:
        end = time.monotonic() + LIMIT_SECONDS
        while not what():
            counts = [len(self.table()), len(self.indexed()), len(self.cached())]
            assert time.monotonic() < end, counts
            time.sleep(0.05)  # between two looks


@pytest.fixture
def copies(tmp_path: Path, redis_url: str) -> Iterator[Copies]:
    at = urlsplit(redis_url)
    made = Copies(
        tmp_path, at._replace(query="").geturl(), at.query.removeprefix("prefix=") + "flight:"
    )
    yield made
    for process in made.started:
        process.kill()
        process.wait(10)


def expected_text(row: dict[str, Any]) -> tuple[str, str]:
    late = "late" if (row["delay"] or 0) > 60 else ""
    return f"{row['carrier']}{row['number']}", f"{row['status']} {late}"


def test_index_and_cache_hold_what_the_table_holds_whatever_is_killed(copies: Copies) -> None:
    assert copies.start("service.py", "0").wait(LIMIT_SECONDS) == 0
    running = copies.start("-m", "duly", "run", "copies:app", "--roles", "cdc")
    service = copies.start("service.py", str(FLIGHTS))
    for count in KILLED_AT:
        copies.until(lambda count=count: len(copies.indexed()) >= count)  # type: ignore[misc]
        running.kill()
        running.wait(10)
        running = copies.start("-m", "duly", "run", "copies:app", "--roles", "cdc")
    assert service.wait(LIMIT_SECONDS) == 0
    table = copies.table()
    assert FLIGHTS * 0.8 < len(table) < FLIGHTS
    shown = {id_: row for id_, row in table.items() if row["status"] != "cancelled"}
    texts = {id_: expected_text(row) for id_, row in table.items()}
    copies.until(lambda: copies.indexed() == texts)
    copies.until(lambda: copies.cached() == shown)
