"""duly's send step over SFTP: from the connection to the name, with checkpoints on the disk.

The driver is loaded before, as it is in a worker.  Every checkpoint is a commit of SQLite with
``synchronous=FULL``.  The tail window is verified; what
reading the whole file back costs is told apart.  With ``stop_at`` the run is stopped at the first
checkpoint past that share, and what is measured is the attempt that goes on from there.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncssh

from duly.batch.delivery import Policy
from duly.batch.send import SendStep
from duly.batch.steps import StopAtCheckpoint
from duly.files.sftp import SftpTarget
from duly.kernel.backoff import Retry
from duly.testing.fault_proxy import FaultProxy

MEGABYTE = 1e6


class _Run:
    """A run of its own, that keeps its checkpoint in a file."""

    job, instance, definition, token, attempt = "bench", "bench-1", "", 1, 1
    previous_spool = partitions = None

    def __init__(self, spool: Path, stop_at: float) -> None:
        self.spool, self.stopping, self._stop_at = spool, False, stop_at
        self.params: dict[str, object] = {}
        self._db = sqlite3.connect(spool / "run.db", check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("CREATE TABLE checkpoint (id INTEGER PRIMARY KEY, data BLOB)")
        self.facts: dict[str, Any] = {}
        self.saves = 0

    def load(self) -> bytes | None:
        """The last checkpoint."""
        row = self._db.execute("SELECT data FROM checkpoint").fetchone()
        return row[0] if row else None

    async def save(self, checkpoint: bytes, *, rows: int = 0, size_bytes: int = 0) -> None:
        """Store it, and wait for the disk as a run of an App does."""
        await asyncio.to_thread(self._store, checkpoint)
        self.saves += 1
        self.stopping = self._stop_at > 0 and size_bytes >= self._stop_at

    def _store(self, checkpoint: bytes) -> None:
        self._db.execute("INSERT OR REPLACE INTO checkpoint VALUES (1, ?)", (checkpoint,))
        self._db.commit()

    def go_on(self) -> None:
        """The next attempt."""
        self.stopping, self._stop_at = False, 0.0
        self.attempt += 1

    def progress(self, *, rows: int, size_bytes: int, total_bytes: int | None = None) -> None:
        """Nobody looks."""

    def fact(self, name: str, value: str | float | bool) -> None:
        """Keep it."""
        self.facts[name] = value


def _step(given: dict[str, Any], port: int, known_hosts: str) -> SendStep:
    parts = urlsplit(given["server"])
    url = parts._replace(netloc=f"{parts.username}@{parts.hostname}:{port}").geturl()
    target = SftpTarget(url, known_hosts=known_hosts, key=given["key"], ciphers=(given["cipher"],))
    return SendStep(target, policy=Policy(replace=True), retry=Retry(attempts=2))


async def _speed(given: dict[str, Any], run: _Run) -> dict[str, Any]:
    """Megabytes per second, and apart from it what reading back costs."""
    step = _step(given, urlsplit(given["server"]).port or 22, given["known_hosts"])
    began = time.perf_counter()
    await step.run(run)
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    differences = await step.verify(run)
    again = time.perf_counter() - began
    assert not differences, differences
    return {
        "driver": f"asyncssh {asyncssh.__version__}",
        "figure": given["size"] / MEGABYTE / seconds,
        "seconds": round(seconds, 2),
        "read_back_seconds": round(again, 2),
        "verified": run.facts["send.verified"],
        "checkpoints": run.saves,
    }


def _key(known_hosts: str) -> str:
    return Path(known_hosts).read_text().partition(" ")[2]


async def _wire(given: dict[str, Any], run: _Run) -> dict[str, Any]:
    """Megabytes on the wire, both ways, of the attempt that ends the delivery."""
    parts, known = urlsplit(given["server"]), run.spool / "known_hosts"
    if given["stop_at"]:
        direct = _step(given, parts.port or 22, given["known_hosts"])
        try:
            await direct.run(run)
        except StopAtCheckpoint:
            run.go_on()
    proxy = await asyncio.to_thread(FaultProxy("127.0.0.1", parts.port or 22).start)
    try:
        key = await asyncio.to_thread(_key, given["known_hosts"])
        known.write_text(f"[127.0.0.1]:{proxy.port} {key}")
        began = time.perf_counter()
        await _step(given, proxy.port, str(known)).run(run)
        seconds = time.perf_counter() - began
        both = proxy.request_bytes + proxy.reply_bytes
    finally:
        await asyncio.to_thread(proxy.stop)
    return {"figure": both / MEGABYTE, "seconds": round(seconds, 3), "attempts": run.attempt}


def main(given: dict[str, Any]) -> None:
    """Measure once."""
    run = _Run(Path(given["spool"]), given["stop_at"] * given["size"])
    measured = asyncio.run(_wire(given, run) if given["wire"] else _speed(given, run))
    print(json.dumps({**measured, "cipher": given["cipher"]}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
