"""Stream entries: a message as fields and back, and the bytes of the commands of the hot path.

The fields are CloudEvents attributes named ``ce_id`` and so on, user headers without a prefix, and
the body as ``ce_data``; no header of a user can have that name. Invariants: what ``add_command``
wrote, ``message_of`` reads back as the same message; reading never raises, whatever a foreign
producer sent.  Pure; leaves out sending and what the answers mean (``publisher``).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

from duly.message import Message
from duly.wire.cloudevents import (
    STRUCTURED_CONTENT_TYPE,
    from_headers,
    from_structured,
    to_headers,
)

__all__ = ["DATA", "PREFIX", "Part", "add_command", "command", "message_of"]

Part: TypeAlias = str | bytes | int
PREFIX = "ce_"
DATA = "ce_data"
_STRUCTURED = STRUCTURED_CONTENT_TYPE.encode()
_TYPE = "ce_datacontenttype"


# --- out ------------------------------------------------------------------------------------------
def command(*parts: Part) -> bytes:
    """A command as the protocol writes it. Raises UnicodeEncodeError."""
    out = [b"*%d\r\n" % len(parts)]
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        out.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(out)


@lru_cache(maxsize=4096)
def _name(name: str) -> str:
    return f"${len(name.encode())}\r\n{name}\r\n$"


@lru_cache(maxsize=4096)
def _head(stream: str, fields: int, only_existing: bool) -> bytes:
    """``XADD stream [NOMKSTREAM] *`` before so many names and values."""
    start = ("XADD", stream, "NOMKSTREAM", "*") if only_existing else ("XADD", stream, "*")
    counted = command(*start)
    return b"*%d" % (len(start) + fields) + counted[counted.index(b"\r") :]


def add_command(message: Message, stream: str, *, only_existing: bool = True) -> bytes:
    """The XADD of a message. only_existing: not to a stream that nobody has made.

    Raises UnicodeEncodeError for text that is none.
    """
    headers = to_headers(message, prefix=PREFIX)
    # A joined text that is encoded once costs half of what encoding each field does.
    if "".join(headers.values()).isascii():
        fields = [f"{_name(n)}{len(v)}\r\n{v}\r\n" for n, v in headers.items()]
    else:
        fields = [f"{_name(n)}{len(v.encode())}\r\n{v}\r\n" for n, v in headers.items()]
    head = _head(stream, 2 * len(headers) + 2, only_existing)
    size = len(message.payload)
    return b"%b%b$7\r\nce_data\r\n$%d\r\n%b\r\n" % (
        head,
        "".join(fields).encode(),
        size,
        message.payload,
    )


# --- in -------------------------------------------------------------------------------------------
@lru_cache(maxsize=4096)
def _known(name: bytes) -> str:
    return str(name, "utf-8", "surrogateescape")


def message_of(fields: Sequence[bytes], *, topic: str, fallback_id: str) -> Message:
    """The message of an entry's names and values, one behind the other; of a name that comes twice
    the first counts. Never raises.
    """
    headers: dict[str, bytes] = {}
    walk = iter(fields)
    for name, value in zip(walk, walk, strict=False):
        headers.setdefault(_known(name) if len(name) < 256 else "", value)
    payload = headers.pop(DATA, b"")
    if headers.get(_TYPE, b"").startswith(_STRUCTURED):
        others = {n: v for n, v in headers.items() if not n.startswith(PREFIX)}
        return from_structured(payload, topic=topic, fallback_id=fallback_id, headers=others)
    return from_headers(headers, payload, prefix=PREFIX, topic=topic, fallback_id=fallback_id)
