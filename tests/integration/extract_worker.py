"""One attempt of an extraction in a process of its own, to be killed. Checkpoints are rows of a
SQLite file, written under the token; a line of the journal tells where a reading begins.

    python -m tests.integration.extract_worker '{"url": ..., "folder": ..., "attempt": 1, ...}'
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from duly.adapters import make_row_source
from duly.batch.extract import Query
from duly.batch.formats.csv_file import CsvFile
from duly.batch.manifest import read_manifest
from duly.errors import DulyError, StaleLeaseError
from duly.testing import failpoints


class Context:
    """As ``StepContext``, over a file that outlives the process."""

    job = instance = definition = "job"
    stopping = False
    partitions = None

    def __init__(self, given: dict[str, Any]) -> None:
        self.folder = Path(given["folder"])
        self.attempt = self.token = given["attempt"]
        self.spool = self.folder / f"{self.attempt}"
        self.spool.mkdir(exist_ok=True)
        self.step = ""
        self.params: dict[str, object] = {}
        self.previous_spool: Path | None = None
        self._db = sqlite3.connect(
            self.folder / "runs.db", isolation_level=None, check_same_thread=False
        )
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("CREATE TABLE IF NOT EXISTS lease (token INTEGER)")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS checkpoint (step TEXT PRIMARY KEY, data BLOB, spool TEXT)"
        )
        self._db.execute("DELETE FROM lease")
        self._db.execute("INSERT INTO lease VALUES (?)", (self.token,))

    def load(self) -> bytes | None:
        row = self._db.execute(
            "SELECT data, spool FROM checkpoint WHERE step = ?", (self.step,)
        ).fetchone()
        if row is None:
            return None
        before = Path(row[1])
        self.previous_spool = before if before != self.spool and before.exists() else None
        return bytes(row[0])

    async def save(self, checkpoint: bytes, *, rows: int = 0, size_bytes: int = 0) -> None:
        done = self._db.execute(
            "INSERT INTO checkpoint SELECT ?, ?, ? FROM lease WHERE token = ? "
            "ON CONFLICT (step) DO UPDATE SET data = excluded.data, spool = excluded.spool",
            (self.step, checkpoint, str(self.spool), self.token),
        )
        if done.rowcount != 1:
            raise StaleLeaseError("another attempt has the run")

    def progress(self, **_: Any) -> None:
        pass

    def fact(self, name: str, value: Any) -> None:
        self.tell(name, value)

    def tell(self, name: str, value: Any) -> None:
        with (self.folder / "journal.jsonl").open("a") as file:
            file.write(json.dumps([self.attempt, name, value]) + "\n")


def _peak_mb() -> int:
    """Of this program alone: what getrusage tells begins with what its parent had at the fork."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024


def watched(source: Any, context: Context) -> Any:
    """The source, with a line in the journal where a reading begins."""
    opened = source.open

    def open_(**moment: str) -> Any:
        reader = opened(**moment)
        read = reader.read

        def noted(query: Any, reading: Any) -> Any:
            context.tell("after", reading.after)
            return read(query, reading)

        reader.read = noted
        return reader

    source.open = open_
    return source


async def run(job: Any, context: Context) -> None:
    """Both steps."""
    for name, declared in (("extract", job.read), ("write", job.write)):
        context.step = name
        await declared.step(job).run(context)


def main(given: dict[str, Any]) -> None:
    """One attempt."""
    failpoints.arm_from_environment()
    context = Context(given)
    source = watched(make_row_source(given["url"]), context)
    job = SimpleNamespace(
        name="job",
        read=Query(given["text"], key=given.get("key", "id"), **given.get("query", {})),
        process=None,
        write=CsvFile("all.csv", last_line="{rows}"),
        places=SimpleNamespace(row_source=lambda url, **_: source),
    )
    try:
        asyncio.run(run(job, context))
    except DulyError as error:
        told: dict[str, Any] = {"code": error.code, "text": str(error)}
    else:
        manifest = read_manifest(context.spool)
        told = {"path": str(manifest.path), "rows": manifest.rows, "sha256": manifest.sha256}
    told["peak_mb"] = _peak_mb()
    print(json.dumps(told))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)
