"""A message as a Kafka record and back: the CloudEvents Kafka binding in binary mode. Pure.

Attributes are headers with the prefix ``ce_``, ``datacontenttype`` is the header ``content-type``,
the record's key is the message's key. A record of another producer may be in structured mode, and
its key counts where no ``ce_partitionkey`` says otherwise; a key that is no text is no key of ours.
Invariant: reading never raises, and a record without an id has one that every redelivery keeps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from duly.message import Message, is_key
from duly.wire.cloudevents import (
    CONTENT_TYPE,
    STRUCTURED_CONTENT_TYPE,
    HeaderWriter,
    from_headers,
    from_structured,
)

__all__ = ["PREFIX", "from_record", "headers_of"]

PREFIX = "ce_"
_CONTENT_TYPE = "content-type"
_KEY = f"{PREFIX}partitionkey"


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
    given: Iterable[tuple[str, bytes | None]] = record.headers() or ()
    headers: dict[str, object] = dict(given)
    content_type = _text(headers.pop(_CONTENT_TYPE, b""))
    payload: bytes = record.value() or b""
    place = f"{record.topic()}/{record.partition()}/{record.offset()}"
    if content_type.startswith(STRUCTURED_CONTENT_TYPE):
        return from_structured(payload, topic=topic, fallback_id=place, headers=headers)
    key = _text(record.key())
    if _KEY not in headers and is_key(key):
        headers[_KEY] = key
    return from_headers(headers, payload, prefix=PREFIX, topic=topic, fallback_id=place)


def _text(value: object) -> str:
    """Bytes as text; nothing for what is none."""
    try:
        return value.decode() if isinstance(value, bytes) else ""
    except UnicodeDecodeError:
        return ""
