"""Messages as STOMP frames, or as properties: CloudEvents attributes as headers with ``ce_``. Pure.

User headers travel under their own names, but for those that mean something to STOMP or the
server: these get ``duly-header-`` before them. Invariant: what ``send`` writes, ``decode`` reads
back, and no header of a user can redirect, delay or expire a message.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from duly.brokers.activemq.frames import Frame, escape, needs_escape
from duly.message import Message
from duly.wire.cloudevents import (
    CONTENT_TYPE,
    STRUCTURED_CONTENT_TYPE,
    HeaderWriter,
    from_headers,
    from_structured,
    to_headers,
)

__all__ = ["PREFIX", "decode", "properties", "send"]

PREFIX = "ce_"
_ASIDE = "duly-header-"
_STRUCTURED = STRUCTURED_CONTENT_TYPE.partition("+")[0]
_RESERVED = frozenset(
    {"ack", "content-length", "content-type", "correlation-id"}
    | {"destination", "destination-type", "expires", "heart-beat"}
    | {"id", "ingress-timestamp", "message", "message-id"}
    | {"persistent", "priority", "receipt", "receipt-id"}
    | {"redelivered", "reply-to", "selector", "session"}
    | {"subscription", "timestamp", "transaction", "type"}
)
_RESERVED_STARTS = ("_amq", "amq", "jms", "__", _ASIDE)


def send(message: Message, head: str) -> bytes:
    """The SEND frame of a message. head: its first lines, which say where to.

    Raises ValueError for what cannot travel, UnicodeEncodeError among them.
    """
    shared, own = _WRITER.write(message)
    group = f"JMSXGroupID:{escape(message.key)}\n" if message.key else ""
    text = f"{head}{shared}{own}{group}content-type:{CONTENT_TYPE}\n"
    if "\0" in text:
        raise ValueError("NUL in a header")
    frame = f"{text}content-length:{len(message.payload)}\n\n".encode()
    return b"".join((frame, message.payload, b"\0"))


def _lines(headers: Mapping[str, str]) -> str:
    if needs_escape("".join(headers.values())):  # one look instead of one for each
        return "".join([f"{_wire_name(n)}:{escape(value)}\n" for n, value in headers.items()])
    return "".join([f"{_wire_name(name)}:{value}\n" for name, value in headers.items()])


_WRITER = HeaderWriter(PREFIX, _lines)


def properties(message: Message) -> dict[str, str]:
    """What the server keeps beside the body of such a frame; of a message without a key."""
    headers = to_headers(message, prefix=PREFIX)
    return {_own_name(name): value for name, value in headers.items()} | {
        "content-type": CONTENT_TYPE
    }


@lru_cache(maxsize=4096)
def _wire_name(name: str) -> str:
    return escape(_own_name(name))


def _own_name(name: str) -> str:
    return _ASIDE + name if _is_reserved(name) else name


def _is_reserved(name: str) -> bool:
    lowered = name.lower()
    return lowered in _RESERVED or lowered.startswith(_RESERVED_STARTS)


def decode(frame: Frame, *, topic: str, fallback_id: str) -> Message:
    """The message of a MESSAGE frame; never raises. fallback_id: for one that has no id."""
    found = frame.headers()
    headers: dict[str, object] = {}
    for name, value in found.items():
        if name.startswith(_ASIDE):
            headers[name.removeprefix(_ASIDE)] = value
        elif not _is_reserved(name):
            headers[name] = value
    if found.get("content-type", "").lower().startswith(_STRUCTURED):
        return from_structured(frame.body, topic=topic, fallback_id=fallback_id, headers=headers)
    return from_headers(headers, frame.body, prefix=PREFIX, topic=topic, fallback_id=fallback_id)
