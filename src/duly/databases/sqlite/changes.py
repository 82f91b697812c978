"""The changes of a SQLite file: triggers write them down, readers follow.

SQLite has no log that could be read; its own hooks see one connection only.  So capturing changes
the schema - tables ``duly_change*``, a view ``duly_intent``, five triggers on each table - and sees
what every process and every driver writes, in the transaction that writes it.  Owns the async face
of ``reader`` and what is done without an open reader.  Invariant: one thread per stream touches its
connection, and preparing never hides that triggers were lost.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any, TypeVar

from duly.databases.sqlite.capture import (
    State,
    capture,
    examine,
    kept_before,
    key_of,
    make_tables,
    mark_gap,
    remove_tables,
    source_of,
)
from duly.databases.sqlite.changelog import Log, Wanted, number_of, position_of
from duly.databases.sqlite.inspection import inspect_file
from duly.databases.sqlite.reader import Access, Reader, Who
from duly.databases.sqlite.table import read_table
from duly.errors import ConfigurationError, DatabaseUnavailableError, DulyError
from duly.kernel.changes import SnapshotChunk, Transaction
from duly.kernel.names import check_name
from duly.ports import Clock, Finding, Severity
from duly.sources import ChangeFeatures, SourceStatus, TableSpec

__all__ = ["SqliteChanges", "SqliteStream"]

T = TypeVar("T")
KEEP = 1_000
WAIT_SECONDS = 0.5
_ACTIVE_SECONDS = 30.0
_IDLE_SECONDS = 3600.0


class SqliteChanges:
    """The changes of a file, as one named reader sees them.

    url: as of ``SqliteDatabase``; the file must be there. reader: names the stream, and what the
    file keeps for it. keep: how many confirmed changes stay, to be looked at. Raises
    InvalidNameError, ConfigurationError for a bad URL.
    """

    features = ChangeFeatures(foreign_writers=True, intents=True, online_snapshot=True)

    def __init__(self, url: str, *, reader: str, clock: Clock, keep: int = KEEP) -> None:
        self._access = Access(url)
        self._reader, self._clock, self._keep = check_name(reader, "reader"), clock, keep

    async def identity(self) -> str:
        """The identity of the file, which it gets here where nothing was captured yet. A copy of a
        file has the identity of the file.
        """
        return await self._do(self._identity)

    async def prepare(self, tables: Sequence[TableSpec]) -> str:
        """Make tables and triggers where they are not there; gives the position at which a new
        reader begins. Idempotent.

        Lost triggers of a table that this reader has already are left to its stream, which tells.
        Raises ConfigurationError (CDC_TABLE, CDC_NO_PRIMARY_KEY, CDC_COLUMN).
        """
        return await self._do(partial(self._prepare, list(tables)))

    async def inspect(self, tables: Sequence[TableSpec]) -> Sequence[Finding]:
        """The file, its journal, each table with its triggers, and readers that hold much back."""
        return await self._do(partial(self._inspect, list(tables)))

    async def open(self, tables: Sequence[TableSpec], *, position: str, token: int) -> SqliteStream:
        """As ``ChangeSource.open``. Raises ConfigurationError for what was not prepared."""
        number = number_of(position)
        stream = SqliteStream(self._access, self._clock, Who(self._reader, token, self._keep))
        try:
            await stream.open({spec.name.lower(): spec for spec in tables}, number)
        except BaseException:
            await stream.close()
            raise
        return stream

    async def peek(
        self, tables: Sequence[TableSpec], *, position: str, limit: int
    ) -> Sequence[Transaction]:
        """Up to ``limit`` whole transactions behind a position, "" for the oldest that is kept;
        nothing is moved, fenced or confirmed.
        """
        number = number_of(position) if position else -1
        return await self._do(partial(self._peek, list(tables), position=number, limit=limit))

    async def status(self, position: str) -> SourceStatus:
        """How far a reader at this position is behind, counted in changes."""
        return await self._do(partial(self._status, number_of(position)))

    async def drop(self) -> None:
        """Forget this reader; with the last one, everything that capturing added. Idempotent."""
        await self._do(self._drop)

    # --- in a thread, on a connection of its own --------------------------------------------------
    async def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def run() -> T:
            with closing(self._access.connect()) as db:
                return work(db)

        return await asyncio.to_thread(run)

    def _identity(self, db: sqlite3.Connection) -> str:
        with self._access.errors():
            known = source_of(db)
        if known:
            return known
        with self._access.writing(db):
            make_tables(db)
            return source_of(db)

    def _prepare(self, tables: list[TableSpec], db: sqlite3.Connection) -> str:
        with self._access.writing(db):
            make_tables(db)
            row = db.execute(
                "SELECT tables, confirmed FROM duly_change_reader WHERE name = ?", (self._reader,)
            ).fetchone()
            mine = set(json.loads(row[0])) if row else set()
            for spec in tables:
                _make_triggers(db, spec, known=spec.name.lower() in mine)
            names = json.dumps(sorted({spec.name.lower() for spec in tables}))
            if row:
                db.execute(
                    "UPDATE duly_change_reader SET tables = ? WHERE name = ?",
                    (names, self._reader),
                )
                return position_of(row[1])
            end = db.execute("SELECT max(seq) FROM duly_change").fetchone()[0] or 0
            db.execute(
                "INSERT INTO duly_change_reader (name, confirmed, tables, seen_at) "
                "VALUES (?, ?, ?, ?)",
                (self._reader, end, names, self._clock.time()),
            )
            return position_of(end)

    def _peek(
        self, tables: list[TableSpec], db: sqlite3.Connection, *, position: int, limit: int
    ) -> list[Transaction]:
        found: list[Transaction] = []
        with self._access.reading(db):
            wanted = {}
            for spec in tables:
                table = examine(db, spec.name).table
                wanted[spec.name.lower()] = Wanted(spec, key_of(table, spec) if table else spec.key)
            first, end = db.execute("SELECT min(seq), max(seq) FROM duly_change").fetchone()
            log = Log(self._access.path, source_of(db), wanted)
            log.position = (first or 1) - 1 if position < 0 else position
            log.passing = set(wanted)
            while len(found) < limit and log.position < (end or 0):
                found += log.read(db, end)
        return found[:limit]

    def _status(self, position: int, db: sqlite3.Connection) -> SourceStatus:
        with self._access.reading(db):
            first, end = db.execute("SELECT min(seq), max(seq) FROM duly_change").fetchone()
            row = db.execute(
                "SELECT seen_at FROM duly_change_reader WHERE reading AND name = ?",
                (self._reader,),
            ).fetchone()
            slowest = db.execute(
                "SELECT name FROM duly_change_reader ORDER BY confirmed LIMIT 1"
            ).fetchone()
        end, seen = end or 0, row[0] if row else None
        kept = end - (first or 0) + 1
        return SourceStatus(
            position=position_of(position),
            end=position_of(end),
            lag_bytes=None,
            lag_transactions=max(0, end - position),
            kept_bytes=None,
            active=seen is not None and self._clock.time() - seen < _ACTIVE_SECONDS,
            detail=f"{kept} rows of duly_change kept"
            + (f", the slowest reader is {slowest[0]}" if slowest else ""),
        )

    def _drop(self, db: sqlite3.Connection) -> None:
        with self._access.writing(db):
            if not source_of(db):
                return
            db.execute("DELETE FROM duly_change_reader WHERE name = ?", (self._reader,))
            if not db.execute("SELECT 1 FROM duly_change_reader").fetchone():
                remove_tables(db)

    def _inspect(self, tables: list[TableSpec], db: sqlite3.Connection) -> list[Finding]:
        found = list(inspect_file(self._access.path))
        with self._access.reading(db):
            mode = db.execute("PRAGMA journal_mode").fetchone()[0]
            if mode != "wal":
                found.append(
                    Finding(
                        "CDC_JOURNAL",
                        Severity.WEAK,
                        f"journal_mode={mode}: writers and readers of changes wait for each other",
                        "PRAGMA journal_mode=WAL",
                    )
                )
            captured = bool(source_of(db))
            found += [_table_finding(db, spec, captured=captured) for spec in tables]
            if captured:
                found += self._idle(db)
        return found

    def _idle(self, db: sqlite3.Connection) -> list[Finding]:
        rows = db.execute(
            "SELECT name, (SELECT max(seq) FROM duly_change) - confirmed FROM duly_change_reader "
            "WHERE confirmed < (SELECT max(seq) FROM duly_change) "
            "AND seen_at < ?",
            (self._clock.time() - _IDLE_SECONDS,),
        )
        return [
            Finding(
                "CDC_IDLE_READER",
                Severity.WEAK,
                f"reader {name!r} has not read for an hour; {behind} changes are kept for it",
                "run it, or drop it: duly cdc drop-slot",
            )
            for name, behind in rows
        ]


class SqliteStream:
    """An open stream; made by ``SqliteChanges.open``."""

    def __init__(self, access: Access, clock: Clock, who: Who) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"duly-changes-{who.name}")
        self._make = partial(Reader, access, clock, who)
        self._reader: Reader | None = None
        self._closed = False

    async def open(self, specs: dict[str, TableSpec], position: int) -> None:
        """Open the file and go to the position."""

        def run() -> None:
            self._reader = self._make()
            self._reader.open(specs, position)

        await self._do(run)

    async def items(self) -> AsyncIterator[Transaction | SnapshotChunk | str]:
        """As ``ChangeStream.items``; once it is closed, DatabaseUnavailableError."""
        reader = self._open_reader()
        while True:
            found = await self._do(reader.poll)
            for item in found:
                yield item
            if not found:
                await self._do(partial(reader.wait, WAIT_SECONDS))

    async def snapshot(self, table: TableSpec, *, cursor: str = "") -> None:
        """As ``ChangeStream.snapshot``. Where triggers were lost they are made anew, this stream
        passes the gap, and other readers of the table are told of it.
        """
        reader = self._open_reader()
        reader.wake()
        await self._do(partial(reader.snapshot, table, cursor))

    async def confirm(self, position: str) -> None:
        """Everything up to here is stored. Written to the file within a second, by the poll."""
        self._open_reader().confirm(number_of(position))

    async def close(self) -> None:
        """Write down what was confirmed and let go of the file. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._reader is not None:
            self._reader.wake()
            await asyncio.shield(asyncio.wrap_future(self._thread.submit(self._reader.close)))
        self._thread.shutdown(wait=False)

    def _open_reader(self) -> Reader:
        if self._closed or self._reader is None:
            raise DatabaseUnavailableError("the stream is closed")
        return self._reader

    async def _do(self, work: Callable[[], Any]) -> Any:
        if self._closed:
            raise DatabaseUnavailableError("the stream is closed")
        return await asyncio.wrap_future(self._thread.submit(work))


def _make_triggers(db: sqlite3.Connection, spec: TableSpec, *, known: bool) -> None:
    found = examine(db, spec.name)
    if found.table is None:
        if known:
            return  # its stream tells
        raise ConfigurationError(f"there is no table {spec.name!r}", code="CDC_TABLE_MISSING")
    key = key_of(found.table, spec)
    wanted = {*found.table.columns} if spec.before_image else {*key}
    before = wanted | {*kept_before(found)}
    if found.state is State.NONE:
        capture(db, found.table, before)
    elif found.state is State.WHOLE:
        if found.shape and not before <= {*found.shape.before}:
            capture(db, found.table, before)
    elif not known:
        capture(db, found.table, before)
        mark_gap(db, found.table.name, f"its triggers were {found.state.value}")


def _table_finding(db: sqlite3.Connection, spec: TableSpec, *, captured: bool) -> Finding:
    try:
        state = examine(db, spec.name).state if captured else State.NONE
        table = read_table(db, spec.name)
        if table is None:
            raise ConfigurationError(f"there is no table {spec.name!r}", code="CDC_TABLE_MISSING")
        key_of(table, spec)
    except DulyError as error:
        return Finding(error.code, Severity.RED, error.detail, "mend the table or the rule")
    if state in (State.LOST, State.DOUBTFUL):
        return Finding(
            "CDC_TRIGGERS",
            Severity.RED,
            f"table {spec.name!r}: the triggers are {state.value}",
            f"duly cdc snapshot MODULE:APP {spec.name}",
        )
    words = {State.NONE: "will get triggers"}.get(state, "is captured by triggers")
    return Finding("CDC_TABLE", Severity.GREEN, f"table {spec.name!r} {words}")
