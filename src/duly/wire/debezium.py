"""A change in the form in which Debezium tells it: its JSON without schemas.

Owns the form of values and the fields of key and envelope, as Debezium's connectors have them by
default: numerics as the bytes of their unscaled value, dates as days, times as microseconds, a
placeholder for a value that the log did not carry; timestamps as its connector of PostgreSQL has
them, or those of MariaDB and MySQL.  Where only the type of a column tells the form, ``types`` of a
``Form`` does.  A numeric of PostgreSQL without a declared scale, and its timestamps of fewer than
four digits, come as those with.
"""

from __future__ import annotations

import re
from binascii import b2a_base64
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple

import msgspec

from duly.errors import ConfigurationError
from duly.kernel.changes import ABSENT, Absent, Change

__all__ = ["UNAVAILABLE", "Decimals", "Envelope", "Form", "Told", "json_text", "told"]

UNAVAILABLE = "__debezium_unavailable_value"
Decimals = Literal["precise", "string", "double"]
Row = Mapping[str, Any]
_Forms = Mapping[type, Callable[[Any], Any]]
_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001  # of a timestamp without a zone
_EPOCH_DAY: Final = date(1970, 1, 1)
_MICRO: Final = timedelta(microseconds=1)
_OPS: Final = {"create": "c", "update": "u", "delete": "d", "read": "r"}
_JSON: Final = msgspec.json.Encoder(decimal_format="number").encode
_TYPE: Final = re.compile(
    r"(date)|(datetime|timestamp)(?:\(([1-6])\))?|(bit)(?:\(([1-9]|[1-5]\d|6[0-4])\))?", re.ASCII
)


class Envelope(NamedTuple):
    """The value of one event, but for its source and its own time. op: c, u, d or r."""

    before: dict[str, Any] | None
    after: dict[str, Any] | None
    op: str


class Told(NamedTuple):
    """One event. key: JSON text. envelope: None for a tombstone."""

    key: str
    envelope: Envelope | None


class Form:
    """How the rows of a table are told.

    decimals: as Debezium's ``decimal.handling.mode``. binlog: as its connectors of MariaDB and
    MySQL do. types: for those, by column: DATETIME(4) and more digits, TIMESTAMP(1) and more, BIT;
    also DATE, DATETIME and TIMESTAMP that can be zero, which is told as NULL then. Raises
    ConfigurationError for another type.
    """

    def __init__(
        self, *, decimals: Decimals = "precise", binlog: bool = False, types: Mapping[str, str] = {}
    ) -> None:
        forms: _Forms = {**_FORMS, Decimal: _DECIMALS[decimals]}
        # One look-up by the class of a value; what is not in there is told as it is.
        self._forms = {**forms, **_BINLOG} if binlog else {**forms, list: self._list}
        self._columns = {n: {**self._forms, **_typed(n, one.lower())} for n, one in types.items()}

    def row(self, row: Row) -> dict[str, Any]:
        """A row in a form that JSON has.

        Raises ConfigurationError for a moment with digits that its type would not have.
        """
        columns, forms = self._columns, self._forms
        return {
            name: value
            if (form := columns.get(name, forms).get(type(value))) is None
            else form(value)
            for name, value in row.items()
        }

    def gone(self, row: Row) -> dict[str, Any]:
        """As ``row``, for one that is gone: what the log did not carry is told as NULL."""
        return self.row({name: None if one is ABSENT else one for name, one in row.items()})

    def _list(self, values: list[Any]) -> list[Any]:
        return list(self.row({str(n): one for n, one in enumerate(values)}).values())


def told(change: Change, form: Form, *, tombstones: bool) -> Iterator[Told]:
    """The events of a change: one, one and a tombstone for a row that is gone, all three for one
    whose key has changed, none for an emptied table, which Debezium leaves out, too.
    """
    if change.op == "truncate":
        return
    key, before, after = change.key, change.before, change.after
    old = _old_key(key, before) if change.op == "update" and before is not None else key
    if change.op == "delete" or old != key:
        gone = _key(old, form)
        yield Told(gone, Envelope(None if before is None else form.gone(before), None, "d"))
        if tombstones:
            yield Told(gone, None)
    if after is None:
        return
    op, shown = _OPS[change.op], None
    if old != key:
        op = "c"
    elif op == "u" and before is not None and Absent not in map(type, before.values()):
        shown = form.row(before)
    yield Told(_key(key, form), Envelope(shown, form.row(after), op))


def _old_key(key: Row, before: Row) -> Row:
    """What named the row before an update, as far as the log says."""
    old = {name: before.get(name, ABSENT) for name in key}
    return {name: key[name] if one is ABSENT else one for name, one in old.items()}


def _key(row: Row, form: Form) -> str:
    if len(row) == 1:
        [(name, value)] = row.items()
        if type(value) is int:  # the usual one; a whole number is told as it is
            return f"{{{_name_text(name)}: {value}}}"
    return _key_text(form.row(row))


def _key_text(key: Row) -> str:
    return "{" + ", ".join([f"{_name_text(n)}: {json_text(one)}" for n, one in key.items()]) + "}"


def json_text(value: Any) -> str:
    """JSON as PostgreSQL writes it for a ``jsonb``, with a blank behind each sign, for text."""
    if isinstance(value, dict):
        return _key_text(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(json_text, value)) + "]"
    if type(value) is int:
        return str(value)
    return _JSON(value).decode()


@lru_cache(maxsize=1024)
def _name_text(name: str) -> str:
    return json_text(name)


# --- values ---------------------------------------------------------------------------------------
def _bytes(value: bytes) -> str:
    return b2a_base64(value, newline=False).decode()


def _digits(value: Decimal) -> str:
    text = str(value)
    return format(value, "f") if "E" in text else text


def _float(value: Decimal) -> float | str:
    return float(value) if value.is_finite() else str(value)


def _unscaled(value: Decimal) -> str:
    """The bytes of the number without its point."""
    if not value.is_finite():
        return str(value)  # which has no bytes
    number = int(_digits(value).replace(".", ""))
    size = ((number if number >= 0 else ~number).bit_length() + 8) // 8
    return _bytes(number.to_bytes(size, "big", signed=True))


def _days(value: date) -> int:
    return (value - _EPOCH_DAY).days


def _clock(value: time) -> int:
    whole = timedelta(hours=value.hour, minutes=value.minute, seconds=value.second)
    return whole // _MICRO + value.microsecond


def _span(value: timedelta) -> int:
    return value // _MICRO


def _micros(value: datetime) -> int:
    return (value - _EPOCH) // _MICRO


def _moment(value: datetime) -> int | str:
    """Of PostgreSQL: microseconds; with a zone its shortest text."""
    if value.tzinfo is None:
        return _micros(value)
    return _all_digits(value)[:-1].rstrip("0") + "Z" if value.microsecond else _whole_seconds(value)


def _short_moment(value: datetime) -> int | str:
    """Of DATETIME to DATETIME(3): milliseconds; of TIMESTAMP: whole seconds, as text."""
    if value.tzinfo is not None:
        return _whole_seconds(value)
    millis, micros = divmod(_micros(value), 1000)
    if micros:
        _too_fine("DATETIME", "datetime(6)")
    return millis


def _instant(digits: int) -> Callable[[datetime], str]:
    """Of TIMESTAMP: as many digits as its type has."""
    unit, whole = 10 ** (6 - digits), len("2000-01-01 00:00:00")
    end, zeros = whole + (digits + 1 if digits else 0), "." + "0" * digits if digits else ""

    def instant(value: datetime) -> str:
        micros = value.microsecond
        if micros % unit:
            _too_fine(f"TIMESTAMP({digits})", "timestamp(6)")
        moment = value if value.tzinfo is UTC else value.astimezone(UTC)
        text = _JSON(moment)[1:-2].decode()  # a tenth of what isoformat takes
        return f"{text[:end]}Z" if micros else f"{text}{zeros}Z"

    return instant


def _too_fine(declared: str, example: str) -> None:
    text = f"Debezium: a moment is finer than {declared}; say the column's type, as in types="
    raise ConfigurationError(f'{text}{{"column": "{example}"}}')


def _bits(value: bytes) -> str:
    return _bytes(value[::-1])


def _bit(value: bytes) -> bool:
    return value != b"\0"


def _compact(value: Any) -> str:
    """A document of MySQL's."""
    return _JSON(value).decode()


def _null(value: Any) -> None:
    """What Debezium has no value for."""


def _typed(name: str, declared: str) -> _Forms:
    """What is told in another way because of the type of its column."""
    found = _TYPE.fullmatch(declared)
    if found is None:
        text = f"Debezium: a type of column {name!r:.80} is 'date', 'datetime(6)', 'timestamp(6)'"
        raise ConfigurationError(f"{text} or 'bit(8)', with its own digits")
    _, moment, digits, bit, size = found.groups()
    if bit:
        return {bytes: _bits if int(size or 1) > 1 else _bit}
    zero: _Forms = {str: _null}  # a zero date is a text, and no other value of these is
    if moment == "timestamp":
        return {**zero, datetime: _instant(int(digits or 0))}
    return {**zero, datetime: _micros} if int(digits or 0) > 3 else zero


def _unavailable(value: Absent) -> str:
    return UNAVAILABLE


_whole_seconds: Final = _instant(0)
_all_digits: Final = _instant(6)
_FORMS: Final[_Forms] = {
    bytes: _bytes,
    date: _days,
    datetime: _moment,
    time: _clock,
    timedelta: _span,
    dict: json_text,
    Absent: _unavailable,
}
_DECIMALS: Final[Mapping[Decimals, Callable[[Decimal], Any]]] = {
    "precise": _unscaled,
    "string": _digits,
    "double": _float,
}
_BINLOG: Final[_Forms] = {datetime: _short_moment, dict: _compact, list: _compact}
