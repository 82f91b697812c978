"""The bytes of the hot path: publishes with headers, acks, requests, and where a delivery is from.

Pure. Leaves out what happens once per connection: nats-py does that.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

__all__ = [
    "ACK",
    "IN_PROGRESS",
    "NAK",
    "Frame",
    "Place",
    "answers",
    "frame_sizes",
    "next_request",
    "place_of",
    "publish",
    "read_frame",
]

ACK = b"+ACK"
NAK = b"-NAK"
IN_PROGRESS = b"+WPI"
_SECOND = 1_000_000_000


class Frame(NamedTuple):
    """A message of the server. block: its headers as they came, None without any."""

    subject: bytes
    reply: bytes
    block: bytes | None
    payload: bytes


class Place(NamedTuple):
    """Where a delivery is from. delivered: how often it was, this time included."""

    stream: str
    sequence: str
    delivered: int


def publish(subject: str, reply: str, *, block: bytes, payload: bytes) -> tuple[bytes, ...]:
    """A message with headers. block: as ``headers.encode`` makes it."""
    head = f"HPUB {subject} {reply} {len(block)} {len(block) + len(payload)}\r\n"
    return head.encode(), block, payload, b"\r\n"


def answers(replies: Iterable[bytes], word: bytes) -> bytes:
    """The same answer to many deliveries, by the subjects they are answered on."""
    tail = b" %d\r\n%s\r\n" % (len(word), word)
    return b"".join(b"PUB " + reply + tail for reply in replies)


def next_request(stream: str, consumer: str, inbox: str, *, batch: int, expires: float) -> bytes:
    """Ask a consumer for up to ``batch`` messages within ``expires`` seconds."""
    body = b'{"batch":%d,"expires":%d}' % (batch, int(expires * _SECOND))
    head = f"PUB $JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer} {inbox} {len(body)}\r\n"
    return b"".join((head.encode(), body, b"\r\n"))


def frame_sizes(line: bytes) -> tuple[list[bytes], int]:
    """The words of a ``MSG`` or ``HMSG`` line, and the bytes that follow it with their line's end.

    Raises ValueError for a line that is neither.
    """
    words = line.split()
    if not 4 <= len(words) <= 6 or not words[-1].isdigit():
        raise ValueError("malformed message line")
    return words, int(words[-1]) + 2


def read_frame(words: list[bytes], body: bytes) -> tuple[int, Frame]:
    """The subscription's number and the message. Raises ValueError."""
    with_headers = words[0] == b"HMSG"
    block_bytes = int(words[-2]) if with_headers else 0
    reply = words[3] if len(words) == 5 + with_headers else b""
    block = body[:block_bytes] if with_headers else None
    return int(words[2]), Frame(words[1], reply, block, body[block_bytes:])


def place_of(reply: bytes) -> Place | None:
    """What the subject of an answer tells; None for a subject that is none.

    ``$JS.ACK.stream.consumer.delivered.sequence.`` and the consumer's own sequence, the time and
    what is pending; in newer servers with domain and account before the stream.
    """
    words = reply.decode(errors="replace").split(".")
    if words[:2] != ["$JS", "ACK"] or len(words) not in (9, 11, 12):
        return None
    at = 2 if len(words) == 9 else 4
    delivered = words[at + 2]
    return Place(words[at], words[at + 3], int(delivered)) if delivered.isdigit() else None
