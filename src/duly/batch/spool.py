"""The files of an attempt: written at known places, made durable, checked before they are trusted.

The invariants: a file lies in the folder of one attempt and is written by it alone - another
attempt copies what it can verify into a file of its own, so that a process that was thawed late
writes into nothing that anybody reads; bytes go to stated offsets, never to "the end"; a new name
is durable only when its folder is, too.  What a chunk means is the business of ``extraction``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from duly.errors import ConfigurationError, PermanentError, RetryableError

__all__ = ["Chunk", "SpoolFile", "adopt", "read_small", "spool_errors", "verified", "write_small"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
_PIECES_MAX = 1024  # that a system call takes
_MODE = 0o600  # it is somebody's data


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """A piece of a file that was made durable at once. rows: in it. last: the key of the last row
    that was read for it. skipped: rows left out, as (key, error).
    """

    size_bytes: int
    rows: int
    sha256: str
    last: list[Any] | None = None
    skipped: list[tuple[str, str]] = []


class SpoolFile:
    """An open file of this attempt. Raises RetryableError (BATCH_DISK_FULL, BATCH_SPOOL) and
    ConfigurationError (BATCH_SPOOL_READ_ONLY).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with spool_errors(path):
            new = not path.exists()
            self._file = os.open(path, flags, _MODE)
            if new:
                sync_folder(path.parent)

    def write(self, pieces: Sequence[bytes], offset: int) -> None:
        """Put bytes at a place; not durable yet."""
        left = [memoryview(piece) for piece in pieces if piece]
        with spool_errors(self.path):
            while left:
                done = os.pwritev(self._file, left[:_PIECES_MAX], offset)
                offset += done
                while left and done >= len(left[0]):
                    done -= len(left.pop(0))
                if done:
                    left[0] = left[0][done:]

    def cut(self, size_bytes: int) -> None:
        """Drop what lies behind this size."""
        with spool_errors(self.path):
            os.ftruncate(self._file, size_bytes)

    def sync(self) -> None:
        """What was written is on the disk when this returns."""
        with spool_errors(self.path):
            os.fdatasync(self._file)

    def close(self) -> None:
        """Close the file; never raises."""
        with suppress(OSError):  # what counts was synced
            os.close(self._file)


def verified(path: Path, chunks: Sequence[Chunk]) -> int:
    """How many chunks from the first on are in a file as they were written."""
    with suppress(OSError), path.open("rb") as file:
        for number, chunk in enumerate(chunks):
            if not _same(file.read(chunk.size_bytes), chunk):
                return number
        return len(chunks)
    return 0


def adopt(source: Path, target: SpoolFile, chunks: Sequence[Chunk]) -> int:
    """Copy the chunks that are as they were written into a file of this attempt, durable when this
    returns; how many there were.
    """
    offset = count = 0
    with suppress(FileNotFoundError), source.open("rb") as file:
        for chunk in chunks:
            data = file.read(chunk.size_bytes)
            if not _same(data, chunk):
                break
            target.write([data], offset)
            offset, count = offset + len(data), count + 1
    target.cut(offset)
    target.sync()
    return count


def _same(data: bytes, chunk: Chunk) -> bool:
    return len(data) == chunk.size_bytes and sha256(data).hexdigest() == chunk.sha256


def sync_folder(folder: Path) -> None:
    """The names in a folder are on the disk when this returns."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_small(path: Path, data: bytes) -> None:
    """Replace a file as a whole, durable when this returns: the old or the new one is there."""
    beside = path.with_name(f".{path.name}.new")
    with spool_errors(path):
        beside.unlink(missing_ok=True)
    file = SpoolFile(beside)
    try:
        file.write([data], 0)
        file.sync()
    finally:
        file.close()
    with spool_errors(path):
        beside.replace(path)
        sync_folder(path.parent)


def read_small(path: Path) -> bytes | None:
    """A whole file; None where there is none."""
    with spool_errors(path):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None


@contextmanager
def spool_errors(path: Path) -> Iterator[None]:
    """What the file system says, as an error of ours."""
    try:
        yield
    except OSError as error:
        text = f"{path.name}: {os.strerror(error.errno or 0)}"
        if error.errno in _FULL:
            raise RetryableError(text, code="BATCH_DISK_FULL") from error
        if error.errno in _REFUSED:
            raise ConfigurationError(text, code="BATCH_SPOOL_READ_ONLY") from error
        if error.errno == errno.ELOOP:
            raise PermanentError(f"{text}; a link in the spool", code="BATCH_SPOOL") from error
        raise RetryableError(text, code="BATCH_SPOOL") from error
