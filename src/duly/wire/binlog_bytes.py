"""Bytes of the binlog, read from front to back, and what is compressed in there.

Owns numbers (little-endian, or of as many bytes as their first one says), texts and MariaDB's
compressed parts.  Invariant: every read is checked against the end, and nothing is made larger than
its caller allows; whatever does not fit is an UndecodableError, never another exception.
"""

from __future__ import annotations

import zlib
from typing import Final, NoReturn

from duly.errors import UndecodableError

__all__ = ["Bytes", "inflated", "undecodable", "unzipped", "uuid_text"]

_LENGTHS: Final = {252: 2, 253: 3, 254: 8}  # bytes of a number by what stands before it


def undecodable(detail: str, *, code: str = "") -> NoReturn:
    """Raise UndecodableError (BINLOG_UNDECODABLE, unless there is a more precise code)."""
    if code:
        raise UndecodableError(f"binlog: {detail}", code=code)
    raise UndecodableError(f"binlog: {detail}", code="BINLOG_UNDECODABLE")


def uuid_text(data: bytes) -> str:
    """A UUID as it is written. Raises ValueError for other than 16 bytes."""
    if len(data) != 16:
        raise ValueError(f"a UUID of {len(data)} bytes")
    digits = data.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


class Bytes:
    """A part of an event. at: the place that is read next."""

    __slots__ = ("_data", "at")

    def __init__(self, data: bytes, at: int = 0) -> None:
        self._data = data
        self.at = at

    def take(self, count: int) -> bytes:
        """The next bytes."""
        end = self.at + count
        if end > len(self._data):
            undecodable(f"{count} bytes wanted, {self.left} left")
        found = self._data[self.at : end]
        self.at = end
        return found

    def number(self, count: int) -> int:
        """An unsigned number of so many bytes."""
        return int.from_bytes(self.take(count), "little")

    def packed(self) -> int:
        """An unsigned number whose first byte is itself, or says how many follow."""
        first = self.number(1)
        if first < 251:
            return first
        if first not in _LENGTHS:
            undecodable(f"a number that begins with {first}")
        return self.number(_LENGTHS[first])

    def text(self, count: int) -> str:
        """So many bytes, as UTF-8."""
        try:
            return self.take(count).decode()
        except UnicodeDecodeError:
            undecodable("a name that is not UTF-8")

    def terminated(self, count: int) -> str:
        """A text whose length was said and that ends with a zero all the same."""
        found = self.text(count)
        if self.number(1):
            undecodable("a name without its end")
        return found

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(self.left)

    @property
    def left(self) -> int:
        """How many bytes are left."""
        return len(self._data) - self.at

    def end(self) -> None:
        """There must be nothing left."""
        if self.left:
            undecodable(f"{self.left} bytes too many")


def inflated(data: bytes, *, bytes_max: int) -> bytes:
    """What MariaDB compressed: how long the length is, the length, and zlib's bytes.

    bytes_max: a larger one is refused before it is made.
    """
    read = Bytes(data)
    first = read.number(1)
    if first & 0xF8 != 0x80:
        undecodable(f"a compressed part that begins with {first}")
    size = int.from_bytes(read.take(first & 7), "big")
    return unzipped(read.rest(), size, bytes_max=bytes_max)


def unzipped(data: bytes, size: int, *, bytes_max: int, raw: bool = False) -> bytes:
    """The bytes of zlib, which must be ``size``. raw: without zlib's own frame."""
    if size > bytes_max:
        undecodable(f"{size} bytes in a compressed part, more than {bytes_max}")
    unzip = zlib.decompressobj(-zlib.MAX_WBITS if raw else zlib.MAX_WBITS)
    try:
        found = unzip.decompress(data, size + 1)
    except zlib.error as problem:
        undecodable(f"a compressed part: {problem}")
    if len(found) != size or not unzip.eof or unzip.unused_data:
        undecodable(f"a compressed part that is not of {size} bytes")
    return found
