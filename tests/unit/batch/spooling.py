"""An extraction by itself: a table in SQLite, a context that remembers, and a disk that forgets."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from duly.adapters import make_row_source
from duly.batch import spool
from duly.batch.extract import Query
from duly.batch.formats.csv_file import CsvFile
from duly.batch.manifest import Manifest, read_manifest
from duly.errors import StaleLeaseError
from duly.rows import Key, Reading, RowQuery
from duly.testing.failpoints import FailpointError, Plan, armed

CHUNK = 2048
COUNT = 600


@dataclass
class Context:
    """As ``StepContext``. stored: what was saved, by step. stale: another attempt has the run."""

    spool: Path
    stored: dict[str, bytes] = field(default_factory=dict)
    previous_spool: Path | None = None
    partitions: Any = None
    params: dict[str, object] = field(default_factory=dict)
    attempt: int = 1
    token: int = 1
    job: str = "job"
    instance: str = "job-0123"
    definition: str = "d"
    stopping: bool = False
    stop_after: int = 0
    stale: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    step: str = "extract"
    saves: int = 0

    def __post_init__(self) -> None:
        self.spool.mkdir(parents=True, exist_ok=True)

    def load(self) -> bytes | None:
        return self.stored.get(self.step)

    async def save(self, checkpoint: bytes, *, rows: int = 0, size_bytes: int = 0) -> None:
        if self.stale:
            raise StaleLeaseError("another attempt has the run")
        assert len(checkpoint) <= 64 * 1024
        self.stored[self.step] = checkpoint
        self.saves += 1
        if self.saves == self.stop_after:
            self.stopping = True

    def progress(self, **_: Any) -> None:
        pass

    def fact(self, name: str, value: Any) -> None:
        self.facts[name] = value

    @property
    def rows(self) -> int:
        """Stored by the extraction."""
        stored = self.stored.get("extract")
        return sum(p["rows"] for p in msgspec.json.decode(stored)["parts"]) if stored else 0

    def next(self, folder: Path, **changed: Any) -> Context:
        """The attempt after this one, which sees this one's spool."""
        given = {"previous_spool": self.spool, "stored": dict(self.stored), **changed}
        return Context(folder, attempt=self.attempt + 1, token=self.token + 1, **given)


class Watched:
    """A source of rows that notes from which key each reading began."""

    def __init__(self, source: Any, began: list[Key | None]) -> None:
        self._source, self._began = source, began
        self.features, self.dialect = source.features, source.dialect

    def open(self, *, moment: str = "") -> Any:
        reader = self._source.open(moment=moment)
        read = reader.read

        def noted(query: RowQuery, reading: Reading) -> Any:
            self._began.append(reading.after)
            return read(query, reading)

        reader.read = noted
        return reader


@dataclass
class World:
    """A job over one table. began: where each reading began."""

    url: str
    began: list[Key | None] = field(default_factory=list)

    def job(self, *, write: Any = None, process: Any = None, **query: Any) -> Any:
        given = {"text": "SELECT * FROM payout", "key": "id", "chunk_bytes": CHUNK, **query}
        places = SimpleNamespace(
            row_source=lambda url, **_: Watched(make_row_source(url or self.url), self.began)
        )
        return SimpleNamespace(
            name="job",
            read=Query(**given),
            process=process,
            write=write or CsvFile("all.csv"),
            places=places,
        )

    def run(self, job: Any, context: Context) -> Manifest:
        """Both steps, to their end."""

        async def both() -> None:
            for step, declared in (("extract", job.read), ("write", job.write)):
                context.step = step
                await declared.step(job).run(context)

        try:
            asyncio.run(both())
        finally:
            context.step = "extract"
        return read_manifest(context.spool)

    def broken_off(self, job: Any, context: Context, plan: Plan) -> None:
        """Both steps, until the plan fires."""
        with armed(plan), pytest.raises(FailpointError):
            self.run(job, context)

    def change(self, *statements: str) -> None:
        """Statements on the table."""
        with closing(sqlite3.connect(self.url.removeprefix("sqlite:///"))) as db, db:
            for statement in statements:
                db.execute(statement)


def make_world(folder: Path, count: int = COUNT) -> World:
    """A file with rows 1 to count."""
    path = folder / "source.db"
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE payout (id INTEGER PRIMARY KEY, name TEXT, cents INTEGER)")
        rows = [(n, None if n % 5 == 0 else f'n "{n}"', n * 7) for n in range(1, count + 1)]
        db.executemany("INSERT INTO payout VALUES (?, ?, ?)", rows)
    return World(f"sqlite:///{path}")


class Disk:
    """Remembers what of a folder would be there after a loss of power: bytes that were synced,
    under names whose folder was synced.
    """

    def __init__(self) -> None:
        self._bytes: dict[int, bytes] = {}
        self._names: dict[Path, dict[str, int]] = {}

    def synced(self, handle: int) -> None:
        """A file was."""
        size = os.fstat(handle).st_size
        self._bytes[os.fstat(handle).st_ino] = os.pread(handle, size, 0)

    def folder_synced(self, folder: Path) -> None:
        """The names of a folder were."""
        self._names[folder] = {p.name: p.stat().st_ino for p in folder.iterdir()}

    def lose_power(self, folder: Path) -> None:
        """The folder as it would be found."""
        names = self._names.get(folder, {})
        shutil.rmtree(folder)
        folder.mkdir()
        for name, inode in names.items():
            (folder / name).write_bytes(self._bytes.get(inode, b""))


@contextmanager
def forgetful(patch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """A disk under all spools, in this block."""
    disk = Disk()
    sync_folder, fdatasync = spool.sync_folder, os.fdatasync

    def synced(handle: int) -> None:
        fdatasync(handle)
        disk.synced(handle)

    def folder_synced(folder: Path) -> None:
        sync_folder(folder)
        disk.folder_synced(folder)

    with patch.context() as inner:
        inner.setattr(spool.os, "fdatasync", synced)
        inner.setattr(spool, "sync_folder", folder_synced)
        yield disk
