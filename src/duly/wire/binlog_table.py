"""How the rows of a table are laid out in the binlog: what TABLE_MAP says.

Owns the types of columns and what ``binlog_row_metadata=FULL`` adds: names, signs, collations,
labels, the primary key.  Invariant: what was not said stays unsaid (an empty name, None), and is
never guessed.  What values mean is left to ``binlog_values``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from duly.wire.binlog_bytes import Bytes, undecodable

__all__ = ["Column", "Kind", "Table", "parse_table"]


class Kind(IntEnum):
    """Types of columns as the log numbers them."""

    TINY = 1
    SHORT = 2
    LONG = 3
    FLOAT = 4
    DOUBLE = 5
    TIMESTAMP = 7
    LONGLONG = 8
    INT24 = 9
    DATE = 10
    TIME = 11
    DATETIME = 12
    YEAR = 13
    VARCHAR = 15
    BIT = 16
    TIMESTAMP2 = 17
    DATETIME2 = 18
    TIME2 = 19
    BLOB_COMPRESSED = 140
    VARCHAR_COMPRESSED = 141
    VECTOR = 242
    JSON = 245
    NEWDECIMAL = 246
    ENUM = 247
    SET = 248
    BLOB = 252
    VAR_STRING = 253
    STRING = 254
    GEOMETRY = 255


class Column(NamedTuple):
    """A column. name: empty where the log does not say it. kind: its type.

    size, scale: what belongs to the type (bytes of a length, digits, bits, digits of a fraction).
    unsigned: of a number. collation: number of a text's or label's collation, 63 of bytes. labels:
    of ENUM and SET, in that collation. All three None where they do not apply or were not said.
    """

    name: str
    kind: Kind
    size: int
    scale: int
    unsigned: bool | None = None
    collation: int | None = None
    labels: tuple[bytes, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """The layout of a table; compared by identity. key: the primary key's columns, empty where
    there is none or it was not said. described: the log says the names of the columns.
    """

    schema: str
    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    described: bool


_NO_EXTRA: Final = (
    Kind.TINY, Kind.SHORT, Kind.LONG, Kind.LONGLONG, Kind.INT24, Kind.YEAR,
    Kind.TIMESTAMP, Kind.DATE, Kind.TIME, Kind.DATETIME,
)  # fmt: skip
_TWO: Final = (
    Kind.VARCHAR, Kind.VAR_STRING, Kind.STRING, Kind.BIT, Kind.NEWDECIMAL, Kind.ENUM, Kind.SET,
    Kind.VARCHAR_COMPRESSED,
)  # fmt: skip
_NUMBERS: Final = frozenset((
    Kind.TINY, Kind.SHORT, Kind.LONG, Kind.LONGLONG, Kind.INT24, Kind.YEAR,
    Kind.FLOAT, Kind.DOUBLE, Kind.NEWDECIMAL,
))  # fmt: skip
_TEXTS: Final = frozenset((
    Kind.VARCHAR, Kind.VAR_STRING, Kind.STRING, Kind.BLOB,
    Kind.BLOB_COMPRESSED, Kind.VARCHAR_COMPRESSED,
))  # fmt: skip
_LABELS: Final = frozenset((Kind.ENUM, Kind.SET))


def parse_table(data: bytes, *, mariadb: bool) -> Table:
    """The body of a TABLE_MAP behind its table's number. mariadb: it counts geometry among texts.

    Raises UndecodableError, also for a type that is not known.
    """
    read = Bytes(data)
    read.take(2)  # flags of what the writer checked
    schema = read.terminated(read.packed())
    name = read.terminated(read.packed())
    kinds = read.take(read.packed())
    extra = Bytes(read.take(read.packed()))
    columns = [_column(kind, extra) for kind in kinds]
    extra.end()
    read.take((len(kinds) + 7) // 8)  # which may be NULL
    texts = _TEXTS | {Kind.GEOMETRY} if mariadb else _TEXTS
    said = _Metadata(columns, texts)
    while read.left:
        field = read.number(1)
        said.read(field, Bytes(read.take(read.packed())))
    described = all(column.name for column in said.columns)
    key = tuple(said.columns[place].name for place in said.key) if described else ()
    if described and len({column.name for column in said.columns}) != len(columns):
        undecodable("two columns of one name")
    return Table(schema, name, tuple(said.columns), key, described)


def _column(kind: int, extra: Bytes) -> Column:
    """A column by its type and what stands beside it."""
    try:
        known = Kind(kind)
    except ValueError:
        undecodable(f"a column of the unknown type {kind}")
    if known in _NO_EXTRA:
        return Column("", known, 0, 0)
    if known not in _TWO:
        return Column("", known, extra.number(1), 0)
    first, second = extra.number(1), extra.number(1)
    if known is Kind.STRING:
        return _string(first, second)
    if known is Kind.BIT:
        return Column("", known, second * 8 + first, 0)
    if known is Kind.NEWDECIMAL:
        return Column("", known, first, second)
    return Column("", known, second << 8 | first, 0)


def _string(first: int, second: int) -> Column:
    """CHAR, ENUM and SET come as one type; the first byte is the type, and two bits of a length."""
    if first in (Kind.ENUM, Kind.SET):
        return Column("", Kind(first), second, 0)
    if first | 0x30 != Kind.STRING:
        undecodable(f"a column of the unknown type {first} in a string")
    return Column("", Kind.STRING, (~first & 0x30) << 4 | second, 0)


class _Metadata:
    """What the optional fields say, put into the columns field by field."""

    def __init__(self, columns: list[Column], texts: frozenset[Kind]) -> None:
        self.columns = columns
        self.key: list[int] = []
        self._texts = self._places(texts)
        self._labels = self._places(_LABELS)
        self._fields: dict[int, Callable[[Bytes], None]] = {
            1: self._signs,
            2: lambda read: self._default_collation(read, self._texts),
            3: lambda read: self._collations(read, self._texts),
            4: self._names,
            5: lambda read: self._label_lists(read, Kind.SET),
            6: lambda read: self._label_lists(read, Kind.ENUM),
            8: self._key,
            9: self._key_of_prefixes,
            10: lambda read: self._default_collation(read, self._labels),
            11: lambda read: self._collations(read, self._labels),
        }

    def read(self, field: int, read: Bytes) -> None:
        """One field; others, of geometry, visibility and vectors, say nothing of how to read."""
        parse = self._fields.get(field)
        if parse is not None:
            parse(read)
            read.end()

    def _places(self, kinds: frozenset[Kind]) -> list[int]:
        return [place for place, column in enumerate(self.columns) if column.kind in kinds]

    def _signs(self, read: Bytes) -> None:
        numbers = self._places(_NUMBERS)
        bits = read.take((len(numbers) + 7) // 8)
        for n, place in enumerate(numbers):
            unsigned = bool(bits[n // 8] & 0x80 >> n % 8)
            self.columns[place] = self.columns[place]._replace(unsigned=unsigned)

    def _default_collation(self, read: Bytes, places: list[int]) -> None:
        """One collation for all, but for those that are listed by their place among them."""
        default = read.packed()
        others = dict(_pairs(read))
        if any(n >= len(places) for n in others):
            undecodable("the collation of a column that is not there")
        for n, place in enumerate(places):
            collation = others.get(n, default)
            self.columns[place] = self.columns[place]._replace(collation=collation)

    def _collations(self, read: Bytes, places: list[int]) -> None:
        for place in places:
            self.columns[place] = self.columns[place]._replace(collation=read.packed())

    def _names(self, read: Bytes) -> None:
        for place, column in enumerate(self.columns):
            self.columns[place] = column._replace(name=read.text(read.packed()))

    def _label_lists(self, read: Bytes, kind: Kind) -> None:
        for place in self._places(frozenset((kind,))):
            labels = tuple(read.take(read.packed()) for _ in range(read.packed()))
            self.columns[place] = self.columns[place]._replace(labels=labels)

    def _key(self, read: Bytes) -> None:
        while read.left:
            self._add_key(read.packed())

    def _key_of_prefixes(self, read: Bytes) -> None:
        for place, _ in _pairs(read):
            self._add_key(place)

    def _add_key(self, place: int) -> None:
        if place >= len(self.columns):
            undecodable("a key of a column that is not there")
        self.key.append(place)


def _pairs(read: Bytes) -> Iterator[tuple[int, int]]:
    while read.left:
        yield read.packed(), read.packed()
