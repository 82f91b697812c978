"""The row "crash batch cell": a gigabyte in one cell, on its way into a process of a few megabytes.

The row is refused by a code before the server sends it, whatever stands before it; then the cell is
taken away, and the same run goes on behind what was stored.  Nothing is killed here: what would be
killed, by the kernel and for want of memory, is everything else on the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg

from tests.crash import report
from tests.crash.batch import own_database
from tests.crash.checker import Verdict
from tests.crash.pairs import Place
from tests.crash.report import Result
from tests.crash.stage import now

NAME = "crash batch cell"
CELL_BYTES = 1_000_000_000  # PostgreSQL's own limit is not far above
ROWS = 2_000
LARGE_ROW = 1_500
MEMORY_MB_MAX = 100
SECONDS_MAX = 300.0
ROOT = Path(__file__).resolve().parents[2]


def run(place: Place, *, seed: int) -> Result:
    """The row. Never raises for what it finds."""
    folder = place.folder / f"cell-{os.getpid()}"
    folder.mkdir(parents=True)
    verdict, began, troubles, peak = Verdict(), now(), [], 0
    with own_database() as url:
        try:
            ask(url, "CREATE TABLE large (id int PRIMARY KEY, body text)")
            ask(url, f"INSERT INTO large SELECT g, 'a' FROM generate_series(1, {ROWS}) g")
            ask(
                url,
                f"UPDATE large SET body = repeat('x', {CELL_BYTES}) WHERE id = {LARGE_ROW}",
            )
            first = extract(url, folder, 1, place.source)
            ask(url, f"UPDATE large SET body = 'a' WHERE id = {LARGE_ROW}")
            again = extract(url, folder, 2, place.source)
            peak = max(first["peak_mb"], again["peak_mb"])
            verdict.attempted = verdict.acknowledged = ROWS
            verdict.delivered = again.get("rows", 0)
            verdict.lost = ROWS - verdict.delivered
            if first.get("code") != "BATCH_ROW_TOO_LARGE":
                troubles.append(f"it was not refused: {first}")
            if peak >= MEMORY_MB_MAX:
                troubles.append(f"it took {peak} MB of memory")
        except Exception as error:  # a red row, with what it saw until then
            troubles.append(f"broke off: {type(error).__name__}: {error}"[:500])
    faults = f"a cell of {CELL_BYTES:,} bytes, {peak} MB of memory at most"
    return report.make(
        NAME, faults, verdict, kills=0, lease=0.0, seed=seed, troubles=troubles,
        seconds=now() - began,
    )  # fmt: skip


def ask(url: str, sql: str) -> None:
    """One statement."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.encode())


def extract(url: str, folder: Path, attempt: int, source: Path) -> dict[str, Any]:
    """One attempt in a process of its own; what it told."""
    asked = {"url": url, "folder": str(folder), "attempt": attempt, "text": "SELECT * FROM large"}
    asked["query"] = {"chunk_bytes": 4096}
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.extract_worker", json.dumps(asked)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(source), str(ROOT)])},
        stdout=subprocess.PIPE,
        check=True,
        timeout=SECONDS_MAX,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
