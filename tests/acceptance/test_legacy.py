"""The example of an old system: killed on its way, its board is right to the flight."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from duly.admin.demo.data import load

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 90.0
FLIGHTS = 2_000
KILLED_AT = 60
COUNTED = "SELECT sum(departed + cancelled) FROM board"

pytestmark = pytest.mark.timeout(240)


class Airport:
    """The example in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        for name in ("legacy.py", "meaning.py"):
            shutil.copy(ROOT / "examples" / "legacy" / name, folder)
        known = {name: value for name, value in os.environ.items() if not name.startswith("DULY_")}
        environ = {**known, "PYTHONPATH": str(ROOT / "src")}
        self.folder, self.options = folder, {"cwd": folder, "env": environ}
        self.started: list[subprocess.Popen[Any]] = []

    def start(self, *words: str) -> subprocess.Popen[Any]:
        process = subprocess.Popen([sys.executable, *words], **self.options)  # type: ignore[call-overload]
        self.started.append(process)
        return process  # type: ignore[no-any-return]

    def run(self, *words: str) -> str:
        command = [sys.executable, *words]
        done = subprocess.run(  # type: ignore[call-overload]
            command, **self.options, capture_output=True, text=True, timeout=LIMIT_SECONDS
        )
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    def ask(self, sql: str, *, of: str = "operations") -> list[Any]:
        with closing(sqlite3.connect(self.folder / f"{of}.db", timeout=30)) as db:
            try:
                return db.execute(sql).fetchall()
            except sqlite3.OperationalError:  # there is no such table yet
                return []

    def number(self, sql: str, *, of: str = "operations") -> int:
        found = self.ask(sql, of=of)
        return int(found[0][0] or 0) if found else 0

    def until(self, what: Callable[[], object]) -> None:
        end = time.monotonic() + LIMIT_SECONDS
        while not what():
            assert time.monotonic() < end, self.ask("SELECT * FROM board")
            time.sleep(0.02)  # between two looks


@pytest.fixture
def airport(tmp_path: Path) -> Any:
    made = Airport(tmp_path)
    yield made
    for process in made.started:
        process.kill()
        process.wait(10)


def test_the_board_of_an_old_system_is_right_to_the_flight(airport: Airport) -> None:
    airport.run("legacy.py", "0")
    reader = airport.start("-m", "duly", "run", "meaning:app")
    airport.until(lambda: airport.ask("SELECT 1 FROM duly_offset WHERE position > ''"))
    legacy = airport.start("legacy.py", str(FLIGHTS))
    airport.until(lambda: airport.number(COUNTED) >= KILLED_AT)
    reader.kill()
    reader.wait(10)
    assert airport.number(COUNTED) < FLIGHTS
    airport.start("-m", "duly", "run", "meaning:app")
    assert legacy.wait(LIMIT_SECONDS) == 0
    airport.until(lambda: airport.number(COUNTED) >= FLIGHTS)
    assert airport.run("legacy.py", "--check") == "the same\n"
    flights = load(FLIGHTS)
    told = sorted((f.id,) for f in flights if f.cancelled or f.long_delayed)
    corrected = sorted((f.id,) for f in flights if (f.delay or 0) < 0 and f.id % 2 == 0)
    assert told
    assert corrected
    airport.until(lambda: airport.number("SELECT count(*) FROM told") >= len(told))
    airport.until(lambda: airport.number("SELECT count(*) FROM corrected") >= len(corrected))
    assert airport.ask("SELECT flight FROM told ORDER BY flight") == told
    assert airport.ask("SELECT flight FROM corrected ORDER BY flight") == corrected
    (stood,) = airport.ask("SELECT state FROM duly_offset")
    assert "trouble" not in stood[0] or '"trouble":null' in stood[0]
