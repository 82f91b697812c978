"""From the values of a statement to those of the driver calls, as PyMySQL and asyncmy write them.

Owns what MySQL has no arrays for: a list stands in parentheses after IN, many rows stand behind one
VALUES.  The invariant: INSERT IGNORE overlooks a row that is there and nothing else.  The server
would also cut a text that is too long and turn NULL into an empty text, so that two messages could
become one; what may not be cut is therefore measured here, before it is sent.  Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from duly.errors import PermanentError

__all__ = ["check_lengths", "claimed", "expanded", "in_chunks", "listed", "paired"]

CHUNK_BYTES = 1_000_000
CHUNK_ROWS = 500
_BYTES_MAX = {"dedupe_key": 1536, "key": 1024, "message_id": 255, "message_type": 255}
_NEVER_NULL = {"dedupe_key", "message_id", "message_type"}
_VALUE = re.compile(r"%\((\w+)\)s")
_NOTHING = (None,)  # x IN (NULL) is neither true nor false: nothing is in it


def listed(params: Mapping[str, Any]) -> dict[str, Any]:
    """Values with lists as tuples, which stand after IN; an empty list is one NULL."""
    return {
        name: (tuple(value) or _NOTHING) if isinstance(value, list | tuple) else value
        for name, value in params.items()
    }


def paired(first: Sequence[Any], second: Sequence[Any]) -> tuple[Any, ...]:
    """Two columns as one list of pairs."""
    return tuple(zip(first, second, strict=True)) or ((None, None),)


def check_lengths(rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise PermanentError (VALUE_TOO_LONG) for a value that its column cannot hold whole."""
    for row in rows:
        for name, limit in _BYTES_MAX.items():
            value = row.get(name)
            if value is None:
                if name in row and name in _NEVER_NULL:
                    raise PermanentError(f"{name} is missing", code="VALUE_MISSING")
            elif len(value) > limit or len(value.encode()) > limit:
                raise PermanentError(
                    f"{name} has more than the {limit} bytes that MySQL's index can hold",
                    code="VALUE_TOO_LONG",
                )


def expanded(text: str, rows: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    """A statement for one row, made one for many: what stands behind VALUES is said once for each;
    a SELECT is said once for each, joined by UNION ALL.
    """
    head, word, template = text.partition("VALUES ")
    if not word:
        head, template = "", text
    parts = [_VALUE.sub(rf"%(\1_{n})s", template) for n in range(len(rows))]
    values = {f"{name}_{n}": value for n, row in enumerate(rows) for name, value in row.items()}
    return f"{head}{word}{(',' if word else ' UNION ALL ').join(parts)}", values


def in_chunks(rows: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[Mapping[str, Any]]]:
    """Rows in pieces of a size that every server takes in one packet."""
    begin = size = 0
    for n, row in enumerate(rows):
        weight = len(row.get("payload") or b"") + len(row.get("headers") or "")
        if n > begin and (size + weight > CHUNK_BYTES or n - begin >= CHUNK_ROWS):
            yield rows[begin:n]
            begin, size = n, 0
        size += weight
    if len(rows) > begin:
        yield rows[begin:]


def claimed(params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a claim: [dedupe_key, message_id, key] each, with what they have in common."""
    shared = {name: value for name, value in params.items() if name != "rows"}
    return [
        {**shared, "dedupe_key": dedupe_key, "message_id": message_id, "key": key}
        for dedupe_key, message_id, key in json.loads(params["rows"])
    ]
