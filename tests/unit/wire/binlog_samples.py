"""Events of the binlog for its tests: what MariaDB wrote, and what only MySQL writes, built by hand
from the documented layouts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from struct import pack
from typing import Any
from zlib import crc32

FILE = Path(__file__).parents[2] / "fixtures" / "binlog_mariadb.txt"
OLD_MOMENTS = {  # of the part "moments", whose table is older than these types
    f"{name}{digits}": f"{kind}({digits})"
    for name, kind in (("d", "datetime"), ("i", "time"), ("s", "timestamp"))
    for digits in (0, 1, 3, 6)
}


def lines(part: str) -> list[str]:
    """The lines of a part of the file."""
    found: dict[str, list[str]] = {}
    for line in FILE.read_text().splitlines():
        if line.startswith("["):
            current = found.setdefault(line.strip("[]"), [])
        elif not line.startswith("#"):
            current.append(line)
    return found[part]


def events(part: str) -> list[bytes]:
    """The events of a part, with their checksums."""
    return [bytes.fromhex(line) for line in lines(part) if line[0] not in ">="]


def selected(part: str) -> list[list[str | None]]:
    """What a SELECT of a part gave."""
    return [json.loads(line[2:]) for line in lines(part) if line.startswith("=")]


def bodies(part: str, kind: int) -> list[bytes]:
    """The bodies of a part's events of one kind."""
    return [event[19:-4] for event in events(part) if event[4] == kind]


def framed(
    kind: int, body: bytes, *, flags: int = 0, end: int = 777, checksum: bool = True
) -> bytes:
    """An event with a header, and a checksum where it is wanted."""
    size = 19 + len(body) + 4 * checksum
    data = pack("<IBIIIH", 1_700_000_000, kind, 3, size, end, flags) + body
    return data + crc32(data).to_bytes(4, "little") if checksum else data


def described(*, algorithm: int = 1, version: int = 4, lengths: bytes | None = None) -> bytes:
    """The FORMAT_DESCRIPTION of a MySQL server."""
    known = bytearray(42)
    for kind, size in ((2, 13), (4, 8), (15, 98), (19, 8), (23, 8), (24, 8), (25, 8)):
        known[kind - 1] = size
    lengths = bytes(known) if lengths is None else lengths
    body = pack("<H50sIB", version, b"8.4.3", 0, 19) + lengths + bytes([algorithm])
    return framed(15, body) if algorithm else framed(15, body + bytes(4), checksum=False)


def packed(number: int) -> bytes:
    """A number whose first byte is itself, or says how many follow."""
    if number < 251:
        return bytes([number])
    for first, size in ((252, 2), (253, 3)):
        if number < 1 << 8 * size:
            return bytes([first]) + number.to_bytes(size, "little")
    return b"\xfe" + number.to_bytes(8, "little")


def sized(data: bytes) -> bytes:
    """Bytes behind their length."""
    return packed(len(data)) + data


def field(kind: int, data: bytes) -> bytes:
    """An optional field of a table."""
    return bytes([kind]) + sized(data)


def names(*given: str) -> bytes:
    """The field with the names of the columns."""
    return field(4, b"".join(sized(name.encode()) for name in given))


def layout(kinds: bytes, extra: bytes, *fields: bytes, schema: str = "shop") -> bytes:
    """The body of a TABLE_MAP behind the table's number."""
    head = b"\1\0" + sized(schema.encode()) + b"\0" + sized(b"orders") + b"\0"
    return head + sized(kinds) + sized(extra) + bytes((len(kinds) + 7) // 8) + b"".join(fields)


def document(value: Any, *, large: bool = False) -> bytes:
    """A value as MySQL's binary JSON."""
    kind, data = _document(value, large)
    return bytes([kind]) + data


def _document(value: Any, large: bool) -> tuple[int, bytes]:
    if value is None or isinstance(value, bool):
        return 4, bytes([{None: 0, True: 1, False: 2}[value]])
    if isinstance(value, int):
        sizes = ((5, "<h"), (6, "<H"), (7, "<i"), (8, "<I"), (9, "<q"), (10, "<Q"))
        for kind, code in sizes:
            try:
                return kind, pack(code, value)
            except Exception:  # the next size
                continue
    if isinstance(value, float):
        return 11, pack("<d", value)
    if isinstance(value, str):
        return 12, variable(value.encode())
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: (len(key.encode()), key.encode()))
        inside = _container([value[key] for key in keys], [key.encode() for key in keys], large)
        return int(large), inside
    return 2 + large, _container(value, [], large)


def _container(values: Sequence[Any], keys: Sequence[bytes], large: bool) -> bytes:
    width, code = (4, "<I") if large else (2, "<H")
    inline = (4, 5, 6, 7, 8) if large else (4, 5, 6)
    at = 2 * width + len(keys) * (width + 2) + len(values) * (width + 1)
    entries, texts, rest = b"", b"", b""
    for key in keys:
        entries += pack(code, at + len(texts)) + pack("<H", len(key))
        texts += key
    for value in values:
        kind, data = _document(value, large)
        if kind in inline:
            entries += bytes([kind]) + data.ljust(width, b"\0")
        else:
            entries += bytes([kind]) + pack(code, at + len(texts) + len(rest))
            rest += data
    data = entries + texts + rest
    return pack(code, len(values)) + pack(code, 2 * width + len(data)) + data


def variable(data: bytes) -> bytes:
    """Bytes behind a length of seven bits a byte."""
    size, head = len(data), b""
    while size > 127:
        head, size = head + bytes([size & 127 | 128]), size >> 7
    return head + bytes([size]) + data


def varied(number: int) -> bytes:
    """A number of MySQL's newer form: the ones at the end of the first byte say how many follow."""
    for more in range(8):
        if number < 1 << 7 * (more + 1):
            return (number << more + 1 | (1 << more) - 1).to_bytes(more + 1, "little")
    return b"\xff" + number.to_bytes(8, "little")
