"""The log in a SQLite file, or in memory: one connection to it, and its transactions.

Invariant: a write transaction is the only one on the file from its first statement on, so nothing
in it needs a lock of its own.  Time is the machine's CLOCK_BOOTTIME, which all processes that can
share a file see alike and nobody can set.  Leaves out the file itself (``schema``).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from duly.brokers.embedded.schema import map_error, open_file
from duly.brokers.embedded.store import (
    LEASE_SECONDS,
    RETENTION_SECONDS,
    TABLES,
    Rows,
    features,
    render,
)
from duly.errors import ConfigurationError, OutcomeUnknownError
from duly.ports import Finding, Severity

__all__ = ["MEMORY", "FilePlace", "FileStore"]

MEMORY = ":memory:"
PAYLOAD_BYTES_MAX = 100_000_000
_WORDS = {
    **{name: name for name in TABLES},
    "now": ":now",
    "clock": ":clock",
    "lock": "",
    "greatest": "max",
}


@lru_cache(500)
def _rendered(text: str) -> str:
    return render(text, _WORDS, r":\1")


class FilePlace:
    """A file of the log. path: ``:memory:`` for this object only."""

    own_sender = False
    lease_seconds = LEASE_SECONDS
    retention_seconds = RETENTION_SECONDS

    def __init__(self, path: str) -> None:
        self.name = self._path = path
        self.features = features(durable=path != MEMORY, payload_bytes_max=PAYLOAD_BYTES_MAX)

    def check(self) -> None:
        """Raise ConfigurationError when the folder does not exist."""
        folder = Path(self._path).parent
        if self._path != MEMORY and not folder.is_dir():
            raise ConfigurationError(f"embedded broker: the folder {folder} does not exist")

    def open(self, *, listening: bool) -> FileStore:
        """As ``Place``."""
        return FileStore(self._path)


class FileStore:
    """One connection to the file."""

    payload_bytes_max = PAYLOAD_BYTES_MAX
    pause_seconds = (0.002, 0.02)
    descriptor = None
    lost = False

    def __init__(self, path: str, *, busy_seconds: float = 5.0) -> None:
        self.name = path
        self._busy_seconds = busy_seconds
        self.db = open_file(path, busy_seconds=busy_seconds)

    def ask(self, text: str, values: Mapping[str, Any] = {}) -> list[tuple[Any, ...]]:
        """As ``Rows``."""
        return self.db.execute(_rendered(text), values).fetchall()

    def change(self, text: str, values: Mapping[str, Any] = {}) -> int:
        """As ``Rows``."""
        return self.db.execute(_rendered(text), values).rowcount

    def change_all(self, text: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """As ``Rows``."""
        self.db.executemany(_rendered(text), rows)

    def ring(self) -> None:
        """Nothing: every commit shows in ``version``."""

    @contextmanager
    def writing(self, *, alone: bool = True, wait_seconds: float | None = None) -> Iterator[Rows]:
        """As ``Store``; always alone."""
        if wait_seconds is not None:
            self._patience(wait_seconds)
        try:
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield self
                self._commit()
            finally:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise map_error(error, self.name) from error
        finally:
            if wait_seconds is not None:
                self._patience(self._busy_seconds)

    def _patience(self, seconds: float) -> None:
        wait_ms = max(1, int(min(seconds, self._busy_seconds) * 1000))
        self.db.execute(f"PRAGMA busy_timeout = {wait_ms}")

    def _commit(self) -> None:
        try:
            self.db.execute("COMMIT")
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorname", "") in ("SQLITE_FULL", "SQLITE_BUSY"):
                raise  # the commit frame was never written
            raise OutcomeUnknownError(
                f"embedded broker {self.name}: commit failed: {error}"
            ) from error

    @contextmanager
    def reading(self) -> Iterator[Rows]:
        """As ``Store``."""
        try:
            yield self
        except sqlite3.Error as error:
            raise map_error(error, self.name) from error

    def version(self) -> int:
        """A number that changes when another connection has committed: a read of shared memory."""
        return int(self.db.execute("PRAGMA data_version").fetchone()[0])

    def ping(self) -> None:
        """Nothing: a file does not go away without a word."""

    def inspect(self) -> list[Finding]:
        """As ``Store``."""
        if self.name == MEMORY:
            return [_memory()]
        with self.reading():
            names = ("journal_mode", "synchronous", "user_version")
            facts = {name: str(self.db.execute(f"PRAGMA {name}").fetchone()[0]) for name in names}
            facts["sqlite"] = str(self.db.execute("SELECT sqlite_version()").fetchone()[0])
        return [_durability(facts | {"file": self.name})]

    def close(self) -> None:
        """Close the file."""
        self.db.close()


def _durability(facts: dict[str, str]) -> Finding:
    good = facts["journal_mode"] == "wal" and facts["synchronous"] == "2"
    settings = f"journal_mode={facts['journal_mode']}, synchronous={facts['synchronous']}"
    meaning = "on the disk" if good else "not safe against a power cut"
    message = f"{settings}: a confirmed batch is {meaning}"
    severity = Severity.GREEN if good else Severity.RED
    fix = "" if good else "Move the file to a local disk."
    return Finding("EMBEDDED_DURABILITY", severity, message, fix, facts)


def _memory() -> Finding:
    return Finding(
        "EMBEDDED_MEMORY",
        Severity.RED,
        "kept in memory: gone with the process",
        "Use embedded:///file.db outside tests.",
    )
