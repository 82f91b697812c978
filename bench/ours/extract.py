"""A query becomes a sealed file: extracted in checkpointed chunks, digested, described.

Checkpoints are durable commits in the database that is read, one for each chunk, as a run's are.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg

from bench.ours.shop import arguments, tell
from bench.rss import peak_bytes
from duly.adapters import make_row_source
from duly.batch.extract import Query
from duly.batch.formats.csv_file import CsvFile
from duly.batch.manifest import read_manifest


class Context:
    """As ``StepContext``; a checkpoint is one UPDATE under the token, committed."""

    job = instance = definition = "bench"
    attempt = token = 1
    previous_spool = partitions = None
    stopping = False

    def __init__(self, url: str, spool: Path) -> None:
        self.spool = spool
        self.params: dict[str, object] = {}
        self._db = psycopg.connect(url, autocommit=True)
        self.saves = 0
        self._db.execute("DROP TABLE IF EXISTS checkpoint")
        self._db.execute("CREATE TABLE checkpoint (token int, data bytea)")
        self._db.execute("INSERT INTO checkpoint VALUES (1, '')")

    def load(self) -> bytes | None:
        return None

    async def save(self, checkpoint: bytes, *, rows: int = 0, size_bytes: int = 0) -> None:
        self.saves += 1
        await asyncio.to_thread(
            self._db.execute, "UPDATE checkpoint SET data = %s WHERE token = 1", (checkpoint,)
        )

    def progress(self, **_: Any) -> None:
        pass

    def fact(self, name: str, value: Any) -> None:
        pass

    def close(self) -> None:
        self._db.execute("DROP TABLE checkpoint")
        self._db.close()


async def run(job: Any, context: Context) -> None:
    """Both steps."""
    for declared in (job.read, job.write):
        await declared.step(job).run(context)


def main(given: dict[str, Any]) -> None:
    """Measure once."""
    spool = Path(given["folder"]) / f"spool-{os.getpid()}"
    spool.mkdir()
    source = make_row_source(given["database"])
    job = SimpleNamespace(
        name="bench",
        read=Query(given["query"], key="id"),
        process=None,
        write=CsvFile("all.csv"),
        places=SimpleNamespace(row_source=lambda url, **_: source),
    )
    context = Context(given["database"], spool)
    began = time.perf_counter()
    asyncio.run(run(job, context))
    seconds = time.perf_counter() - began
    context.close()
    manifest = read_manifest(spool)
    tell(
        manifest.rows / seconds,
        bytes=manifest.size_bytes,
        sha256=manifest.sha256,
        checkpoints=context.saves,
        peak_mb=peak_bytes() >> 20,
    )


if __name__ == "__main__":
    main(arguments())
