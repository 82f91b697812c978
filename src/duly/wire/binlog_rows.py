"""Rows of the binlog: compiled once for each layout of a table, then read a whole event at a time.

Owns what the log says of a row before and after a change.  Invariant: the three states of a value
stay apart.  A column that an image leaves out (``binlog_row_image`` MINIMAL or NOBLOB) is taken
from the row before where that has it, for an update leaves out what it did not change; else it is
ABSENT.  Bytes that do not fit are an UndecodableError, never another exception.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from struct import Struct, calcsize, error
from types import CodeType
from typing import Any, Final, Literal, NamedTuple

from duly.kernel.changes import ABSENT, Op
from duly.wire.binlog_bytes import Bytes, undecodable
from duly.wire.binlog_json import patched, read_json
from duly.wire.binlog_table import Column, Kind, Table
from duly.wire.binlog_values import Layout, Read, layout_of, reader_of

__all__ = ["RowChange", "RowReader", "Rows"]

_READ_ERRORS: Final = (ValueError, LookupError, ArithmeticError, TypeError, error)
_IMAGES_MAX: Final = 64  # of one table at a time
_PARTIAL_JSON: Final = 1
_LENGTHS: Final = {
    1: "data[at]",
    2: "(data[at] | data[at + 1] << 8)",
    3: 'from_bytes(data[at : at + 3], "little")',
    4: 'from_bytes(data[at : at + 4], "little")',
}
Values = dict[str, Any]

# Operation, key, the row before and after, None where the log has no image; a plain tuple, for one
# is made for every row of the database.
RowChange = tuple[Op, Values, Values | None, Values | None]


class Rows(NamedTuple):
    """The rows of an event, not read yet. images: bitmaps of the columns that they have; of an
    update before and after. raw: the rows, one behind the other. partial: documents may be written
    as changes. last: of its statement.
    """

    op: Literal["create", "update", "delete"]
    table: Table
    images: tuple[bytes, ...]
    raw: bytes
    partial: bool
    last: bool


class _Image(NamedTuple):
    """What reads one row, and says where it ends. missing: wanted columns that are not in it."""

    read: Callable[[bytes, int], tuple[Values, int]]
    missing: tuple[str, ...]


class _Step(NamedTuple):
    """How a column is passed: all that the text of a function depends on."""

    layout: Layout
    kept: bool
    made: bool  # by a reader


class RowReader:
    """Reads the rows of one table as the log describes it.

    name: how the source's user calls it. keep: the columns that are carried. key: what names a row;
    columns it needs are read though they are not carried. declared: types of columns as the
    database's catalog tells them, where the log does not: "uuid", "inet6" and "inet4" of MariaDB,
    which are bytes else, and moments in the format before MySQL 5.6.

    Raises KeyError for a key column that the table does not have, UndecodableError for what the log
    does not say or nobody can read (BINLOG_METADATA, BINLOG_CHARSET).
    """

    def __init__(
        self,
        table: Table,
        name: str,
        *,
        keep: Collection[str],
        key: Sequence[str],
        declared: Mapping[str, str] | None = None,
    ) -> None:
        if not table.described:
            undecodable(
                f"the columns of {name} have no names; run: SET GLOBAL binlog_row_metadata = FULL",
                code="BINLOG_METADATA",
            )
        self.name = name
        self._columns = table.columns
        self._key = tuple(key)
        for column in self._key:
            if column not in {one.name for one in table.columns}:
                raise KeyError(column)
        self._dropped = tuple(column for column in self._key if column not in keep)
        self._wanted = {*keep, *key}
        types = declared or {}
        self._layouts = [layout_of(one, types.get(one.name, "")) for one in table.columns]
        self._readers = [self._reader(one, types.get(one.name, "")) for one in table.columns]
        self._json = [n for n, one in enumerate(table.columns) if one.kind is Kind.JSON]
        self._images: dict[tuple[bytes, frozenset[int]], _Image] = {}

    def _reader(self, column: Column, declared: str) -> Read | None:
        if column.name not in self._wanted:
            return None
        return read_json if column.kind is Kind.JSON else reader_of(column, declared)

    def read(self, rows: Rows) -> list[RowChange]:
        """The changes of an event with rows of this table.

        Raises UndecodableError (BINLOG_ROW_IMAGE: the key is not in there).
        """
        try:
            if rows.op == "update":
                found, at = self._updates(rows)
            else:
                found, at = self._whole_rows(rows)
        except _READ_ERRORS as problem:
            undecodable(f"a row of {self.name}: {type(problem).__name__}: {str(problem)[:100]}")
        if at != len(rows.raw):
            undecodable(f"a row of {self.name} that ends at byte {at} of {len(rows.raw)}")
        return found

    def _whole_rows(self, rows: Rows) -> tuple[list[RowChange], int]:
        data, at, end = rows.raw, 0, len(rows.raw)
        image = self._image(rows.images[0])
        self._check_key(image.missing)
        read, created = image.read, rows.op == "create"
        found: list[RowChange] = []
        one = self._key[0] if len(self._key) == 1 and not self._dropped else None
        if created and one is not None:
            while at < end:  # the most of all, so with the fewest calls
                row, at = read(data, at)
                found.append(("create", {one: row[one]}, None, row))
            return found, at
        while at < end:
            row, at = read(data, at)
            change = ("create", None, row) if created else ("delete", row, None)
            found.append(self._carried(*change))
        return found, at

    def _updates(self, rows: Rows) -> tuple[list[RowChange], int]:
        data, at, end = rows.raw, 0, len(rows.raw)
        old, new = self._image(rows.images[0]), self._image(rows.images[1])
        self._check_key([name for name in new.missing if name in old.missing])
        changed: tuple[str, ...] = ()
        found: list[RowChange] = []
        while at < end:
            before, at = old.read(data, at)
            if rows.partial:
                new, changed, at = self._partial(rows.images[1], data, at)
            after, at = new.read(data, at)
            for name in new.missing:
                after[name] = before[name]
            for name in changed:
                after[name] = _patched(before[name], after[name])
            found.append(self._carried("update", before, after))
        return found, at

    def _partial(self, bitmap: bytes, data: bytes, at: int) -> tuple[_Image, tuple[str, ...], int]:
        """The image that follows, whose documents may be changes; names of those, and where it
        begins.
        """
        read = Bytes(data, at)
        options = read.packed()
        if options & ~_PARTIAL_JSON:
            raise ValueError(f"the options {options} of a row")
        if not options:
            return self._image(bitmap), (), read.at
        bits = read.number((len(self._json) + 7) // 8)
        places = frozenset(place for n, place in enumerate(self._json) if bits >> n & 1)
        image = self._image(bitmap, places)
        names = (self._columns[place].name for place in sorted(places))
        changed = [name for name in names if name in self._wanted and name not in image.missing]
        return image, tuple(changed), read.at

    def _check_key(self, missing: Collection[str]) -> None:
        for name in self._key:
            if name in missing:
                undecodable(
                    f"{self.name}.{name} is not in the log; run: SET GLOBAL binlog_row_image ="
                    " FULL",
                    code="BINLOG_ROW_IMAGE",
                )

    def _carried(self, op: Op, before: Values | None, after: Values | None) -> RowChange:
        """The change without the columns that were read for the key only."""
        row = before if after is None else after
        assert row is not None, "a change of no row"
        key = {name: row[name] for name in self._key}
        for name in self._dropped:
            for image in (before, after):
                if image is not None:
                    del image[name]
        return op, key, before, after

    def _image(self, bitmap: bytes, raw: frozenset[int] = frozenset()) -> _Image:
        """What reads the rows of a bitmap. raw: places of columns that stay bytes."""
        image = self._images.get((bitmap, raw))
        if image is None:
            if len(self._images) >= _IMAGES_MAX:
                self._images.clear()
            image = self._images[bitmap, raw] = self._compiled(bitmap, raw)
        return image

    def _compiled(self, bitmap: bytes, raw: frozenset[int]) -> _Image:
        bits = int.from_bytes(bitmap, "little")
        every = range(len(self._columns))
        present = [place for place in every if bits >> place & 1]
        if not present:
            undecodable(f"a row of {self.name} without columns")
        readers = [None if place in raw else self._readers[place] for place in present]
        names = [self._columns[place].name for place in present]
        kept = [name in self._wanted for name in names]
        missing = tuple(
            column.name
            for place, column in enumerate(self._columns)
            if column.name in self._wanted and place not in present
        )
        steps = tuple(
            _Step(self._layouts[place], wanted, one is not None)
            for place, wanted, one in zip(present, kept, readers, strict=True)
        )
        read = _row_reader(steps, names=names, readers=readers, missing=missing)
        return _Image(read, missing)


def _patched(before: Any, diffs: bytes | None) -> Any:
    """A document after the changes that its row has of it; NULL is no change."""
    if diffs is None:
        return None
    return ABSENT if before is ABSENT else patched(before, diffs)


def _row_reader(
    steps: tuple[_Step, ...],
    *,
    names: Sequence[str],
    readers: Sequence[Read | None],
    missing: Sequence[str],
) -> Callable[[bytes, int], tuple[Values, int]]:
    known: dict[str, Any] = {"from_bytes": int.from_bytes, "absent": ABSENT}
    for number, (name, read) in enumerate(zip(names, readers, strict=True)):
        known |= {f"name{number}": name, f"read{number}": read}
    known |= {f"missing{number}": name for number, name in enumerate(missing)}
    for run in _runs(steps):
        for part in (run, *((number,) for number in run)):
            known[_struct_name(part)] = Struct(_format(steps, part)).unpack_from
    exec(_row_code(steps, len(missing)), known)  # noqa: S102  # our own text below; nothing of the log is in it
    made: Callable[[bytes, int], tuple[Values, int]] = known["row"]
    return made


def _runs(steps: Sequence[_Step]) -> Iterator[tuple[int, ...]]:
    """Numbers of columns side by side whose values have the same length in every row."""
    for fixed, run in groupby(range(len(steps)), lambda number: not steps[number].layout.prefix):
        if fixed:
            yield tuple(run)


def _struct_name(run: Sequence[int]) -> str:
    return f"unpack{run[0]}to{run[-1]}"


def _format(steps: Sequence[_Step], run: Sequence[int]) -> str:
    codes = (
        steps[n].layout.code if steps[n].kept else f"{calcsize('<' + steps[n].layout.code)}x"
        for n in run
    )
    return "<" + "".join(codes)


@lru_cache(maxsize=256)
def _row_code(steps: tuple[_Step, ...], missing: int) -> CodeType:
    """The function with its loop over the columns unrolled, for rows without NULL with what is of a
    fixed length read at once: that is where the time goes.
    """
    size = (len(steps) + 7) // 8
    lines = ["def row(data, at):"]
    lines += [f' nulls = from_bytes(data[at : at + {size}], "little") & {(1 << len(steps)) - 1}']
    lines += [f" at += {size}", " if nulls:"]
    for number in range(len(steps)):
        lines += [f"  if nulls & {1 << number}:", f"   value{number} = None", "  else:"]
        lines += [f"   {line}" for line in _passed(steps, (number,))]
    lines += [" else:"]
    ends = {run[0]: run for run in _runs(steps)}
    inside = {number for run in ends.values() for number in run[1:]}
    for number in range(len(steps)):
        if number not in inside:
            lines += [f"  {line}" for line in _passed(steps, ends.get(number, (number,)))]
    pairs = [f"name{n}: value{n}" for n, step in enumerate(steps) if step.kept]
    pairs += [f"missing{n}: absent" for n in range(missing)]
    return compile("\n".join([*lines, f" return {{{', '.join(pairs)}}}, at"]), "<row>", "exec")


def _passed(steps: Sequence[_Step], run: Sequence[int]) -> list[str]:
    """Lines that read the values of a run, or of one column with a length, and go behind them."""
    first = run[0]
    prefix = steps[first].layout.prefix
    kept = [number for number in run if steps[number].kept]
    if prefix:
        lines = [f"start = at + {prefix}", f"at = start + {_LENGTHS[prefix]}"]
        lines += [f"value{first} = data[start:at]"] if kept else []
    else:
        values = "".join(f"value{number}, " for number in kept)
        lines = [f"{values}= {_struct_name(run)}(data, at)"] if kept else []
        lines += [f"at += {calcsize(_format(steps, run))}"]
    made = (number for number in kept if steps[number].made)
    return lines + [f"value{number} = read{number}(value{number})" for number in made]
