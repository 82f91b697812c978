"""A folder of an SSH server, over SFTP.

Owns how files are written and read: many requests are under way at once, and what is told as
answered has no gap, whatever the order of the answers.  The invariants: a file is only ever written
at places that are given, never at its end; what a server says by a generic failure is looked up
before it is believed; and no wait is longer than ``timeout_seconds``.  Connecting is in ``ssh``.
"""

from __future__ import annotations

import asyncio
import posixpath
import stat
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from duly.errors import FileTargetError, FileTargetUnavailableError
from duly.files import ssh
from duly.targets import FileFeatures, FileSession, ReadAt, Remote

if TYPE_CHECKING:
    import asyncssh

__all__ = ["SftpTarget"]

T = TypeVar("T")

REQUESTS_MAX = 64
UNDER_WAY_BYTES_MAX = 4 << 20
FULL_BYTES = 1 << 20  # a file system with less than this is full
FEATURES = FileFeatures(acknowledges=True, resumes=True, reads=True, refuses=True, encrypted=True)


class SftpTarget:
    """A folder, by its ``sftp://user@host:port/folder`` URL.

    known_hosts: the file that names the server. key: of a private key. password_env,
    key_passphrase_env: environment variables. ciphers: in order of preference. timeout_seconds: how
    long the server may be silent. Raises ConfigurationError.
    """

    def __init__(
        self, url: str, *, known_hosts: str | Path, key: str | Path | None = None, **options: Any
    ) -> None:
        self._settings = ssh.parse(url, known_hosts=known_hosts, key=key, **options)

    @property
    def place(self) -> str:
        """Where it is."""
        return self._settings.shown

    @asynccontextmanager
    async def open(self) -> AsyncIterator[FileSession]:
        """Connect and go to the folder."""
        async with ssh.connected(self._settings) as connection:
            session = _SftpSession(self._settings)
            await session.begin(connection)
            yield session


class _SftpSession:
    """One connection. features: what this server has said that it can do."""

    def __init__(self, settings: ssh.Settings) -> None:
        self._folder, self._shown = settings.folder, settings.shown
        self._timeout = settings.timeout_seconds
        self.features = FEATURES
        self._client: asyncssh.SFTPClient
        self._handler: Any

    async def begin(self, connection: asyncssh.SSHClientConnection) -> None:
        """Start the subsystem, learn what it can do, and see that the folder is there."""
        self._client = await self._do("SFTP", connection.start_sftp_client())
        # Not public: which extensions the server has, and a way to ask for others.
        self._handler = self._client._handler
        replaces = self._handler._supports_posix_rename or self._client.version >= 5
        syncs = self._handler._supports_fsync
        self.features = replace(FEATURES, replaces=bool(replaces), syncs=bool(syncs))
        if not await self._is_folder():
            text = f"{self._shown} is no folder, or not one that we may see"
            raise FileTargetError(text, code="FILE_TARGET_MISSING")

    async def _is_folder(self) -> bool:
        try:
            return await self._do(self._folder, self._client.isdir(self._folder))
        except FileTargetError:
            return False

    async def _do(self, what: str, asked: Awaitable[T]) -> T:
        """Wait for an answer, and say in our words what went wrong."""
        try:
            return await asyncio.wait_for(asked, self._timeout)
        except TimeoutError as error:
            raise self._silent(what) from error
        except Exception as error:
            raise self._mapped(error, what) from error

    def _silent(self, what: str) -> FileTargetUnavailableError:
        text = f"{self._shown} did not answer within {self._timeout:g} s ({what})"
        return FileTargetUnavailableError(text)

    def _mapped(self, error: Exception, what: str) -> Exception:
        import asyncssh

        text = f"{what}: {str(error)[:200] or type(error).__name__}"
        if isinstance(error, (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection, OSError)):
            return FileTargetUnavailableError(f"{self._shown}: {text}")
        if isinstance(error, asyncssh.SFTPBadMessage):  # not to be trusted any further
            return FileTargetUnavailableError(f"{self._shown}: {text}")
        if isinstance(error, (asyncssh.SFTPNoSpaceOnFilesystem, asyncssh.SFTPQuotaExceeded)):
            return FileTargetUnavailableError(text, code="FILE_TARGET_FULL")
        if isinstance(error, (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath)):
            return FileTargetError(text, code="FILE_TARGET_MISSING")
        if isinstance(error, (asyncssh.SFTPPermissionDenied, asyncssh.SFTPWriteProtect)):
            return FileTargetError(text, code="FILE_TARGET_DENIED")
        if isinstance(error, asyncssh.SFTPOpUnsupported):
            return FileTargetError(text, code="FILE_TARGET_UNSUPPORTED")
        if isinstance(error, asyncssh.SFTPError):
            return FileTargetError(text, code="FILE_TARGET_REFUSED")
        if isinstance(error, asyncssh.Error):
            return FileTargetUnavailableError(f"{self._shown}: {text}")
        return error

    def _path(self, name: str) -> str:
        return posixpath.join(self._folder, name)

    async def look(self, name: str) -> Remote | None:
        """What is under a name; a server that answers just "failure" is asked for a list."""
        try:
            found = await self._do(name, self._client.lstat(self._path(name)))
        except FileTargetError as error:
            if error.code == "FILE_TARGET_MISSING":
                return None
            if error.code == "FILE_TARGET_REFUSED" and name not in await self._listed():
                return None
            raise
        kind = _kind(found)
        if kind == "file" and found.size is None:
            text = f"{self._shown} does not say how large {name} is"
            raise FileTargetError(text, code="FILE_TARGET_UNSUPPORTED")
        return Remote(found.size or 0, kind)

    async def _listed(self) -> set[str]:
        names = await self._do(self._folder, self._client.listdir(self._folder))
        return {str(name) for name in names}

    # --- writing ----------------------------------------------------------------------------------
    async def write(
        self, name: str, read: ReadAt, *, size_bytes: int, offset: int, step_bytes: int
    ) -> AsyncGenerator[int, None]:
        """Write on, many requests at once; tells what is answered from the first byte on."""
        file = await self._opened(name, offset)
        piece = min(self._client.limits.max_write_len, step_bytes)
        under_way: deque[tuple[int, asyncio.Task[int]]] = deque()
        bound = max(1, min(REQUESTS_MAX, min(UNDER_WAY_BYTES_MAX, step_bytes) // piece))
        place, answered, told = offset, offset, offset
        try:
            while answered < size_bytes:
                while place < size_bytes and len(under_way) < bound:
                    data = read(place, min(piece, size_bytes - place))
                    place += len(data)
                    under_way.append(
                        (place, asyncio.ensure_future(file.write(data, place - len(data))))
                    )
                answered = await self._answered(under_way, name)
                if answered - told >= step_bytes and answered < size_bytes:
                    told = answered
                    yield told
            if self.features.syncs:
                await self._do(name, file.fsync())
            await self._do(name, file.close())
        finally:
            await _cancelled(under_way)
        yield size_bytes

    async def _opened(self, name: str, offset: int) -> asyncssh.SFTPClientFile:
        import asyncssh

        flags = (
            asyncssh.FXF_WRITE
            if offset
            else (asyncssh.FXF_WRITE | asyncssh.FXF_CREAT | asyncssh.FXF_TRUNC)
        )
        opening = self._client.open(self._path(name), flags, encoding=None, block_size=0)
        file = await self._do(name, opening)
        if offset:
            size = (await self._do(name, file.stat())).size
            if size is not None and size < offset:
                text = f"{self._shown} cut {name} off at {size} when it was opened"
                raise FileTargetUnavailableError(text)
        return file

    async def _answered(self, under_way: deque[tuple[int, asyncio.Task[int]]], name: str) -> int:
        """Wait for the oldest write; how far everything is answered then."""
        end, task = under_way[0]
        try:
            await self._do(name, task)
        except FileTargetError as error:
            raise await self._not_written(error) from error
        under_way.popleft()
        return end

    async def _not_written(self, error: FileTargetError) -> FileTargetUnavailableError:
        """A write that is refused may be let through later; say so when it is for want of space."""
        with suppress(FileTargetError, FileTargetUnavailableError):
            there = await self._do(self._folder, self._client.statvfs(self._folder))
            if there.bavail * there.frsize < FULL_BYTES:
                return FileTargetUnavailableError(error.detail, code="FILE_TARGET_FULL")
        return FileTargetUnavailableError(error.detail, code="FILE_TARGET_WRITE_FAILED")

    # --- reading ----------------------------------------------------------------------------------
    async def read(self, name: str, *, offset: int, size_bytes: int) -> AsyncGenerator[bytes, None]:
        """Its bytes in order, many requests at once."""
        import asyncssh

        opening = self._client.open(
            self._path(name), asyncssh.FXF_READ, encoding=None, block_size=0
        )
        file = await self._do(name, opening)
        piece = self._client.limits.max_read_len
        bound = max(1, min(REQUESTS_MAX, UNDER_WAY_BYTES_MAX // piece))
        under_way: deque[tuple[int, asyncio.Task[bytes]]] = deque()
        place, end = offset, offset + size_bytes
        try:
            while place < end or under_way:
                while place < end and len(under_way) < bound:
                    size = min(piece, end - place)
                    asked = asyncio.ensure_future(_exactly(file, place, size))
                    under_way.append((size, asked))
                    place += size
                size, task = under_way.popleft()
                data = await self._do(name, task)
                if data:
                    yield data
                if len(data) < size:
                    return
        finally:
            await _cancelled(under_way)
            with suppress(FileTargetError, FileTargetUnavailableError):
                await self._do(name, file.close())

    async def digest(self, name: str) -> str | None:
        """By the extension "check-file"; few servers have it."""
        try:
            return await self._do(name, self._check_file(self._path(name).encode()))
        except FileTargetError:
            return None

    async def _check_file(self, path: bytes) -> str | None:
        from asyncssh.packet import String, UInt32, UInt64

        asks, whole = b"check-file-name", (UInt64(0), UInt64(0), UInt32(0))
        extended_reply = 201
        kinds = {**self._handler._return_types, asks: extended_reply}
        self._handler._return_types = kinds
        packet = await self._handler._make_request(asks, String(path), String(b"sha256"), *whole)
        algorithm = packet.get_string()
        if algorithm == b"check-file":  # some repeat the question first
            algorithm = packet.get_string()
        digest = packet.get_remaining_payload()
        self.features = replace(self.features, hashes=True)
        return str(digest.hex()) if algorithm == b"sha256" and len(digest) == 32 else None

    # --- names ------------------------------------------------------------------------------------
    async def rename(self, old: str, new: str, *, replace: bool) -> None:
        """By the extension "posix-rename" where it shall replace, else by one that must not."""
        source, target = self._path(old), self._path(new)
        if replace:
            await self._do(new, self._client.posix_rename(source, target))
        else:
            await self._do(new, self._client.rename(source, target))

    async def remove(self, name: str) -> None:
        """Remove a file; a failure is believed only when it is still there."""
        try:
            await self._do(name, self._client.remove(self._path(name)))
        except FileTargetError as error:
            if error.code != "FILE_TARGET_MISSING" and await self.look(name) is not None:
                raise


async def _exactly(file: asyncssh.SFTPClientFile, place: int, size: int) -> bytes:
    """So many bytes; servers may give fewer at a time."""
    parts: list[bytes] = []
    while size > 0:
        data = await file.read(size, place)
        if not data:
            break
        parts.append(bytes(data))  # type: ignore[arg-type]  # typed as of a text file
        place, size = place + len(data), size - len(data)
    return b"".join(parts)


async def _cancelled(under_way: deque[tuple[int, Any]]) -> None:
    """Nothing of ours waits any longer; what was sent may still arrive."""
    tasks = [task for _, task in under_way]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _kind(attrs: asyncssh.SFTPAttrs) -> Literal["file", "folder", "link", "other"]:
    if attrs.permissions is not None and stat.S_IFMT(attrs.permissions):
        mode = attrs.permissions
        if stat.S_ISREG(mode):
            return "file"
        if stat.S_ISLNK(mode):
            return "link"
        return "folder" if stat.S_ISDIR(mode) else "other"
    # Types of SFTP 4 and newer; 5 is unknown, as of servers that tell no mode.
    kinds: dict[int, Literal["file", "folder", "link", "other"]]
    kinds = {1: "file", 2: "folder", 3: "link", 5: "file"}
    return kinds.get(attrs.type, "other")
