"""The Protocols of a source of rows, and the values that cross them.

A *source* is a database that a batch job reads; a *reader* is one connection to it, used by one
thread at a time, and gives the rows of a query in the order of their key, cut into blocks.
Invariant: where a block ends depends on the rows and on nothing else, so that a reader that starts
behind a block gives the same blocks again.  What becomes of a block is the business of ``batch``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

__all__ = [
    "Block",
    "CsvShape",
    "Key",
    "KeyColumn",
    "Reading",
    "RowColumn",
    "RowFeatures",
    "RowQuery",
    "RowReader",
    "RowSource",
]

Key = tuple[Any, ...]


class KeyColumn(NamedTuple):
    """A column of the key. name: as the query gives it."""

    name: str
    descending: bool = False


@dataclass(frozen=True)
class RowQuery:
    """What is read. text: a SELECT whose values are written ``:name``. key: columns of the query
    that are unique together and never NULL. row_bytes_max: a larger row is refused.
    """

    text: str
    key: tuple[KeyColumn, ...]
    params: Mapping[str, Any] = field(default_factory=dict)
    row_bytes_max: int = 8 * 1024 * 1024


class RowColumn(NamedTuple):
    """A column of the result. kind: ``integer``, ``decimal``, ``float``, ``boolean``, ``date``,
    ``timestamp``, ``timestamptz``, ``bytes``, ``json``, ``text``, or empty where nobody can say.
    precision, scale: of a decimal, 0 where it has none.
    """

    name: str
    kind: str = ""
    precision: int = 0
    scale: int = 0


class CsvShape(NamedTuple):
    """The CSV that a source may write itself. quote_all: also what does not need it."""

    delimiter: str = ","
    quote_all: bool = False


Form = Literal["csv", "text", "values"]


@dataclass(frozen=True)
class Reading:
    """A part of a query's rows. after: begin behind this key. until: end with it.

    form: ``csv`` (bytes, in the shape of ``csv``), ``text`` (the source's own text where it has
    one) or ``values`` (Python's). block_bytes: a block ends with the row that reaches this.
    """

    form: Form = "values"
    after: Key | None = None
    until: Key | None = None
    block_bytes: int = 4 * 1024 * 1024
    csv: CsvShape = field(default_factory=CsvShape)


class Block(NamedTuple):
    """Rows in the order of their key. last: the key of its last row. data: in the form ``csv``, in
    pieces; values: in the others, one tuple for each row.
    """

    rows: int
    last: Key
    data: Sequence[bytes] = ()
    values: Sequence[tuple[Any, ...]] = ()


@dataclass(frozen=True, slots=True)
class RowFeatures:
    """What a source of rows declares. csv: writes CSV itself. stages: can keep a result as a table.
    shares_snapshot: several readers can see one moment.
    """

    csv: bool = False
    stages: bool = False
    shares_snapshot: bool = False


class RowReader(Protocol):
    """One connection for reading, used by one thread at a time.

    Every method raises DatabaseUnavailableError (again later), ConfigurationError and
    PermanentError (codes BATCH_...: the query or its rows will not do).
    """

    def columns(self, query: RowQuery) -> Sequence[RowColumn]:
        """The columns of a query. Raises ConfigurationError for a key that it does not have."""
        ...

    def check(self, query: RowQuery) -> str:
        """Make sure that the key is unique and never NULL, and say how: ``proved`` from the
        catalogue, ``counted``, or ``watched`` while the rows are read.
        """
        ...

    def highest(self, query: RowQuery) -> Key | None:
        """The last key in order; None without rows."""
        ...

    def splits(self, query: RowQuery, parts: int, *, until: Key | None) -> list[Key]:
        """Keys that cut the rows into about equal parts: at most ``parts - 1``, in order."""
        ...

    def stage(self, query: RowQuery, name: str) -> None:
        """Keep the result as a table; an older one of that name is replaced."""
        ...

    def staged(self, query: RowQuery, name: str) -> RowQuery | None:
        """The query that reads what was kept, None when it is not there."""
        ...

    def unstage(self, name: str) -> None:
        """Drop what was kept. Idempotent."""
        ...

    def export(self) -> str:
        """Begin to see one moment, and name it for others (``shares_snapshot``); it lasts as long
        as this reader.
        """
        ...

    def read(self, query: RowQuery, reading: Reading) -> Iterator[Block]:
        """The rows in blocks; close the iterator to stop early."""
        ...

    def close(self) -> None:
        """Close the connection; never raises."""
        ...


class RowSource(Protocol):
    """A database that can be read in the order of a key."""

    features: RowFeatures

    @property
    def dialect(self) -> str:
        """``postgres``, ``mysql`` ...: kept in the record of a run."""
        ...

    def open(self, *, moment: str = "") -> RowReader:
        """Connect. moment: what a reader's ``export`` gave, to see the same. Raises
        DatabaseUnavailableError, ConfigurationError.
        """
        ...
