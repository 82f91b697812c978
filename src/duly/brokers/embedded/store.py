"""What the log asks of whatever keeps its tables: a SQLite file, PostgreSQL, MySQL or MariaDB.

Owns the form in which statements are written, once for all three: tables and the words in which
databases differ stand in braces, values are ``:name``.  ``PARTITIONS`` is a schema constant: a key
must fall on the same partition in every process that shares the tables.  Leaves out every driver
(``file``, ``postgres``, ``mysql``) and every statement that moves messages (``log``) or shares work
(``claims``).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from duly.ports import BrokerFeatures, Finding

__all__ = [
    "LEASE_SECONDS",
    "PARTITIONS",
    "RETENTION_SECONDS",
    "TABLES",
    "Place",
    "Rows",
    "Store",
    "boot_seconds",
    "features",
    "render",
    "whole",
]

PARTITIONS = 8
LEASE_SECONDS = 4.0
RETENTION_SECONDS = 7 * 86_400.0
TABLES = ("chunk", "claim", "epoch", "member", "source", "topic")

_VALUE = re.compile(r":([a-z_]+)")


class Rows(Protocol):
    """Statements inside a transaction, or one by one."""

    def ask(self, text: str, values: Mapping[str, Any] = {}) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        ...

    def change(self, text: str, values: Mapping[str, Any] = {}) -> int:
        """Run a statement; how many rows it met."""
        ...

    def change_all(self, text: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Run a statement for each row."""
        ...

    def ring(self) -> None:
        """Wake those who wait elsewhere, at the commit; a hint that may be lost."""
        ...


class Store(Rows, Protocol):
    """An open connection to the tables; used by one thread.

    name: for errors and logs, without secrets. pause_seconds: between two looks for news, when
    something has just happened and when nothing has for a while.
    """

    name: str
    payload_bytes_max: int
    pause_seconds: tuple[float, float]

    def writing(
        self, *, alone: bool = True, wait_seconds: float | None = None
    ) -> AbstractContextManager[Rows]:
        """A transaction, committed at the end, rolled back on any exception.

        alone: no other transaction that says so runs beside it; False where the rows that it locks
        first are all that it needs. wait_seconds: for locks, where the store can be told. Raises
        BrokerUnavailableError and ConfigurationError (nothing is stored), OutcomeUnknownError.
        """
        ...

    def reading(self) -> AbstractContextManager[Rows]:
        """The connection for reads, its errors as ours."""
        ...

    def version(self) -> object:
        """Something that changes when there may be news from another connection."""
        ...

    @property
    def descriptor(self) -> int | None:
        """What becomes readable with news, where there is such a thing."""
        ...

    @property
    def lost(self) -> bool:
        """Whether the connection is of no use any more."""
        ...

    def ping(self) -> None:
        """Find out whether the other side is still there. Raises BrokerUnavailableError."""
        ...

    def inspect(self) -> list[Finding]:
        """What ``check`` says: whether a confirmed message survives a crash."""
        ...

    def close(self) -> None:
        """Close the connection; never raises."""
        ...


class Place(Protocol):
    """Where a log is kept, as its URL says. name: without secrets.

    own_sender: whether publishing has a connection of its own, because it may wait for the locks of
    others for longer than a lease lives. lease_seconds, retention_seconds: as ``EmbeddedBroker``.
    """

    name: str
    features: BrokerFeatures
    own_sender: bool
    lease_seconds: float
    retention_seconds: float

    def check(self) -> None:
        """Raise ConfigurationError for what is wrong before anything is opened."""
        ...

    def open(self, *, listening: bool) -> Store:
        """Connect; makes the tables where they are missing. listening: whether to hear of news.

        Raises BrokerUnavailableError, ConfigurationError.
        """
        ...


def render(text: str, words: Mapping[str, str], marker: str) -> str:
    """A statement in a database's own words. marker: how it writes a value, as ``re.sub`` takes
    it.
    """
    return _VALUE.sub(marker, text.format_map(words))


def whole(numbers: Iterable[int]) -> str:
    """Numbers of ours as a list of SQL."""
    return ",".join(str(int(n)) for n in numbers)


def features(*, durable: bool, payload_bytes_max: int) -> BrokerFeatures:
    """What a log promises wherever it is kept."""
    return BrokerFeatures(
        durable=durable,
        ordered_source=True,
        atomic_batch=True,
        reports_unrouted=True,
        redelivers=True,
        late_subscriber_sees_history=True,
        payload_bytes_max=payload_bytes_max,
    )


def boot_seconds() -> float:
    """Seconds since the machine started, alike in every process; goes on while it sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
