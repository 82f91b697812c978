"""A folder of an FTP server, with TLS or without.

Owns the dialogue, by the standard library's ``ftplib`` in a thread of its own.  The invariants: a
file is written on only where the server says that it ends, in binary mode; what FTP never answers
is not told as answered (``acknowledges`` is off); and with TLS the data go under the session of the
commands, as careful servers demand.  Whether a rename replaces is the server's habit, so nothing is
claimed of it.
"""

from __future__ import annotations

import asyncio
import ftplib
import os
import posixpath
import re
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import unquote, urlsplit

from duly.errors import ConfigurationError, FileTargetError, FileTargetUnavailableError
from duly.targets import FileFeatures, FileSession, ReadAt, Remote
from duly.wire.urls import redact

__all__ = ["FtpTarget"]

T = TypeVar("T")

PIECE_BYTES = 1 << 18
FULL = re.compile(r"^[45]52")
DENIED = re.compile(r"^5(30|32|50|53)")
UNSUPPORTED = re.compile(r"^5(0[0-46]|3[46])")
_HEX = re.compile(r"\b[0-9A-Fa-f]{64}\b")
_USAGE = "write ftp://user@host:21/folder, or ftps:// for TLS"


@dataclass(frozen=True, slots=True)
class _Settings:
    shown: str
    tls: bool
    host: str
    port: int
    user: str
    folder: str
    password: str = field(repr=False)
    password_env: str = ""
    ca_file: str | Path | None = None
    implicit: bool = False
    timeout_seconds: float = 60.0


class FtpTarget:
    """A folder, by its ``ftp://`` or ``ftps://`` URL.

    ca_file: certificates to trust besides the system's. implicit: TLS from the first byte.
    password_env: an environment variable. timeout_seconds: how long the server may be silent.
    Raises ConfigurationError.
    """

    def __init__(self, url: str, **options: Any) -> None:
        shown = redact(url)
        try:
            parts = urlsplit(url)
            port = parts.port or (990 if options.get("implicit") else 21)
        except ValueError as error:
            raise ConfigurationError(f"{shown}: {_USAGE}", code="BATCH_DESTINATION") from error
        plain = not any(ord(letter) < 32 for letter in unquote(url))  # commands end with a line
        known = parts.scheme in ("ftp", "ftps") and parts.hostname and parts.username
        if not plain or not known or parts.query or parts.fragment:
            raise ConfigurationError(f"{shown}: {_USAGE}", code="BATCH_DESTINATION")
        self._settings = _Settings(
            shown=f"{parts.scheme}://{parts.hostname}:{port}{parts.path}",
            tls=parts.scheme == "ftps",
            host=parts.hostname or "",
            port=port,
            user=unquote(parts.username or ""),
            folder=unquote(parts.path) or "/",
            password=unquote(parts.password or ""),
            **options,
        )

    @property
    def place(self) -> str:
        """Where it is."""
        return self._settings.shown

    @asynccontextmanager
    async def open(self) -> AsyncIterator[FileSession]:
        """Connect, log in and go to the folder."""
        session = _FtpSession(self._settings)
        try:
            await session.begin()
            yield session
        finally:
            session.end()


class _Implicit(ftplib.FTP_TLS):
    """TLS from the first byte."""

    def connect(self, *args: Any, **options: Any) -> str:
        """Greet inside TLS."""
        self.host, self.port = options["host"], options["port"]
        raw = socket.create_connection((self.host, self.port), options["timeout"])
        self.timeout = options["timeout"]
        self.af = raw.family
        self.sock = self.context.wrap_socket(raw, server_hostname=self.host)
        self.file = self.sock.makefile("r", encoding=self.encoding)
        self.welcome = self.getresp()
        return self.welcome

    def ntransfercmd(self, cmd: str, rest: Any = None) -> Any:
        """The data connection under the session of the commands."""
        return _resumed(self, cmd, rest)


class _Explicit(ftplib.FTP_TLS):
    """TLS after AUTH."""

    def ntransfercmd(self, cmd: str, rest: Any = None) -> Any:
        """The data connection under the session of the commands."""
        return _resumed(self, cmd, rest)


def _resumed(ftp: ftplib.FTP_TLS, cmd: str, rest: Any) -> tuple[Any, int | None]:
    data, size = ftplib.FTP.ntransfercmd(ftp, cmd, rest)  # noqa: S321  # wrapped below
    session = ftp.sock.session if isinstance(ftp.sock, ssl.SSLSocket) else None
    return ftp.context.wrap_socket(data, server_hostname=ftp.host, session=session), size


class _FtpSession:
    """One connection. features: what this server has said that it can do."""

    def __init__(self, settings: _Settings) -> None:
        self._settings, self._shown = settings, settings.shown
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="duly-ftp")
        self._ftp: ftplib.FTP = ftplib.FTP()  # noqa: S321  # the user asked for it by its URL
        self._can: dict[str, str] = {}
        self.features = FileFeatures(reads=True, encrypted=settings.tls)

    async def _do(self, what: str, call: Callable[[], T]) -> T:
        """Run it in the thread; its sockets never wait longer than the timeout."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, call)
        except (ftplib.Error, OSError, EOFError) as error:
            raise self._mapped(error, what) from error

    def _mapped(self, error: Exception, what: str) -> Exception:
        text = f"{what}: {str(error)[:200] or type(error).__name__}"
        reply = str(error)
        if FULL.match(reply):
            return FileTargetUnavailableError(text, code="FILE_TARGET_FULL")
        if isinstance(error, ftplib.error_perm):
            if UNSUPPORTED.match(reply):
                return FileTargetError(text, code="FILE_TARGET_UNSUPPORTED")
            code = "FILE_TARGET_DENIED" if DENIED.match(reply) else "FILE_TARGET_REFUSED"
            return FileTargetError(text, code=code)
        return FileTargetUnavailableError(f"{self._shown}: {text}")

    async def begin(self) -> None:
        """Connect, log in, learn what the server can do, go to the folder."""
        await self._do("connect", self._connect)
        try:
            await self._do("login", self._login)
        except FileTargetError as error:
            text = f"{self._shown}: {error.detail}"
            raise ConfigurationError(text, code="FILE_TARGET_LOGIN") from error
        self._can = await self._do("FEAT", self._extensions)
        rest = "STREAM" in self._can.get("REST", "").upper()
        hashes = "XSHA256" in self._can or "SHA-256" in self._can.get("HASH", "").upper()
        self.features = replace(self.features, resumes=rest, hashes=hashes)
        try:
            await self._do(self._settings.folder, lambda: self._ftp.cwd(self._settings.folder))
        except FileTargetError as error:
            text = f"{self._shown} is no folder, or not one that we may see"
            raise FileTargetError(text, code="FILE_TARGET_MISSING") from error

    def _connect(self) -> None:
        at = self._settings
        if at.tls:
            kind = _Implicit if at.implicit else _Explicit
            self._ftp = kind(context=self._context(), encoding="utf-8")
        else:
            self._ftp = ftplib.FTP(encoding="utf-8")  # noqa: S321  # by its URL
        try:
            self._ftp.connect(host=at.host, port=at.port, timeout=at.timeout_seconds)
        except ssl.SSLCertVerificationError as error:
            raise self._untrusted(error) from error

    def _untrusted(self, error: ssl.SSLCertVerificationError) -> ConfigurationError:
        text = f"{self._shown}: {error.verify_message}"
        return ConfigurationError(text, code="FILE_TARGET_TLS")

    def _context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context()
            if self._settings.ca_file:
                context.load_verify_locations(self._settings.ca_file)
        except (OSError, ssl.SSLError) as error:
            text = f"{self._shown}: ca_file: {error}"
            raise ConfigurationError(text, code="FILE_TARGET_TLS") from error
        return context

    def _login(self) -> None:
        at, password = self._settings, self._settings.password
        if at.password_env and not password:
            if at.password_env not in os.environ:
                text = f"{self._shown}: {at.password_env} is not set"
                raise ConfigurationError(text, code="FILE_TARGET_LOGIN")
            password = os.environ[at.password_env]
        if "\r" in password or "\n" in password:
            raise ConfigurationError(f"{self._shown}: a password of two lines")
        try:
            self._ftp.login(at.user, password)
        except ssl.SSLCertVerificationError as error:
            raise self._untrusted(error) from error
        if isinstance(self._ftp, ftplib.FTP_TLS):
            self._ftp.prot_p()
        self._ftp.voidcmd("TYPE I")

    def _extensions(self) -> dict[str, str]:
        try:
            lines = self._ftp.sendcmd("FEAT").splitlines()[1:-1]
        except ftplib.error_perm:
            return {}
        words = (line.strip().partition(" ") for line in lines)
        return {name.upper(): rest for name, _, rest in words}

    def end(self) -> None:
        """Hang up; a thread that waits for the server is woken by it."""
        if self._ftp.sock is not None:
            with suppress(OSError):
                self._ftp.sock.shutdown(socket.SHUT_RDWR)
        with suppress(OSError):
            self._ftp.close()
        self._thread.shutdown(wait=False)

    # --- names ------------------------------------------------------------------------------------
    async def look(self, name: str) -> Remote | None:
        """What is under a name, by MLST or SIZE."""
        return await self._do(name, lambda: self._look(name))

    def _look(self, name: str) -> Remote | None:
        if "MLST" in self._can:
            try:
                return _facts(self._ftp.sendcmd(f"MLST {name}").splitlines()[1])
            except ftplib.error_perm as error:
                if str(error).startswith("550"):
                    return None
                raise
        try:
            size = self._ftp.size(name)
        except ftplib.error_perm as error:
            if not str(error).startswith("550") or name in self._names():
                raise
            return None
        return Remote(size or 0)

    def _names(self) -> set[str]:
        try:
            return {posixpath.basename(one) for one in self._ftp.nlst()}
        finally:
            self._ftp.voidcmd("TYPE I")  # a list is text, and leaves the connection so

    async def rename(self, old: str, new: str, *, replace: bool) -> None:
        """By RNFR and RNTO; what becomes of a name that is taken is the server's habit."""
        if replace:
            raise FileTargetError("FTP cannot ask for it", code="FILE_TARGET_UNSUPPORTED")
        await self._do(new, lambda: self._ftp.rename(old, new))

    async def remove(self, name: str) -> None:
        """Remove a file; a refusal is believed only when it is still there."""
        try:
            await self._do(name, lambda: self._ftp.delete(name))
        except FileTargetError:
            if await self.look(name) is not None:
                raise

    async def digest(self, name: str) -> str | None:
        """By XSHA256 or HASH where the server has one of them."""
        if not self.features.hashes:
            return None
        return await self._do(name, lambda: self._digest(name))

    def _digest(self, name: str) -> str | None:
        if "XSHA256" in self._can:
            answer = self._ftp.sendcmd(f"XSHA256 {name}")
        else:
            self._ftp.voidcmd("OPTS HASH SHA-256")
            answer = self._ftp.sendcmd(f"HASH {name}")
        found = _HEX.search(answer)
        return found[0].lower() if found else None

    # --- bytes ------------------------------------------------------------------------------------
    async def write(
        self, name: str, read: ReadAt, *, size_bytes: int, offset: int, step_bytes: int
    ) -> AsyncGenerator[int, None]:
        """Write on from where the file ends; what is told before the end was just handed over."""
        rest = offset or None
        data = await self._do(name, lambda: self._ftp.transfercmd(f"STOR {name}", rest))
        place = offset
        try:
            while place < size_bytes:
                end = min(place + step_bytes, size_bytes)
                span = range(place, end)
                await self._do(name, lambda span=span: _handed(data, read, span))  # type: ignore[misc]
                place = end
                if place < size_bytes:
                    yield place
            await self._do(name, lambda: _closed(data))
            await self._do(name, self._ftp.voidresp)
        finally:
            data.close()
        yield size_bytes

    async def read(self, name: str, *, offset: int, size_bytes: int) -> AsyncGenerator[bytes, None]:
        """Its bytes. FTP reads to the end of a file: what was not asked for is thrown away."""
        rest = offset or None
        data = await self._do(name, lambda: self._ftp.transfercmd(f"RETR {name}", rest))
        left, sound = size_bytes, False
        try:
            while left > 0:
                most, sound = min(left, PIECE_BYTES), False
                piece = await self._do(name, lambda most=most: data.recv(most))  # type: ignore[misc]
                sound = True
                if not piece:
                    break
                left -= len(piece)
                yield bytes(piece)
            sound = True
        finally:
            if sound:  # the dialogue goes on only after the end of the file
                await self._do(name, lambda: _drained(data))
                await self._do(name, self._ftp.voidresp)
            data.close()


def _handed(data: socket.socket, read: ReadAt, span: range) -> None:
    place = span.start
    while place < span.stop:
        piece = read(place, min(PIECE_BYTES, span.stop - place))
        data.sendall(piece)
        place += len(piece)


def _drained(data: socket.socket) -> None:
    while data.recv(PIECE_BYTES):
        pass
    _closed(data)


def _closed(data: socket.socket) -> None:
    """The end of the data, told properly: without it a server with TLS cannot know of the end."""
    if isinstance(data, ssl.SSLSocket):
        with suppress(OSError):  # some just hang up
            data.unwrap()
    data.close()


def _facts(line: str) -> Remote:
    """A line of MLST as what it says."""
    words = (one.partition("=") for one in line.strip().partition(" ")[0].split(";"))
    facts = {name.lower(): value.lower() for name, _, value in words}
    kinds: dict[str, Literal["file", "folder", "link", "other"]]
    kinds = {"file": "file", "dir": "folder", "cdir": "folder", "pdir": "folder"}
    kind = kinds.get(facts.get("type", ""), "other")
    kind = "link" if "link" in facts.get("type", "") else kind
    return Remote(int(facts.get("size", "0")), kind)
