"""One named reader of a SQLite file's changes, on one connection, used by one thread.

Owns the poll: is the file still the one that was opened, are we still the reader, are the triggers
whole - all asked in the read transaction that reads the changes, so that no answer is older than
they are.  The invariant: a change is given only when everything before it was given, and triggers
that may have missed something end the stream.  Writes to the file are few and short: the fencing
token when it is opened, then at most one a second to confirm and to trim what every reader has
confirmed.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from duly.databases.sqlite.capture import (
    GAP,
    MARK,
    Captured,
    State,
    capture,
    examine,
    kept_before,
    key_of,
    mark_gap,
    source_of,
)
from duly.databases.sqlite.changelog import Log, Wanted, connect, position_of, purged
from duly.databases.sqlite.chunks import Place, Snapshot
from duly.databases.sqlite.database import SqliteDatabase
from duly.databases.sqlite.gate import begin, gate_of
from duly.databases.sqlite.table import Table
from duly.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    DulyError,
    GapError,
    StaleLeaseError,
    TransactionConflictError,
)
from duly.kernel import failpoints
from duly.kernel.changes import SnapshotChunk, Transaction
from duly.ports import Clock
from duly.sources import TableSpec

__all__ = ["Access", "Reader", "Who"]

Item = Transaction | SnapshotChunk | str
CONFIRM_SECONDS = 1.0
SEEN_SECONDS = 10.0
_TRIM_ROWS, _TRIMS = 5_000, 40
_READ_ANEW = "read it anew: duly cdc snapshot MODULE:APP"


class Who(NamedTuple):
    """A reader. token: fences it; keep: how many confirmed changes stay to be looked at."""

    name: str
    token: int
    keep: int


class Access:
    """Ways into one file, with sqlite3's errors as ours."""

    def __init__(self, url: str) -> None:
        self._database = SqliteDatabase(url)
        self.path = self._database.path
        self.busy_seconds = self._database.busy_seconds

    def connect(self) -> sqlite3.Connection:
        """A connection to the file. Raises DatabaseUnavailableError where there is none."""
        with self.errors():
            return connect(self.path, self.busy_seconds)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Map what sqlite3 raises in this block."""
        try:
            yield
        except sqlite3.Error as error:
            if str(error).startswith("no such table: duly_change"):
                raise GapError(
                    f"{self.path}: {error}: capturing was taken away, its changes with it",
                    code="CDC_DROPPED",
                ) from error
            raise self._database.map_error(error) from error

    @contextmanager
    def reading(self, db: sqlite3.Connection) -> Iterator[None]:
        """One read transaction: everything in it sees the same commits."""
        with self.errors():
            db.execute("BEGIN")
            try:
                yield
            finally:
                if db.in_transaction:  # SQLite ends it by itself on some errors
                    db.execute("ROLLBACK")

    @contextmanager
    def writing(self, db: sqlite3.Connection) -> Iterator[None]:
        """One write transaction, committed when the block ends well."""
        with self.errors():
            with gate_of(self.path).turn(self.busy_seconds):
                begin(db, self.busy_seconds)
            try:
                yield
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise


class Reader:
    """An open reader. Its methods but ``wake`` and ``confirm`` belong to one thread."""

    def __init__(self, access: Access, clock: Clock, who: Who) -> None:
        self._access, self._clock, self._who = access, clock, who
        self._db = access.connect()
        self._inode = _inode(access.path)
        self._woken = threading.Event()
        self._wanted: dict[str, Wanted] = {}
        self._tables: dict[str, Table] = {}
        self._snapshots: deque[Snapshot] = deque()
        self._held: tuple[int, SnapshotChunk] | None = None
        self._verified = self._seen = -1
        self._confirmed = self._stored = 0
        self._due, self._closed = 0.0, False
        self._beat = clock.monotonic() + SEEN_SECONDS

    def open(self, specs: Mapping[str, TableSpec], position: int) -> None:
        """Put out older readers of this name and go to a position. specs: by table, lower case.

        Raises StaleLeaseError, GapError, ConfigurationError for tables that were not prepared.
        """
        with self._access.writing(self._db):
            self._source = source_of(self._db)
            if not self._source or self._registered() is None:
                raise _not_prepared(f"reader {self._who.name!r}")
            for name, spec in specs.items():
                found = examine(self._db, spec.name)
                if found.state is State.NONE:
                    raise _not_prepared(f"table {spec.name!r}")
                key = key_of(found.table, spec) if found.table else spec.key
                self._wanted[name] = Wanted(spec, key)
            taken = self._db.execute(
                "UPDATE duly_change_reader SET token = ?, reading = 1, seen_at = ? WHERE name = ? "
                "AND token <= ?",
                (self._who.token, self._clock.time(), self._who.name, self._who.token),
            ).rowcount
            if not taken:
                raise self._stale()
        self._log = Log(self._access.path, self._source, self._wanted)
        self._log.position = self._told = position
        with self._access.reading(self._db):
            if position < self._end() and not self._follows(position):
                raise purged(position)

    # --- polling ----------------------------------------------------------------------------------
    def poll(self) -> list[Item]:
        """What there is now, nothing when there is nothing. Raises as ``ChangeStream.items``."""
        self._upkeep()
        while True:
            with self._access.errors():
                if _inode(self._access.path) != self._inode:
                    raise DatabaseUnavailableError(f"{self._access.path} was replaced")
                self._seen = self._data_version()
            with self._access.reading(self._db):
                self._require_token()
                doubtful = self._verify()
                end = self._end()
                if not doubtful and end >= self._log.position:
                    return self._read(end)
            if not doubtful:
                self._restored(end)
            self._mend(doubtful)

    def _read(self, end: int) -> list[Item]:
        if self._snapshots and self._held is None:
            snapshot = self._snapshots[0]
            table = self._tables[snapshot.wanted.spec.name.lower()]
            failpoints.hit(failpoints.CDC_CHUNK_MARKED)
            chunk = snapshot.read(self._db, table, Place(self._source, end, self._verified))
            self._held = (end, chunk)
            failpoints.hit(failpoints.CDC_CHUNK_READ)
        found: list[Item] = [*self._log.read(self._db, self._held[0] if self._held else end)]
        reached = self._log.position
        if self._held and self._held[0] == reached:
            found.append(self._held[1])
            if self._held[1].done:
                self._snapshots.popleft()
            self._held, self._told = None, reached
        last = found[-1] if found else None
        if isinstance(last, Transaction):
            self._told = int(last.commit)
        if self._told < reached:
            found.append(position_of(reached))
            self._told = reached
        return found

    def wait(self, timeout_seconds: float) -> None:
        """Until another connection has committed since the last poll, ``wake``, or time is up."""
        end, pause = time.monotonic() + timeout_seconds, 0.002
        with self._access.errors():
            while self._data_version() == self._seen:
                left = end - time.monotonic()
                if left <= 0 or self._woken.wait(min(pause, left)):
                    break
                pause = min(pause * 1.2, 0.025)
        self._woken.clear()

    def wake(self) -> None:
        """End a ``wait`` early, from any thread."""
        self._woken.set()

    def _require_token(self) -> None:
        if self._registered() != self._who.token:
            raise self._stale()

    def _registered(self) -> int | None:
        ask = "SELECT token FROM duly_change_reader WHERE name = ?"
        row = self._db.execute(ask, (self._who.name,)).fetchone()
        return None if row is None else int(row[0])

    def _stale(self) -> StaleLeaseError:
        return StaleLeaseError(f"reader {self._who.name!r}: another one has a newer token")

    def _end(self) -> int:
        return self._db.execute("SELECT max(seq) FROM duly_change").fetchone()[0] or 0

    def _follows(self, position: int) -> bool:
        """Whether what comes behind a position is there, or said to be missing."""
        ask = "SELECT seq, shape, op FROM duly_change WHERE seq > ? ORDER BY seq LIMIT 1"
        seq, *kind = self._db.execute(ask, (position,)).fetchone()
        return bool(seq == position + 1 or kind == [MARK, GAP])

    def _data_version(self) -> int:
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    # --- are the triggers whole? ------------------------------------------------------------------
    def _verify(self) -> list[str]:
        """The tables whose triggers have to be made anew; nothing was missed by them yet."""
        version = int(self._db.execute("PRAGMA schema_version").fetchone()[0])
        if version == self._verified:
            return []
        doubtful = []
        for name, wanted in self._wanted.items():
            found = examine(self._db, wanted.spec.name)
            if self._missed(found):
                raise _gap(wanted.spec.name, found.state, self._log.position)
            if found.state is not State.WHOLE:
                doubtful.append(name)
            elif found.table is not None:
                self._tables[name] = found.table
        if not doubtful:
            self._verified = version
        return doubtful

    def _missed(self, found: Captured) -> bool:
        """Whether changes may be missing, or told wrongly, behind what we have read."""
        if found.state is State.DOUBTFUL and found.shape is not None:
            since = "SELECT 1 FROM duly_change WHERE seq > ? AND shape = ? LIMIT 1"
            values = (self._log.position, found.shape.number)
            return self._db.execute(since, values).fetchone() is not None
        return found.state in (State.LOST, State.NONE)

    def _mend(self, names: list[str]) -> None:
        with self._access.writing(self._db):
            for name in names:
                found = examine(self._db, self._wanted[name].spec.name)
                if found.table and found.state is not State.WHOLE and not self._missed(found):
                    capture(self._db, found.table, kept_before(found))

    def _restored(self, end: int) -> None:
        """The file ends before what we have read: an older copy was put in its place. What is
        written now must not get the numbers of what was read, and nobody may pass here unseeing.
        """
        reason = f"an older copy of the file, which ended at {position_of(end)}, was put in place"
        position = self._log.position
        with self._access.writing(self._db):
            if self._end() < position:
                mark_gap(self._db, None, reason, place=position + 1)
        raise GapError(f"{reason}; read every table anew: duly cdc snapshot", code="CDC_GAP")

    # --- snapshots --------------------------------------------------------------------------------
    def snapshot(self, spec: TableSpec, cursor: str) -> None:
        """Read a table beside the stream; lost triggers are made anew, and other readers told."""
        name = spec.name.lower()
        if name not in self._wanted:
            raise ConfigurationError(
                f"table {spec.name!r} is not read by {self._who.name!r}", code="CDC_TABLE"
            )
        with self._access.writing(self._db):
            found = examine(self._db, spec.name)
            if found.table is None:
                raise ConfigurationError(
                    f"there is no table {spec.name!r}", code="CDC_TABLE_MISSING"
                )
            wanted = Wanted(self._wanted[name].spec, key_of(found.table, spec))
            if self._missed(found):
                before = found.table.columns if spec.before_image else wanted.key
                capture(self._db, found.table, {*before, *kept_before(found)})
                mark_gap(self._db, found.table.name, f"its triggers were {found.state.value}")
        self._wanted[name] = wanted
        self._log.passing.add(name)
        self._snapshots.append(Snapshot(wanted, cursor))
        self._woken.set()

    # --- what is confirmed ------------------------------------------------------------------------
    def confirm(self, position: int) -> None:
        """Up to here all is stored; written down within a second, or when it is closed."""
        self._confirmed = max(self._confirmed, position)

    def _upkeep(self) -> None:
        now = self._clock.monotonic()
        if (self._confirmed > self._stored and now >= self._due) or now >= self._beat:
            with suppress(TransactionConflictError):  # the writers go first; again at the next poll
                self._settle(reading=True)
                self._due, self._beat = now + CONFIRM_SECONDS, now + SEEN_SECONDS

    def _settle(self, *, reading: bool) -> None:
        confirmed = self._confirmed
        with self._access.writing(self._db):
            ours = self._db.execute(
                "UPDATE duly_change_reader SET confirmed = max(confirmed, ?), reading = ?, "
                "seen_at = ? WHERE name = ? AND token = ?",
                (confirmed, reading, self._clock.time(), self._who.name, self._who.token),
            ).rowcount
        if not ours:
            raise self._stale()
        self._stored = confirmed
        for _ in range(_TRIMS):
            if self._trim() < _TRIM_ROWS:
                break

    def _trim(self) -> int:
        """Forget what every reader has confirmed, but for the last ones; gives how many."""
        with self._access.writing(self._db):
            least, first, end = self._db.execute(
                "SELECT (SELECT min(confirmed) FROM duly_change_reader), "
                "(SELECT min(seq) FROM duly_change), (SELECT max(seq) FROM duly_change)"
            ).fetchone()
            upto = min(least - self._who.keep, end - 1, first + _TRIM_ROWS - 1)
            if upto < first:
                return 0
            return self._db.execute("DELETE FROM duly_change WHERE seq <= ?", (upto,)).rowcount

    def close(self) -> None:
        """Write down what was confirmed and let go of the file. Idempotent."""
        if self._closed:
            return
        self._closed = True
        with suppress(DulyError):  # what is not written down is only kept longer
            self._settle(reading=False)
        with suppress(sqlite3.Error):
            self._db.close()


def _not_prepared(what: str) -> ConfigurationError:
    return ConfigurationError(f"{what} is not there; prepare it", code="CDC_NOT_PREPARED")


def _gap(table: str, state: State, position: int) -> GapError:
    why = {
        State.LOST: "its triggers were dropped or altered (a table that is rebuilt loses them)",
        State.DOUBTFUL: "a unique key or a trigger was added, and the table changed before we saw",
    }.get(state, "it is not captured any more")
    return GapError(
        f"table {table!r}: {why}; changes behind {position_of(position)} may be missing; "
        f"{_READ_ANEW} {table}",
        code="CDC_TRIGGERS",
    )


def _inode(path: str) -> tuple[int, int] | None:
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
