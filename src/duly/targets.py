"""The Protocols of a place that files are delivered to, and the values that cross them; a part of
``ports`` that only deliveries load.

A *target* is a folder somewhere; an open *session* is one connection to it.  Names are of that
folder and have no path.  What a delivery does with a session belongs to ``kernel.resume`` and
``batch``; a session does what it is told and says what it found.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from duly.kernel.resume import FileFeatures, Remote

__all__ = ["FileFeatures", "FileSession", "FileTarget", "ReadAt", "Remote"]

ReadAt = Callable[[int, int], bytes]  # the bytes of a local file: (offset, at most so many)


class FileSession(Protocol):
    """A connection to one folder.

    Every call raises FileTargetUnavailableError when the connection is lost or silent for too long
    (what was asked for last may have been done), and FileTargetError when it is refused, by code:
    FILE_TARGET_DENIED, FILE_TARGET_MISSING, FILE_TARGET_UNSUPPORTED, else FILE_TARGET_REFUSED.
    """

    features: FileFeatures

    async def look(self, name: str) -> Remote | None:
        """What is under a name; None when there is nothing. Links are not followed."""
        ...

    def write(
        self, name: str, read: ReadAt, *, size_bytes: int, offset: int, step_bytes: int
    ) -> AsyncGenerator[int, None]:
        """Write the file from ``offset`` to its end; 0 makes it new. Yields how many bytes, from
        the first, are answered without a gap; the last is size_bytes, after the file was closed.

        Guarantee: nothing further than 2 * step_bytes beyond what was yielded last is sent, and no
        byte before ``offset`` is changed. Raises FileTargetUnavailableError (code FILE_TARGET_FULL:
        no space or quota).
        """
        ...

    def read(self, name: str, *, offset: int, size_bytes: int) -> AsyncGenerator[bytes, None]:
        """So many bytes of a file, in order and in pieces; fewer only where it ends."""
        ...

    async def digest(self, name: str) -> str | None:
        """The SHA-256 in hex as the other side computes it; None where it cannot."""
        ...

    async def rename(self, old: str, new: str, *, replace: bool) -> None:
        """Give a file another name. replace: in the place of what is there, at once; else a name
        that is taken is refused where ``features.refuses`` says so.

        Raises FileTargetError (code FILE_TARGET_UNSUPPORTED where ``replace`` cannot be had).
        """
        ...

    async def remove(self, name: str) -> None:
        """Remove a file. Idempotent."""
        ...


class FileTarget(Protocol):
    """A folder somewhere that files are delivered to."""

    @property
    def place(self) -> str:
        """Where it is, without secrets."""
        ...

    def open(self) -> AbstractAsyncContextManager[FileSession]:
        """Connect. Raises FileTargetUnavailableError (again later), ConfigurationError (login,
        settings), HostKeyError, FileTargetError (code FILE_TARGET_MISSING: no such folder).
        """
        ...
