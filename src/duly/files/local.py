"""A folder of this machine.

Owns the file system calls.  The invariants: what is yielded as written is on the disk, and a name
that was given is, too (the folder is synced after every rename); a name that is taken is never
replaced by accident, because it is taken by a hard link first.  Blocking calls run in threads.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import unquote, urlsplit

from duly.errors import ConfigurationError, FileTargetError, FileTargetUnavailableError
from duly.targets import FileFeatures, FileSession, ReadAt, Remote

__all__ = ["LocalTarget"]

T = TypeVar("T")

PIECE_BYTES = 4 << 20
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class LocalTarget:
    """A folder, by its ``file:///`` URL. timeout_seconds: a silent disk is not waited for longer.

    Raises ConfigurationError for a URL that names no folder of this machine.
    """

    def __init__(self, url: str, *, timeout_seconds: float = 60.0) -> None:
        parts = urlsplit(url)
        if parts.scheme != "file" or parts.netloc not in ("", "localhost") or parts.query:
            text = f"{url} is no file:///folder of this machine"
            raise ConfigurationError(text, code="BATCH_DESTINATION")
        self._folder = Path(unquote(parts.path))
        self._timeout = timeout_seconds

    @property
    def place(self) -> str:
        """Where it is."""
        return f"file://{self._folder}"

    @asynccontextmanager
    async def open(self) -> AsyncIterator[FileSession]:
        """The folder, when it is there. Raises FileTargetError."""
        if not await asyncio.to_thread(self._folder.is_dir):
            raise FileTargetError(f"{self._folder} is no folder", code="FILE_TARGET_MISSING")
        yield _LocalSession(self._folder, self._timeout)


class _LocalSession:
    """The folder in use."""

    features = FileFeatures(
        acknowledges=True,
        resumes=True,
        reads=True,
        replaces=True,
        refuses=True,
        syncs=True,
        encrypted=True,
    )

    def __init__(self, folder: Path, timeout_seconds: float) -> None:
        self._folder, self._timeout = folder, timeout_seconds

    async def _do(self, what: Callable[[], T]) -> T:
        try:
            return await asyncio.wait_for(asyncio.to_thread(what), self._timeout)
        except TimeoutError as error:
            text = f"{self._folder} did not answer within {self._timeout:g} s"
            raise FileTargetUnavailableError(text) from error
        except OSError as error:
            raise _mapped(error) from error

    async def look(self, name: str) -> Remote | None:
        """What is under a name."""

        def look() -> Remote | None:
            try:
                found = os.lstat(self._folder / name)
            except FileNotFoundError:
                return None
            return Remote(found.st_size, _kind(found.st_mode))

        return await self._do(look)

    async def write(
        self, name: str, read: ReadAt, *, size_bytes: int, offset: int, step_bytes: int
    ) -> AsyncGenerator[int, None]:
        """Write on; every step is on the disk before it is told."""
        path, place = self._folder / name, offset
        while True:
            end = min(place + step_bytes, size_bytes)
            span, first = range(place, end), place == 0
            await self._do(lambda span=span, first=first: _write(path, read, span, new=first))  # type: ignore[misc]
            place = end
            if place >= size_bytes:
                await self._do(lambda: _sync_folder(self._folder))
                yield size_bytes
                return
            yield place

    async def read(self, name: str, *, offset: int, size_bytes: int) -> AsyncGenerator[bytes, None]:
        """Its bytes, in pieces."""
        path, left = self._folder / name, size_bytes
        while left > 0:
            start, most = offset + size_bytes - left, min(left, PIECE_BYTES)
            piece = await self._do(lambda start=start, most=most: _read(path, start, most))  # type: ignore[misc]
            if not piece:
                return
            left -= len(piece)
            yield piece

    async def digest(self, name: str) -> str | None:
        """Nobody else to ask: reading it is the same."""
        return None

    async def rename(self, old: str, new: str, *, replace: bool) -> None:
        """Give it another name, and wait until the disk has it."""
        source, target = self._folder / old, self._folder / new

        def rename() -> None:
            if replace:
                source.replace(target)
            else:
                _rename_to_free(source, target)
            _sync_folder(self._folder)

        await self._do(rename)

    async def remove(self, name: str) -> None:
        """Remove a file."""
        await self._do(lambda: (self._folder / name).unlink(missing_ok=True))


def _rename_to_free(source: Path, target: Path) -> None:
    """Take a name that is free: a link to a name that is taken fails."""
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if os.path.lexists(target):  # no links here: a look is the best there is
            raise FileExistsError(errno.EEXIST, "the name is taken", str(target)) from error
        source.rename(target)
    else:
        source.unlink()


def _write(path: Path, read: ReadAt, span: range, *, new: bool) -> None:
    """Write one step and wait for the disk; a file is never followed through a link."""
    flags = os.O_WRONLY | os.O_NOFOLLOW | (os.O_CREAT | os.O_TRUNC if new else 0)
    with _descriptor(path, flags) as file:
        if os.fstat(file).st_size < span.start:
            raise FileTargetError(f"{path.name} was cut off", code="FILE_TARGET_REFUSED")
        place = span.start
        while place < span.stop:
            data = read(place, min(PIECE_BYTES, span.stop - place))
            place += os.pwrite(file, data, place)
        os.fsync(file)


def _read(path: Path, offset: int, size: int) -> bytes:
    with _descriptor(path, os.O_RDONLY | os.O_NOFOLLOW) as file:
        return os.pread(file, size, offset)


def _sync_folder(folder: Path) -> None:
    with _descriptor(folder, os.O_RDONLY | os.O_DIRECTORY) as file:
        os.fsync(file)


@contextmanager
def _descriptor(path: Path, flags: int) -> Iterator[int]:
    file = os.open(path, flags | os.O_CLOEXEC, 0o666)
    try:
        yield file
    finally:
        os.close(file)


def _kind(mode: int) -> Literal["file", "folder", "link", "other"]:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISLNK(mode):
        return "link"
    return "folder" if stat.S_ISDIR(mode) else "other"


def _mapped(error: OSError) -> Exception:
    """An error of the file system as one of ours."""
    text = f"{Path(str(error.filename)).name if error.filename else 'file'}: {error.strerror}"
    if error.errno in FULL:
        return FileTargetUnavailableError(text, code="FILE_TARGET_FULL")
    if error.errno in DENIED:
        return FileTargetError(text, code="FILE_TARGET_DENIED")
    if error.errno == errno.ENOENT:
        return FileTargetError(text, code="FILE_TARGET_MISSING")
    return FileTargetError(text, code="FILE_TARGET_REFUSED")
