"""STOMP 1.2 frames: bytes out, bytes in. Pure.

Headers are escaped by the rules of STOMP 1.2 both ways, and a body is as long as ``content-length``
says. Invariants: no name or value can end its line or be read as two; a received frame is never
guessed at: what is no STOMP, or longer than the cap, is a ValueError and ends the connection.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

__all__ = [
    "FRAME_BYTES_MAX",
    "HEARTBEAT",
    "Frame",
    "Parser",
    "ack",
    "encode",
    "escape",
    "needs_escape",
]

FRAME_BYTES_MAX = 64_000_000
HEAD_BYTES_MAX = 262_144
HEARTBEAT = b"\n"
_UNSAFE = re.compile(r"[\\\r\n:]")
_ESCAPES = str.maketrans({"\\": "\\\\", "\r": "\\r", "\n": "\\n", ":": "\\c"})
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_PLAIN = {b"\\": b"\\", b"r": b"\r", b"n": b"\n", b"c": b":"}
_BLANK = re.compile(rb"\n\r?\n")
_COMMAND = re.compile(rb"[A-Z]{3,12}\r?\Z")
_LENGTH = re.compile(rb"\ncontent-length:(\d{1,12})\r?(?:\n|\Z)")


class Frame(NamedTuple):
    """A received frame. head: the lines between the command and the body."""

    command: bytes
    head: bytes
    body: bytes

    def header(self, name: str) -> str:
        """One header, the first of its name; empty where there is none."""
        sought = f"\n{escape(name)}:".encode()
        start = self.head.find(sought)
        if start < 0:
            return ""
        start += len(sought)
        end = self.head.find(b"\n", start)
        return _unescaped(self.head[start : end if end >= 0 else None])

    def headers(self) -> dict[str, str]:
        """All headers; of a repeated one the first. Bytes that are no UTF-8 become surrogates."""
        found: dict[str, str] = {}
        for line in self.head.split(b"\n")[1:]:
            name, _, value = line.partition(b":")
            found.setdefault(_unescaped(name), _unescaped(value))
        return found


def _unescaped(raw: bytes) -> str:
    raw = raw.removesuffix(b"\r")
    if b"\\" in raw:
        raw = _ESCAPED.sub(lambda found: _PLAIN.get(found[1], found[0]), raw)
    return raw.decode(errors="surrogateescape")


# --- out ------------------------------------------------------------------------------------------
def needs_escape(text: str) -> bool:
    """Whether ``escape`` would change it."""
    return _UNSAFE.search(text) is not None


def escape(text: str) -> str:
    """A header's name or value as it travels."""
    return text.translate(_ESCAPES) if _UNSAFE.search(text) else text


def encode(command: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """One frame; without ``content-length``, so a body must be text without NUL."""
    lines = "".join([f"{escape(name)}:{escape(value)}\n" for name, value in headers.items()])
    return b"".join((f"{command}\n{lines}\n".encode(), body, b"\0"))


def ack(ids: list[str]) -> bytes:
    """The frames that ack deliveries. ids: their ``ack`` headers."""
    return "".join([f"ACK\nid:{escape(one)}\n\n\0" for one in ids]).encode()


# --- in -------------------------------------------------------------------------------------------
class Parser:
    """Cuts a stream into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._wanted = 1  # bytes before it is worth looking again

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are whole now. Raises ValueError for what is no STOMP."""
        self._buffer += data
        if len(self._buffer) < self._wanted:
            return
        buffer, at = bytes(self._buffer), 0
        self._wanted = 1
        while True:
            while at < len(buffer) and buffer[at] in b"\r\n":  # heartbeats, and ends of frames
                at += 1
            found = self._frame(buffer, at)
            if found is None:
                break
            at, frame = found
            yield frame
        self._buffer = bytearray(buffer[at:])

    def _frame(self, buffer: bytes, at: int) -> tuple[int, Frame] | None:
        blank = _BLANK.search(buffer, at)
        if blank is None:
            self._check_beginning(buffer, at)
            return None
        command, newline, head = buffer[at : blank.start()].partition(b"\n")
        head = newline + head
        if not _COMMAND.match(command):
            raise ValueError(f"no STOMP frame: {command[:40]!a}")
        start = blank.end()
        length = _LENGTH.search(head)
        if length is None:
            end = buffer.find(b"\0", start)
        else:
            end = start + int(length[1])
            if end - at > FRAME_BYTES_MAX:
                raise ValueError(f"a frame of {end - at} bytes, at most {FRAME_BYTES_MAX}")
        if end < 0 or end >= len(buffer):
            if len(buffer) - at > FRAME_BYTES_MAX:
                raise ValueError("a frame that does not end")
            self._wanted = max(1, end + 1 - at)
            return None
        if buffer[end]:
            raise ValueError("a frame that does not end where it says")
        return end + 1, Frame(command.removesuffix(b"\r"), head, buffer[start:end])

    @staticmethod
    def _check_beginning(buffer: bytes, at: int) -> None:
        first = buffer[at : at + 1]
        if first and not first.isupper():
            raise ValueError(f"no STOMP: begins with {buffer[at : at + 20]!a}")
        if len(buffer) - at > HEAD_BYTES_MAX:
            raise ValueError("headers that do not end")
