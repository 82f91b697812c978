"""AMQP 0-9-1 bytes of the hot path: publish, deliver, ack. Pure.

pika encodes and decodes one object per frame, several times the cost of what the broker does with
the message.  Here the three frames of a publish become one ``bytes``, and received frames are read
in place.  Invariant: whatever is not understood here is left to pika, never guessed; frame sizes
stay below the negotiated maximum.  Leaves out connection set-up and every method that is rare.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

from pika import data as pika_data
from pika.exceptions import AMQPError

__all__ = [
    "ACK",
    "DELIVER",
    "FRAME_END",
    "NACK",
    "Confirm",
    "Delivered",
    "Properties",
    "ack",
    "content",
    "decode_confirm",
    "decode_deliver",
    "decode_properties",
    "frames",
    "publish_method",
    "requeue",
    "text_spans",
]

FRAME_END = 0xCE
HEAD = struct.Struct(">BHI")
METHOD, HEADER, BODY = 1, 2, 3
DELIVER = b"\x00\x3c\x00\x3c"
ACK = b"\x00\x3c\x00\x50"
NACK = b"\x00\x3c\x00\x78"

_PIKA_ERRORS = (AMQPError, struct.error, RecursionError)
_END = b"\xce"
_MANDATORY = b"\x01"
_PERSISTENT = b"\x02"
# content-type, headers, delivery-mode, message-id
_FLAGS = 0x8000 | 0x2000 | 0x1000 | 0x0080
_CONTENT_HEAD = struct.Struct(">HHQH")
_LONG = struct.Struct(">I")
_CONFIRM = struct.Struct(">QB")
_ACK_FRAME = struct.Struct(">BHIIQBB")


class Confirm(NamedTuple):
    """The server's answer to publishes. tag: the delivery tag; multiple: up to and including it."""

    tag: int
    multiple: bool


class Delivered(NamedTuple):
    """The method of a delivery."""

    consumer: bytes
    tag: int
    redelivered: bool


_as_delivered = partial(tuple.__new__, Delivered)  # a third of the time that Delivered(...) takes


class Properties(NamedTuple):
    """What is kept of a content header."""

    content_type: str
    headers: dict[str, Any]
    message_id: str


# --- out ------------------------------------------------------------------------------------------
def frames(kind: int, channel: int, payload: bytes) -> bytes:
    """One frame."""
    return HEAD.pack(kind, channel, len(payload)) + payload + _END


def _short(value: bytes) -> bytes:
    if len(value) > 255:
        raise ValueError(f"{len(value)} bytes in a short string, at most 255")
    return bytes((len(value),)) + value


def publish_method(channel: int, exchange: str, routing_key: str) -> bytes:
    """The method frame of a mandatory publish."""
    names = _short(exchange.encode()) + _short(routing_key.encode())
    return frames(METHOD, channel, b"\x00\x3c\x00\x28\x00\x00" + names + _MANDATORY)


_LENGTHS = tuple("\0\0\0" + chr(n) for n in range(256))


@lru_cache(maxsize=4096)
def _field_name(name: str) -> str:
    """The bytes before a text field's length, as latin-1 text."""
    return _short(name.encode()).decode("latin-1") + "S"


def _table(headers: Mapping[str, str]) -> bytes:
    """A field table of text fields.

    One join of text and one encoding cost half of what encoding each field does; a character above
    ASCII in a value, or a long value, goes the plain way.
    """
    values = "".join(headers.values())
    if values.isascii() and len(values) < 256:
        named = [_field_name(n) + _LENGTHS[len(v)] + v for n, v in headers.items()]
        return "".join(named).encode("latin-1")
    pack = _LONG.pack
    pieces: list[bytes] = []
    for name, text in headers.items():
        value = text.encode()
        pieces += (_field_name(name).encode("latin-1"), pack(len(value)), value)
    return b"".join(pieces)


def content(
    channel: int, message_id: str, headers: Mapping[str, str], *, payload: bytes, frame_max: int
) -> list[bytes]:
    """The header and body frames of a persistent JSON message.

    frame_max: bytes of a whole frame. Raises ValueError for what fits no frame, UnicodeEncodeError.
    """
    table = _table(headers)
    properties = b"".join(
        (
            _CONTENT_HEAD.pack(60, 0, len(payload), _FLAGS),
            b"\x10application/json",
            _LONG.pack(len(table)),
            table,
            _PERSISTENT,
            _short(message_id.encode()),
        )
    )
    room = frame_max - 8
    if len(properties) > room:
        raise ValueError(f"{len(properties)} bytes of headers, at most {room} in one frame")
    out = [HEAD.pack(HEADER, channel, len(properties)), properties, _END]
    for start in range(0, len(payload), room):
        part = payload[start : start + room]
        out += (HEAD.pack(BODY, channel, len(part)), part, _END)
    return out


def ack(channel: int, tag: int, *, multiple: bool) -> bytes:
    """The frame that acks a delivery, or all up to it."""
    return _ACK_FRAME.pack(METHOD, channel, 13, 0x003C0050, tag, multiple, FRAME_END)


def requeue(channel: int, tag: int) -> bytes:
    """The frame that gives a delivery back to its queue."""
    return _ACK_FRAME.pack(METHOD, channel, 13, 0x003C0078, tag, 0b10, FRAME_END)


# --- in -------------------------------------------------------------------------------------------
def decode_confirm(buffer: bytes, start: int) -> Confirm:
    """Basic.Ack or Basic.Nack from the server; start: behind class and method."""
    tag, bits = _CONFIRM.unpack_from(buffer, start)
    return Confirm(tag, bool(bits & 1))


def decode_deliver(buffer: bytes, start: int) -> Delivered:
    """Basic.Deliver; start: behind class and method."""
    size = buffer[start]
    end = start + 1 + size
    tag, redelivered = _CONFIRM.unpack_from(buffer, end)
    return _as_delivered((buffer[start + 1 : end], tag, bool(redelivered & 1)))


def decode_properties(header: bytes) -> Properties:
    """The content header frame's payload. Raises ValueError when it is not well formed."""
    try:
        return _decode_properties(header)
    except (LookupError, ValueError, ArithmeticError, OSError, *_PIKA_ERRORS) as error:
        raise ValueError(f"content header: {type(error).__name__}") from error


def _decode_properties(header: bytes) -> Properties:
    flags = int.from_bytes(header[12:14], "big")
    content_type = message_id = ""
    headers: dict[str, Any] = {}
    at = 14
    if flags & 1:
        raise ValueError("content header: more than 15 properties")
    if flags & 0x8000:
        content_type, at = _read_short(header, at)
    if flags & 0x4000:  # content-encoding
        at += 1 + header[at]
    if flags & 0x2000:
        end = at + 4 + _LONG.unpack_from(header, at)[0]
        headers = _fields(header, at + 4, end)
        at = end
    at += bool(flags & 0x1000) + bool(flags & 0x0800)  # delivery-mode, priority
    for bit in (0x0400, 0x0200, 0x0100):  # correlation-id, reply-to, expiration
        if flags & bit:
            at += 1 + header[at]
    if flags & 0x0080:
        message_id, at = _read_short(header, at)
    return Properties(content_type, headers, message_id)


def text_spans(header: bytes) -> dict[str, tuple[int, int]]:
    """Where the value of each text field lies in a content header, and of the message id, under "".

    Only of headers with the properties that ``content`` writes; none for others. header: one that
    ``decode_properties`` can read.
    """
    if int.from_bytes(header[12:14], "big") != _FLAGS:
        return {}
    at = 15 + header[14]
    end = at + 4 + _LONG.unpack_from(header, at)[0]
    spans: dict[str, tuple[int, int]] = {}
    at += 4
    while at < end:
        kind_at = at + 1 + header[at]
        name = _known_name(header[at + 1 : kind_at])
        if header[kind_at] == 83:
            start = kind_at + 5
            at = start + _LONG.unpack_from(header, kind_at + 1)[0]
            spans[name] = (start, at)
        else:
            _, at = pika_data.decode_value(header, kind_at)
    spans[""] = (end + 2, len(header))  # behind the delivery mode and its own length
    return spans


def _read_short(buffer: bytes, at: int) -> tuple[str, int]:
    end = at + 1 + buffer[at]
    return buffer[at + 1 : end].decode(), end


@lru_cache(maxsize=4096)
def _known_name(name: bytes) -> str:
    return name.decode()


def _fields(buffer: bytes, at: int, end: int) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    size_at = _LONG.unpack_from
    while at < end:
        kind_at = at + 1 + buffer[at]
        name = _known_name(buffer[at + 1 : kind_at])
        if buffer[kind_at] == 83:  # "S": text, as nearly all are
            start = kind_at + 5
            at = start + size_at(buffer, kind_at + 1)[0]
            fields[name] = str(buffer[start:at], "utf-8", "surrogateescape")
        else:
            fields[name], at = pika_data.decode_value(buffer, kind_at)
    return fields
