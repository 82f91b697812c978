"""A source in memory: a log of transactions that remembers what it was told and who reads it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from msgspec import structs

from duly.errors import DatabaseUnavailableError, GapError, StaleLeaseError
from duly.kernel.changes import Change, Intent, SnapshotChunk, Transaction
from duly.ports import Finding
from duly.sources import ChangeFeatures, SourceStatus, TableSpec

EVERYTHING = ChangeFeatures(True, True, True, True, True, True)
CHUNK = 2


def place(number: int) -> str:
    return f"{number:020d}"


def row_of(change: Change) -> dict[str, Any]:
    return dict(change.after or {})


class FakeSource:
    """The database; each ``open`` gives a reader. rows: for snapshots, by table."""

    features = EVERYTHING

    def __init__(self) -> None:
        self.log: list[Transaction] = []
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.confirmed = ""
        self.kept_from = 0
        self.token = 0
        self.away = False
        self.name = "memory:1"
        self.opened: list[str] = []
        self.released = 0
        self.dropped = 0
        self.found: list[Finding] = []
        self.specs: list[TableSpec] = []
        self.committed = asyncio.Event()

    def commit(self, *changes: Change, intents: tuple[Intent, ...] = ()) -> Transaction:
        """Commit a transaction; its changes get their place."""
        number = len(self.log) + 1
        at = datetime.now(UTC)
        placed = [
            structs.replace(
                change,
                source=self.name,
                position=place(number),
                ordinal=ordinal,
                committed_at=at,
                intents=intents,
            )
            for ordinal, change in enumerate(changes)
        ]
        made = Transaction(
            self.name, place(number), place(number), str(number), at, placed, intents
        )
        self.log.append(made)
        self.committed.set()
        return made

    async def identity(self) -> str:
        self._check()
        return self.name

    async def prepare(self, tables: Sequence[TableSpec]) -> str:
        self._check()
        self.specs = list(tables)
        return place(len(self.log))

    async def inspect(self, tables: Sequence[TableSpec]) -> Sequence[Finding]:
        self._check()
        return self.found

    async def open(self, tables: Sequence[TableSpec], *, position: str, token: int) -> FakeStream:
        self._check()
        if int(position) < self.kept_from:
            raise GapError("the log before it is gone", code="CDC_PURGED")
        assert token > self.token, "every opening has a newer token"
        self.token = token
        self.opened.append(position)
        return FakeStream(self, int(position), token)

    async def status(self, position: str) -> SourceStatus:
        self._check()
        behind = len(self.log) - int(position or 0)
        return SourceStatus(position, place(len(self.log)), 100 * behind, behind, 7, False)

    async def peek(
        self, tables: Sequence[TableSpec], *, position: str, limit: int
    ) -> Sequence[Transaction]:
        return self.log[int(position or 0) :][:limit]

    async def drop(self) -> None:
        self.dropped += 1

    def _check(self) -> None:
        if self.away:
            raise DatabaseUnavailableError("away")


class FakeStream:
    """One reader; chunks of a snapshot come between transactions."""

    def __init__(self, source: FakeSource, position: int, token: int) -> None:
        self._source, self._at, self._token = source, position, token
        self._chunks: list[SnapshotChunk] = []
        self._read_at = 0  # where a chunk lies: behind all that it can contain
        self.closed = False

    async def items(self) -> AsyncIterator[Transaction | SnapshotChunk | str]:
        while True:
            self._source._check()
            if self._token != self._source.token:
                raise StaleLeaseError("another reader")
            if self._chunks and self._at >= self._read_at:
                chunk = self._chunks.pop(0)
                yield replace(chunk, position=place(self._at))
            elif self._at < len(self._source.log):
                self._at += 1
                yield self._source.log[self._at - 1]
            else:
                await asyncio.sleep(0.01)

    async def snapshot(self, table: TableSpec, *, cursor: str = "") -> None:
        rows = self._source.rows.get(table.name, [])
        start, self._read_at = int(cursor or 0), len(self._source.log)
        ends = [*range(start + CHUNK, len(rows), CHUNK), len(rows)]
        for end in ends:
            changes = [
                Change(
                    self._source.name,
                    table.name,
                    "read",
                    {"id": row["id"]},
                    None,
                    row,
                    f"{place(self._at)}.{table.name}",
                    ordinal,
                )
                for ordinal, row in enumerate(rows[start:end], start)
            ]
            self._chunks.append(
                SnapshotChunk(
                    table.name, "", changes, str(end), end == len(rows), release=self._release
                )
            )
            start = end

    async def confirm(self, position: str) -> None:
        assert position >= self._source.confirmed, "what is confirmed never goes back"
        self._source.confirmed = position

    async def close(self) -> None:
        self.closed = True

    def _release(self) -> None:
        self._source.released += 1
