"""Messages as STOMP frames: CloudEvents attributes as headers with ``ce_``. Pure.

User headers travel under their own names, but for those that mean something to STOMP or the
server: these get ``duly-header-`` before them. Invariant: what ``send`` writes, ``decode`` reads
back, and no header of a user can redirect, delay or expire a message.
"""

from __future__ import annotations

from functools import lru_cache

from duly.brokers.activemq.frames import Frame, escape
from duly.message import Message
from duly.wire.cloudevents import (
    CONTENT_TYPE,
    STRUCTURED_CONTENT_TYPE,
    from_headers,
    from_structured,
    to_headers,
)

__all__ = ["PREFIX", "decode", "send"]

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
    headers = to_headers(message, prefix=PREFIX)
    lines = [f"{_wire_name(name)}:{escape(value)}\n" for name, value in headers.items()]
    if message.key:
        lines.append(f"JMSXGroupID:{escape(message.key)}\n")
    text = f"{head}{''.join(lines)}content-type:{CONTENT_TYPE}\n"
    if "\0" in text:
        raise ValueError("NUL in a header")
    frame = f"{text}content-length:{len(message.payload)}\n\n".encode()
    return b"".join((frame, message.payload, b"\0"))


@lru_cache(maxsize=4096)
def _wire_name(name: str) -> str:
    return escape(_ASIDE + name if _is_reserved(name) else name)


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
