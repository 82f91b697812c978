"""A message as a Kafka record and back: the CloudEvents Kafka binding in binary mode. Pure.

Attributes are headers with the prefix ``ce_``, ``datacontenttype`` is the header ``content-type``,
the record's key is the message's key. A record of another producer may be in structured mode, and
its key counts where no ``ce_partitionkey`` says otherwise; a key that is no text is no key of ours.
Invariant: reading never raises, and a record without an id has one that every redelivery keeps.

A topic's records mostly have the same headers in the same order, and differ in id, time and key:
what the others mean is found once (``_Shape``), and these three are looked at where they stand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any

from duly.message import Message, is_key
from duly.wire.cloudevents import (
    CONTENT_TYPE,
    STRUCTURED_CONTENT_TYPE,
    HeaderWriter,
    common_of,
    from_headers,
    from_structured,
    like,
    own_names,
)

__all__ = ["PREFIX", "from_record", "headers_of"]

PREFIX = "ce_"
_CONTENT_TYPE = "content-type"
_ID, _TIME, _KEY = own_names(PREFIX)
_OWN = frozenset(own_names(PREFIX))
_TRACE = "traceparent"  # every one has its own


def headers_of(message: Message) -> list[tuple[str, bytes]]:
    """The record's headers. Raises UnicodeEncodeError for what is no text."""
    shared, own = _WRITER.write(message)
    return [*shared, *own, _JSON]


def _encoded(headers: Mapping[str, str]) -> list[tuple[str, bytes]]:
    return [(name, value.encode()) for name, value in headers.items() if name not in _TYPES]


_TYPES = frozenset({_CONTENT_TYPE, f"{PREFIX}datacontenttype"})
_JSON = (_CONTENT_TYPE, CONTENT_TYPE.encode())
_WRITER = HeaderWriter(PREFIX, _encoded)


def from_record(record: Any, *, topic: str) -> Message:
    """The message of a received record. topic: the name that it is declared by."""
    given: Sequence[tuple[str, bytes | None]] = record.headers() or ()
    payload: bytes = record.value() or b""
    if given:
        names, values = zip(*given, strict=True)
        shape = _shape(names)
        if shape and (one := shape.message(values, record.key(), payload=payload, topic=topic)):
            return one
    headers: dict[str, object] = dict(given)
    content_type = _text(headers.pop(_CONTENT_TYPE, b""))
    place = f"{record.topic()}/{record.partition()}/{record.offset()}"
    if content_type.startswith(STRUCTURED_CONTENT_TYPE):
        return from_structured(payload, topic=topic, fallback_id=place, headers=headers)
    key = _text(record.key())
    if _KEY not in headers and is_key(key):
        headers[_KEY] = key
    return from_headers(headers, payload, prefix=PREFIX, topic=topic, fallback_id=place)


class _Shape:
    """Records with headers of these names, in this order; id and time are among them. shared: gives
    the values of those that are not id, time or key.
    """

    def __init__(self, names: tuple[str, ...], shared: Callable[..., tuple[Any, ...]]) -> None:
        self._names, self._shared = names, shared
        self._id, self._time = names.index(_ID), names.index(_TIME)
        self._key = names.index(_KEY) if _KEY in names else None
        self._common = lru_cache(maxsize=128)(self._find_common)

    def message(
        self, values: Sequence[bytes | None], key: bytes | None, *, payload: bytes, topic: str
    ) -> Message | None:
        """The message; None when the record must be read as a whole. values: of its headers.
        key: the record's own.
        """
        common = self._common(self._shared(values), topic)
        if common is None:
            return None
        at = self._key
        by = _text(key if at is None else values[at])
        if not by and (at is not None or key):
            return None
        own = (_text(values[self._id]), _text(values[self._time]), by or None)
        return like(common, own=own, payload=payload)

    def _find_common(self, values: tuple[object, ...], topic: str) -> Message | None:
        headers = dict(zip(self._shared(self._names), values, strict=True))
        if _text(headers.pop(_CONTENT_TYPE, b"")).startswith(STRUCTURED_CONTENT_TYPE):
            return None
        return common_of(headers, prefix=PREFIX, topic=topic)


@lru_cache(maxsize=128)
def _shape(names: tuple[str, ...]) -> _Shape | None:
    """None where such records must be read as a whole, each."""
    shared = [place for place, name in enumerate(names) if name not in _OWN]
    if len(set(names)) < len(names) or len(shared) < 2:
        return None
    if _ID not in names or _TIME not in names or _TRACE in names:
        return None
    return _Shape(names, itemgetter(*shared))


def _text(value: object) -> str:
    """Bytes as text; nothing for what is none."""
    try:
        return value.decode() if isinstance(value, bytes) else ""
    except UnicodeDecodeError:
        return ""
