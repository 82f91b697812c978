"""Header blocks as NATS writes them, with CloudEvents attributes by its NATS protocol binding.

``ce-`` and the attribute's name, the value percent-encoded by the rule of HTTP; user headers travel
as UTF-8 text under their own names. Invariant: what ``encode`` writes, ``decode`` reads back, and
no value can end its line: CR and LF are refused, not escaped. Names that begin with ``Nats-`` are
orders to the server and never a user's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import unquote

from duly.message import Message
from duly.wire.cloudevents import HeaderWriter

__all__ = ["MESSAGE_ID", "PREFIX", "block", "decode", "encode", "lines", "status"]

PREFIX = "ce-"
MESSAGE_ID = "Nats-Msg-Id"
_LINE = b"NATS/1.0"
_HEAD = "NATS/1.0\r\n"
_TO_ESCAPE = re.compile(r"[^!#$&-~]")  # all but printable ASCII, and '"', '%' and space among it
_BREAKS = re.compile(r"[\r\n\0]")


def encode(message: Message) -> bytes:
    """The header block of a message. Raises ValueError for what cannot travel, UnicodeEncodeError.

    Its id is in it once more, by which the server drops a repetition.
    """
    shared, own = _WRITER.write(message)
    return block(message.id, shared + own)


def block(message_id: str, text: str) -> bytes:
    """A header block. text: made by ``lines``. Raises as ``encode``."""
    if _BREAKS.search(message_id):
        raise ValueError("CR, LF or NUL in the message id")
    return f"{_HEAD}{MESSAGE_ID}: {message_id}\r\n{text}\r\n".encode()


def lines(headers: Mapping[str, str]) -> str:
    """CloudEvents attributes with their prefix, and the user's headers. Raises as ``encode``."""
    if not _TO_ESCAPE.search("".join(headers.values())):  # one look instead of one for each
        return "".join([f"{_known_name(name)}: {value}\r\n" for name, value in headers.items()])
    return "".join([f"{_known_name(n)}: {_value(n, value)}\r\n" for n, value in headers.items()])


_WRITER = HeaderWriter(PREFIX, lines)


@lru_cache(maxsize=4096)
def _known_name(name: str) -> str:
    if ":" in name or _BREAKS.search(name) or name.lower().startswith("nats-"):
        raise ValueError(f"NATS takes no header named {ascii(name)[:100]}")
    return name


def _value(name: str, value: str) -> str:
    if name.startswith(PREFIX):
        return _escape(value)
    if _BREAKS.search(value):
        raise ValueError(f"CR, LF or NUL in the header {name[:100]}")
    return value


def _escape(value: str) -> str:
    return _TO_ESCAPE.sub(lambda found: "".join(f"%{b:02X}" for b in found[0].encode()), value)


def decode(block: bytes) -> dict[str, str]:
    """The headers of a received message; of a repeated one the first. Never raises.

    Attributes of CloudEvents are decoded and named in lower case. What the server or a client wrote
    for NATS itself is left in. Bytes that are no UTF-8 become surrogates, which no rule admits.
    """
    found: dict[str, str] = {}
    for line in block.split(b"\r\n")[1:]:
        raw_name, colon, raw_value = line.partition(b":")
        if not colon:
            continue
        name = raw_name.decode(errors="surrogateescape")
        value = raw_value.removeprefix(b" ").decode(errors="surrogateescape")
        if name[:3].lower() == PREFIX:
            name = name.lower()
            if "%" in value:
                value = unquote(value, errors="surrogateescape")
        found.setdefault(name, value)
    return found


def status(block: bytes | None) -> tuple[int, str]:
    """The code and reason in the first line of a word from the server; (0, "") where none is."""
    if not block or not block.startswith(_LINE):
        return 0, ""
    line = block.partition(b"\r\n")[0][len(_LINE) :].strip()
    code, _, reason = line.partition(b" ")
    return (int(code), reason.decode(errors="replace")) if code.isdigit() else (0, "")
