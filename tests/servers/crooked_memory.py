"""A place of delivery in memory that does what it should not, and a run that can be killed.

``Crooked`` keeps its files over connections; ``Trouble`` says at which call it cuts the connection
(before or after it did what was asked) or the process dies.  Every change of a name is shown to
``Crooked.watch``, so that a test sees what a receiver could have seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from duly.errors import FileTargetError, FileTargetUnavailableError
from duly.targets import FileFeatures, ReadAt, Remote

ALL = FileFeatures(
    acknowledges=True, resumes=True, reads=True, replaces=True, refuses=True, hashes=True
)


class Killed(BaseException):
    """SIGKILL: nothing of ours runs after it."""


@dataclass
class Trouble:
    """What happens at the n-th call: ``cut`` or ``kill``, ``before`` or ``after`` it."""

    at: dict[int, str] = field(default_factory=dict)
    calls: int = 0
    struck: int = 0

    def before(self) -> str:
        """Count a call; raise what is planned for it, or tell what is planned for its end."""
        self.calls += 1
        what = self.at.get(self.calls, "")
        if what:
            self.struck += 1
        if what.endswith("before"):
            raise _error(what)
        return what

    def after(self, what: str) -> None:
        """The call has been done."""
        if what:
            raise _error(what)


def _error(what: str) -> BaseException:
    return Killed() if what.startswith("kill") else FileTargetUnavailableError("cut")


@dataclass
class Crooked:
    """A server. files: name to content; other things by name in ``others``.

    drops: this many writes are answered and not done. hole: after a cut the last writes under way
    are done without those before. shortens: opening a file to go on empties it. keeps: nothing is
    removed. overwrites: a plain rename replaces. stubborn: no rename onto a name that is taken, by
    any way. vanishes: a file is gone when it is closed. unclaimable: temporary files cannot be
    renamed to temporary names.
    """

    features: FileFeatures = ALL
    trouble: Trouble = field(default_factory=Trouble)
    files: dict[str, bytearray] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    drops: int = 0
    hole: bool = False
    shortens: bool = False
    keeps: bool = False
    overwrites: bool = False
    stubborn: bool = False
    vanishes: bool = False
    unclaimable: bool = False
    sent_bytes: int = 0
    watch: Callable[[], None] = lambda: None
    place: str = "memory"

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Crooked]:
        """Connect."""
        yield self

    def _begin(self) -> str:
        return self.trouble.before()

    def _end(self, what: str) -> None:
        self.watch()
        self.trouble.after(what)

    async def look(self, name: str) -> Remote | None:
        """What is there."""
        what = self._begin()
        found = None
        if name in self.others:
            found = Remote(0, self.others[name])  # type: ignore[arg-type]
        elif name in self.files:
            found = Remote(len(self.files[name]))
        self._end(what)
        return found

    async def write(
        self, name: str, read: ReadAt, *, size_bytes: int, offset: int, step_bytes: int
    ) -> AsyncGenerator[int, None]:
        """Write in steps, two of them under way at most."""
        if offset == 0 or self.shortens:
            self.files[name] = bytearray()
        self.watch()
        place, content = offset, self.files[name]  # what is open stays so under another name
        while place < size_bytes:
            end = min(place + step_bytes, size_bytes)
            try:
                what = self._begin()
            except FileTargetUnavailableError:
                span = range(place, min(place + 2 * step_bytes, size_bytes))
                self._under_way(content, read, span)
                raise
            self._put(content, read(place, end - place), place)
            self._end(what)
            place = end
            if place < size_bytes:
                yield place
        what = self._begin()
        if self.vanishes:
            del self.files[name]
        self._end(what)
        yield size_bytes

    def _put(self, content: bytearray, data: bytes, place: int) -> None:
        self.sent_bytes += len(data)
        if self.drops:
            self.drops -= 1
            return
        content.extend(bytes(max(0, place - len(content))))
        content[place : place + len(data)] = data

    def _under_way(self, content: bytearray, read: ReadAt, span: range) -> None:
        """What was sent and never answered arrives in part: its end, or its beginning."""
        middle = (span.start + span.stop) // 2
        start, stop = (middle, span.stop) if self.hole else (span.start, middle)
        self._put(content, read(start, stop - start), start)
        self.watch()

    async def read(self, name: str, *, offset: int, size_bytes: int) -> AsyncGenerator[bytes, None]:
        """Give bytes in small pieces."""
        what = self._begin()
        data = bytes(self._content(name)[offset : offset + size_bytes])
        self._end(what)
        for place in range(0, len(data), 7):
            yield data[place : place + 7]

    async def digest(self, name: str) -> str | None:
        """As declared."""
        if not self.features.hashes:
            return None
        what = self._begin()
        digest = hashlib.sha256(self._content(name)).hexdigest()
        self._end(what)
        return digest

    def _content(self, name: str) -> bytearray:
        if name not in self.files:
            raise FileTargetError("No such file", code="FILE_TARGET_REFUSED")
        return self.files[name]

    async def rename(self, old: str, new: str, *, replace: bool) -> None:
        """As declared, and as it pleases."""
        what = self._begin()
        if replace and not self.features.replaces:
            raise FileTargetError("no", code="FILE_TARGET_UNSUPPORTED")
        taken = new in self.files or new in self.others
        free = replace or self.overwrites
        if old not in self.files or (taken and (self.stubborn or not free)):
            raise FileTargetError("Failure", code="FILE_TARGET_REFUSED")
        if self.unclaimable and new.startswith(".") and old.startswith("."):
            raise FileTargetError("Failure", code="FILE_TARGET_REFUSED")
        self.files[new] = self.files.pop(old)
        self._end(what)

    async def remove(self, name: str) -> None:
        """Remove, unless it keeps everything."""
        what = self._begin()
        if self.keeps and name in self.files:
            raise FileTargetError("Failure", code="FILE_TARGET_DENIED")
        self.files.pop(name, None)
        self._end(what)


class Run:
    """A run whose attempts share a checkpoint. Its saves can be killed like calls of the server."""

    job, params, definition, token = "job", dict[str, object](), "d", 1
    previous_spool = None
    partitions = None

    def __init__(self, spool: Path, trouble: Trouble, *, instance: str = "job-1") -> None:
        self.spool, self.instance, self._trouble = spool, instance, trouble
        self.attempt = 1
        self.checkpoint: bytes | None = None
        self.saves = 0
        self.facts: dict[str, Any] = {}
        self.stopping = False
        self.stop_after_saves = 1 << 30

    def load(self) -> bytes | None:
        """The last checkpoint."""
        return self.checkpoint

    async def save(self, checkpoint: bytes, *, rows: int = 0, size_bytes: int = 0) -> None:
        """Keep it; a cut of the server does not touch the store."""
        self._trouble.calls += 1
        what = self._trouble.at.get(self._trouble.calls, "")
        if what.startswith("kill"):
            self._trouble.struck += 1
            if what == "kill after":
                self.checkpoint = checkpoint
            raise Killed
        self.checkpoint = checkpoint
        self.saves += 1
        if self.saves >= self.stop_after_saves:
            self.stopping = True

    def progress(self, *, rows: int, size_bytes: int, total_bytes: int | None = None) -> None:
        """Nobody looks."""

    def fact(self, name: str, value: str | float | bool) -> None:
        """Keep it."""
        self.facts[name] = value
