"""What the suite for change sources works with: the source under test, a follower, a state oracle.

Invariant: every wait has a limit and fails with what it waited for; a follower keeps what it was
given in the order it was given, and its state is made of nothing else, so that comparing it with
the table shows every change that was lost, doubled, out of order or misread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from duly.kernel.changes import ABSENT, Change, SnapshotChunk, Transaction
from duly.sources import ChangeFeatures, ChangeSource, ChangeStream, TableSpec

__all__ = ["FOLLOW_SECONDS", "Follower", "State", "Target", "apply", "following", "state_of"]

FOLLOW_SECONDS = 20.0
CLOSE_SECONDS = 5.0
Row = Mapping[str, Any]
State = dict[tuple[Any, ...], dict[str, Any]]


def _on_conflict(key: str, changes: str) -> str:
    return f"ON CONFLICT ({key}) DO {f'UPDATE SET {changes}' if changes else 'NOTHING'}"


def _double(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is tested: a source of one fresh, empty database.

    make: a source for the reader of a name. features: those it must have. run: run statements in
    one transaction of a foreign program and commit it, or roll it back. rows: all rows of a table.
    named: how the source names a table. quote: how SQL does. whole: what makes a table log old
    values. mark: statements as one transaction with its bounds, where the source needs to be told.
    intent: the statement that attaches one. replace: the statement that puts rows, as text behind
    VALUES, in the place of others. replaced_by: the operations that take out what was there.
    upsert: what follows VALUES so that rows of a key that are there are changed, or left where the
    changes are empty. gaps: ways to lose what was committed behind a reader that is closed, by
    name. cut: cut the reader's connection; None where there is none.
    """

    make: Callable[[str], ChangeSource]
    features: ChangeFeatures
    run: Callable[[Sequence[str], bool], None]
    rows: Callable[[str], list[Row]]
    named: Callable[[str], str] = str
    quote: Callable[[str], str] = _double
    whole: Callable[[str], Sequence[str]] = field(default=lambda table: ())
    mark: Callable[[Sequence[str]], Sequence[str]] = list
    intent: Callable[[str, bytes], str] | None = None
    replace: Callable[[str, str], str] | None = None
    replaced_by: Sequence[str] = ("delete",)
    upsert: Callable[[str, str], str] = _on_conflict
    gaps: Mapping[str, Callable[[], None]] = field(default_factory=dict)
    cut: Callable[[], None] | None = None

    def commit(self, *statements: str) -> None:
        """Run statements in one transaction of a foreign program."""
        self.run(statements, True)

    def table(self, name: str, columns: str, *, before_image: bool = True) -> TableSpec:
        """Make a table, and say that it is captured."""
        whole = self.whole(name) if before_image else ()
        self.commit(f"CREATE TABLE {self.quote(name)} ({columns})", *whole)
        return TableSpec(self.named(name), before_image=before_image)


def apply(state: State, change: Change) -> None:
    """Carry out a change on the rows by key."""
    key = tuple(change.key.values())
    if change.op == "truncate":
        state.clear()
    elif change.op == "delete":
        state.pop(key, None)
    else:
        assert change.after is not None, change
        old = [(change.before or {}).get(name, ABSENT) for name in change.key]
        if ABSENT not in old and tuple(old) != key:
            state.pop(tuple(old), None)
        state[key] = dict(change.after)


def state_of(rows: Iterable[Row], key: Sequence[str]) -> State:
    """The rows of a table by key."""
    return {tuple(row[name] for name in key): dict(row) for row in rows}


class Follower:
    """Reads a stream in the background and keeps what it gives, as somebody who stores would.

    position: up to where all is stored. cursors: of the last chunk of each table, and whether it
    was the last of all.
    """

    def __init__(self, stream: ChangeStream, position: str) -> None:
        self.stream, self.position = stream, position
        self.transactions: list[Transaction] = []
        self.chunks: list[SnapshotChunk] = []
        self.states: dict[str, State] = {}
        self.cursors: dict[str, tuple[str, bool]] = {}
        self._news = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async for item in self.stream.items():
            position = item if isinstance(item, str) else item.position
            if isinstance(item, Transaction):
                position = item.commit
                self.transactions.append(item)
            elif isinstance(item, SnapshotChunk):
                self.chunks.append(item)
                self.cursors[item.table] = item.cursor, item.done
            assert position >= self.position, f"{position} after {self.position}"
            for change in [] if isinstance(item, str) else self._changes(item):
                apply(self.states.setdefault(change.table, {}), change)
            self.position = position
            self._news.set()

    @staticmethod
    def _changes(item: Transaction | SnapshotChunk) -> Sequence[Change]:
        return item.changes if isinstance(item, Transaction) else item.rows

    @property
    def changes(self) -> list[Change]:
        """Every change so far, without the rows of snapshots."""
        return [change for one in self.transactions for change in one]

    async def until(self, enough: Callable[[], bool], what: str = "changes") -> None:
        """Wait until ``enough()``; raises what the stream raised."""
        end = time.monotonic() + FOLLOW_SECONDS
        while not enough():
            left = end - time.monotonic()
            assert left > 0, f"{what} did not come; got {self.changes[-3:]} up to {self.position}"
            if self._task.done():
                self._task.result()
            self._news.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), min(left, 0.1))

    async def get(self, count: int) -> list[Change]:
        """Wait for this many changes, and for no more than that."""
        await self.until(lambda: len(self.changes) >= count, f"{count} changes")
        assert len(self.changes) == count, self.changes
        return self.changes

    async def reach(self, position: str) -> None:
        """Wait until the stream has come to a position."""
        await self.until(lambda: self.position >= position, position)

    async def failed(self) -> Exception:
        """Wait until the stream ends, and give what it raised."""
        await asyncio.wait({self._task}, timeout=FOLLOW_SECONDS)
        assert self._task.done(), "the stream did not end"
        error = self._task.exception()
        assert isinstance(error, Exception), error
        return error

    async def close(self) -> None:
        """Stop reading and close the stream."""
        self._task.cancel()
        await asyncio.wait({self._task}, timeout=CLOSE_SECONDS)
        await asyncio.wait_for(self.stream.close(), CLOSE_SECONDS)


@asynccontextmanager
async def following(
    source: ChangeSource,
    tables: Sequence[TableSpec],
    *,
    position: str = "",
    token: int = 1,
    snapshots: Mapping[str, str] | None = None,
) -> AsyncIterator[Follower]:
    """Prepare, open at a position (else where a new reader begins) and follow. snapshots: cursors
    of the tables to be read beside the stream.
    """
    start = await source.prepare(tables)
    stream = await source.open(tables, position=position or start, token=token)
    for spec in tables:
        if snapshots is not None and spec.name in snapshots:
            await stream.snapshot(spec, cursor=snapshots[spec.name])
    follower = Follower(stream, position or start)
    try:
        yield follower
    finally:
        await follower.close()
