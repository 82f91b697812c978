"""A change in the form in which Debezium tells it: its JSON without schemas.

Owns the form of values and the fields of key and envelope, as Debezium's connectors have them by
default: numerics as the bytes of their unscaled value, dates as days, times and timestamps as
microseconds, a placeholder for a value that the log did not carry.  What cannot be told from a
value alone is not here: a numeric without a declared scale and a timestamp of fewer than four
digits, which Debezium tells by the column's type, come as those with.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Literal, NamedTuple

import msgspec

from duly.kernel.changes import ABSENT, Change

__all__ = ["UNAVAILABLE", "Decimals", "Envelope", "Told", "json_text", "told", "value_of"]

UNAVAILABLE = "__debezium_unavailable_value"
Decimals = Literal["precise", "string", "double"]
Row = Mapping[str, Any]
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  # of a timestamp without a zone
_EPOCH_DAY = date(1970, 1, 1)
_MICRO = timedelta(microseconds=1)
_OPS = {"create": "c", "update": "u", "delete": "d", "read": "r"}


class Envelope(NamedTuple):
    """The value of one event, but for its source and its own time. op: c, u, d or r."""

    before: dict[str, Any] | None
    after: dict[str, Any] | None
    op: str


class Told(NamedTuple):
    """One event. key: JSON text. envelope: None for a tombstone."""

    key: str
    envelope: Envelope | None


def told(change: Change, *, decimals: Decimals, tombstones: bool) -> Iterator[Told]:
    """The events of a change: one, one and a tombstone for a row that is gone, all three for one
    whose key has changed, none for an emptied table, which Debezium leaves out, too.
    """
    if change.op == "truncate":
        return
    key = _row(change.key, decimals) or {}
    before, after = _row(change.before, decimals, gone=True), _row(change.after, decimals)
    old = _old_key(change, decimals)
    if change.op == "delete" or old != key:
        yield Told(json_text(old), Envelope(before, None, "d"))
        if tombstones:
            yield Told(json_text(old), None)
    if change.op == "delete":
        return
    whole = change.before is not None and ABSENT not in change.before.values()
    if old != key:
        yield Told(json_text(key), Envelope(None, after, "c"))
        return
    shown = _row(change.before, decimals) if whole and change.op == "update" else None
    yield Told(json_text(key), Envelope(shown, after, _OPS[change.op]))


def _old_key(change: Change, decimals: Decimals) -> dict[str, Any]:
    before = change.before or {}
    pairs = ((name, before.get(name, value)) for name, value in change.key.items())
    key = {name: change.key[name] if value is ABSENT else value for name, value in pairs}
    return _row(key, decimals) or {}


def _row(row: Row | None, decimals: Decimals, *, gone: bool = False) -> dict[str, Any] | None:
    """gone: of a row that is gone, what the log did not carry is told as NULL."""
    if row is None:
        return None
    return {
        name: None if gone and value is ABSENT else value_of(value, decimals)
        for name, value in row.items()
    }


def value_of(value: Any, decimals: Decimals = "precise") -> Any:
    """A value of a change in a form that JSON has."""
    if isinstance(value, Decimal):
        return _decimal(value, decimals)
    if isinstance(value, datetime):
        return _zoned(value) if value.tzinfo is not None else (value - _EPOCH) // _MICRO
    if isinstance(value, date):
        return (value - _EPOCH_DAY).days
    if isinstance(value, time):
        whole = timedelta(hours=value.hour, minutes=value.minute, seconds=value.second)
        return whole // _MICRO + value.microsecond
    if isinstance(value, timedelta):
        return value // _MICRO
    if isinstance(value, list):
        return [value_of(one, decimals) for one in value]
    return _plain(value)


def _plain(value: Any) -> Any:
    if value is ABSENT:
        return UNAVAILABLE
    if isinstance(value, bytes):
        return b64encode(value).decode()
    return json_text(value) if isinstance(value, dict) else value


def _decimal(value: Decimal, decimals: Decimals) -> Any:
    sign, digits, exponent = value.as_tuple()
    if decimals == "string" or not isinstance(exponent, int):  # NaN has no bytes
        return format(value, "f")
    if decimals == "double":
        return float(value)
    number = int("".join(map(str, digits))) * 10 ** max(0, exponent)
    signed = -number if sign else number
    size = ((signed if signed >= 0 else ~signed).bit_length() + 8) // 8
    return b64encode(signed.to_bytes(size, "big", signed=True)).decode()


def _zoned(value: datetime) -> str:
    text = value.astimezone(UTC).replace(tzinfo=None).isoformat()
    return f"{text.rstrip('0') if '.' in text else text}Z"


def json_text(value: Any) -> str:
    """JSON as PostgreSQL writes it for a ``jsonb``, with a blank behind each sign, for text."""
    if isinstance(value, dict):
        inner = (f"{json_text(str(name))}: {json_text(one)}" for name, one in value.items())
        return "{" + ", ".join(inner) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(json_text, value)) + "]"
    return msgspec.json.encode(value).decode()
