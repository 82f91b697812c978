"""A file of facts that outlives the process that wrote them.

One JSON object a line.  Invariant: when ``append`` has returned, the line is on the disk, whole and
behind every line before it, whoever is killed next; lines of several threads and processes never
mix, because each is one write to the end of the file.  A line that was cut short by a crash of the
machine can only be the last, and is left out when reading; any other damage is an error.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

__all__ = ["Journal", "read_journal"]


class Journal:
    """A journal file, open for appending. path: made when it is not there, and never truncated.

    Every line gets ``at``, seconds that all processes of the machine count alike, and ``pid``.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        flags = os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC
        self._file = os.open(self.path, flags, 0o644)

    def append(self, what: str, **values: Any) -> None:
        """Write one line and wait until the disk has it. Raises OSError, TypeError.

        what: the kind of fact, kept as ``what``. Safe to call from any thread.
        """
        fact = {"what": what, "at": round(now(), 6), "pid": os.getpid(), **values}
        line = json.dumps(fact, separators=(",", ":")).encode() + b"\n"
        written = os.write(self._file, line)
        if written != len(line):
            raise OSError(f"{self.path}: {written} of {len(line)} bytes were written")
        os.fdatasync(self._file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_journal(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """The facts of a journal in the order they were written; nothing when there is no file.

    Raises ValueError for a line that is damaged and not the last.
    """
    place = Path(path)
    if not place.exists():
        return
    data = place.read_bytes()
    *lines, rest = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except ValueError as error:
            raise ValueError(f"{place}, line {number} is damaged") from error
    if rest:
        return  # cut short: its append never returned


def now() -> float:
    """Seconds since the machine started, the same in every process on it."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
