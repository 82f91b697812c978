"""The log on a database server: transactions, the lock of those that must be alone, the tables.

Invariant: an exception before COMMIT was sent means that nothing is stored, and one after it that
nobody knows, unless the server itself has refused.  Whoever makes topics and groups or shares work
holds the row of ``epoch`` first, so that no two of them run side by side; publishing holds the rows
of its sources instead, in ascending order, and so waits for nobody but those who write there too.
Time is the server's clock.  Leaves out the drivers, which each ``ServerStore`` brings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from duly.brokers.embedded.places import Server
from duly.brokers.embedded.store import TABLES, Rows, render
from duly.brokers.embedded.tables import SCHEMA_VERSION
from duly.errors import ConfigurationError, OutcomeUnknownError
from duly.ports import Finding, Severity

__all__ = ["CONNECT_SECONDS", "IDLE_SECONDS", "LOCK_SECONDS", "SILENCE_SECONDS", "ServerStore"]

CONNECT_SECONDS = 5
LOCK_SECONDS = 5
# A process that is stopped inside a transaction must free its locks before others lose patience.
IDLE_SECONDS = 3
SILENCE_SECONDS = 10.0


class ServerStore(ABC):
    """One connection to a server. words: in which this kind of server differs."""

    payload_bytes_max: int
    pause_seconds: tuple[float, float]
    begin: str

    def __init__(self, server: Server, words: Mapping[str, str]) -> None:
        self.name = server.name
        self._secret = server.password or ""
        words = {**{name: f"{server.prefix}{name}" for name in TABLES}, **words}
        self._render = lru_cache(500)(lambda text: render(text, words, r"%(\1)s"))

    # --- of each driver ---------------------------------------------------------------------------
    @abstractmethod
    def run(self, text: str, values: Mapping[str, Any] | None) -> tuple[list[Any], int]:
        """Run a statement in the server's own words: its rows, and how many it met."""

    @abstractmethod
    def change_all(self, text: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """As ``Rows``."""

    @abstractmethod
    def ring(self) -> None:
        """As ``Rows``."""

    @abstractmethod
    def map_error(self, error: Exception) -> Exception:
        """A driver's exception as one of ours; others unchanged."""

    @abstractmethod
    def is_missing(self, error: Exception) -> bool:
        """Whether it says that a table is not there."""

    @abstractmethod
    def is_refusal(self, error: Exception) -> bool:
        """Whether an error of COMMIT says that the transaction was rolled back."""

    @abstractmethod
    def make_tables(self) -> None:
        """Make the tables that are missing, one process at a time."""

    @abstractmethod
    def version(self) -> object:
        """As ``Store``."""

    @abstractmethod
    def inspect(self) -> list[Finding]:
        """As ``Store``."""

    @abstractmethod
    def close(self) -> None:
        """As ``Store``."""

    @property
    @abstractmethod
    def lost(self) -> bool:
        """As ``Store``."""

    @property
    def descriptor(self) -> int | None:
        """As ``Store``."""
        return None

    # --- of all -----------------------------------------------------------------------------------
    def rendered(self, text: str) -> str:
        """A statement in this server's words."""
        return self._render(text)

    def ask(self, text: str, values: Mapping[str, Any] = {}) -> list[tuple[Any, ...]]:
        """As ``Rows``."""
        return self.run(self._render(text), values)[0]

    def change(self, text: str, values: Mapping[str, Any] = {}) -> int:
        """As ``Rows``."""
        return self.run(self._render(text), values)[1]

    @contextmanager
    def writing(self, *, alone: bool = True, wait_seconds: float | None = None) -> Iterator[Rows]:
        """As ``Store``; how long locks are waited for is the connection's."""
        committing = False
        try:
            self.run(self.begin, None)
            if alone:
                self.ask("SELECT value FROM {epoch} WHERE id = 1 FOR UPDATE")
            yield self
            committing = True
            self.run("COMMIT", None)
        except Exception as error:
            self._roll_back()
            if committing and (self.lost or not self.is_refusal(error)):
                raise OutcomeUnknownError(self.said(f"COMMIT: {error}")) from error
            raise self.map_error(error) from error

    def _roll_back(self) -> None:
        try:
            if not self.lost:
                self.run("ROLLBACK", None)
        except Exception:  # noqa: BLE001 - a connection that is lost has rolled back by itself
            self.close()

    @contextmanager
    def reading(self) -> Iterator[Rows]:
        """As ``Store``."""
        try:
            yield self
        except Exception as error:
            raise self.map_error(error) from error

    def ping(self) -> None:
        """As ``Store``."""
        with self.reading():
            self.run("SELECT 1", None)

    def prepare(self) -> None:
        """Make sure of the tables. Raises ConfigurationError for those of a newer version."""
        with self.reading():
            found = self._schema()
            if found is None:
                self.make_tables()
                found = self._schema()
        if found != SCHEMA_VERSION:
            raise ConfigurationError(
                self.said(f"the tables have schema {found}, this program knows {SCHEMA_VERSION}")
            )

    def _schema(self) -> int | None:
        try:
            rows = self.ask("SELECT version FROM {epoch} WHERE id = 1")
        except Exception as error:
            if self.is_missing(error):
                return None
            raise
        return int(rows[0][0]) if rows else None

    def said(self, text: str) -> str:
        """A text of the server's for an error of ours: where it was, and no password in it."""
        if len(self._secret) > 2:
            text = text.replace(self._secret, "***")
        return f"embedded broker {self.name}: {text[:300]}"

    def verdict(
        self, faults: Sequence[tuple[Severity, str, str]], facts: dict[str, str]
    ) -> Finding:
        """One finding on durability, of the worst of what was found as (severity, what, fix)."""
        if not faults:
            text = "a confirmed batch is on the server's disk"
            return Finding("EMBEDDED_DURABILITY", Severity.GREEN, text, "", facts)
        red = any(severity is Severity.RED for severity, _, _ in faults)
        what = "; ".join(what for _, what, _ in faults)
        fix = "; ".join(fix for _, _, fix in faults)
        severity = Severity.RED if red else Severity.WEAK
        return Finding("EMBEDDED_DURABILITY", severity, what, fix, facts)
