"""How a connection to an SSH server is made, and what its errors mean.

Owns the settings of an ``sftp://`` URL, the login and the host key.  The invariants: nothing, not
even a password, is sent to a server whose key is not in the known_hosts file; nothing of this
machine's own SSH settings or agent is used; and no text from here shows a secret.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from duly.errors import (
    ConfigurationError,
    FileTargetUnavailableError,
    HostKeyError,
    MissingExtraError,
)
from duly.wire.urls import redact

if TYPE_CHECKING:
    import asyncssh

__all__ = ["Settings", "connected", "parse"]

KEEPALIVE_SECONDS = 15.0
KEEPALIVES_MAX = 3
# Hardware does these; the default order begins with one that it does not.
FAST_CIPHERS = "^aes128-gcm@openssh.com,aes256-gcm@openssh.com"
AEAD = ("-gcm@openssh.com", "-poly1305@openssh.com")
_USAGE = "write sftp://user@host:22/folder"


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the folder is and how to log in. folder: absolute, or relative to the home folder."""

    shown: str
    host: str
    port: int
    user: str
    folder: str
    known_hosts: Path
    password: str = field(default="", repr=False)
    password_env: str = ""
    key: Path | None = None
    key_passphrase_env: str = ""
    ciphers: tuple[str, ...] = ()
    timeout_seconds: float = 60.0


def parse(url: str, *, known_hosts: str | Path, key: str | Path | None, **options: Any) -> Settings:
    """The settings of a URL and its options. Raises ConfigurationError, which shows no secret."""
    shown = redact(url)
    try:
        parts = urlsplit(url)
        port = parts.port or 22
    except ValueError as error:
        raise _wrong(f"{shown}: {_USAGE}") from error
    if parts.scheme != "sftp" or not parts.hostname or parts.query or parts.fragment:
        raise _wrong(f"{shown}: {_USAGE}")
    path = unquote(parts.path)
    folder = path.removeprefix("/~/") if path.startswith("/~/") else path
    if "\0" in folder or not parts.username:
        raise _wrong(f"{shown}: {_USAGE}")
    return Settings(
        shown=f"sftp://{parts.hostname}:{port}{path}",
        host=parts.hostname,
        port=port,
        user=unquote(parts.username),
        folder=folder.rstrip("/") or ("/" if path.startswith("/") and folder == path else "."),
        known_hosts=Path(known_hosts).expanduser(),
        password=unquote(parts.password or ""),
        key=Path(key).expanduser() if key else None,
        **options,
    )


def _wrong(text: str) -> ConfigurationError:
    return ConfigurationError(text, code="BATCH_DESTINATION")


def _secret(name: str, shown: str) -> str:
    """The value of an environment variable, read when it is needed."""
    if not name:
        return ""
    if name not in os.environ:
        raise ConfigurationError(f"{shown}: {name} is not set", code="FILE_TARGET_LOGIN")
    return os.environ[name]


@asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[asyncssh.SSHClientConnection]:
    """A connection, logged in. Raises FileTargetUnavailableError, HostKeyError (HOST_KEY_UNKNOWN,
    HOST_KEY_CHANGED), ConfigurationError (FILE_TARGET_LOGIN), MissingExtraError.
    """
    try:
        import asyncssh
    except ImportError as error:
        raise MissingExtraError("asyncssh", "sftp") from error
    _quiet()
    options, seen = _options(settings), _Seen()
    connecting = asyncssh.connect(client_factory=_client(asyncssh, seen), **options)
    try:
        connection = await asyncio.wait_for(connecting, settings.timeout_seconds)
    except asyncssh.PermissionDenied as error:
        text = f"{settings.shown} does not let {settings.user} in"
        raise ConfigurationError(text, code="FILE_TARGET_LOGIN") from error
    except (asyncssh.HostKeyNotVerifiable, asyncssh.KeyExchangeFailed) as error:
        raise _distrusted(settings, seen, error) from error
    except (OSError, TimeoutError, asyncssh.Error) as error:
        raise FileTargetUnavailableError(f"{settings.shown}: {_reason(error)}") from error
    _without_padding(connection)
    try:
        yield connection
    finally:
        connection.abort()  # everything that matters has been answered


def _quiet() -> None:
    """Nobody reads sixteen lines for each connection, unless they have asked for them."""
    logger = logging.getLogger("asyncssh")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.WARNING)


def _without_padding(connection: Any) -> None:
    """No empty packet before each packet: asyncssh sends it for ciphers in CBC mode, whose next IV
    can be foretold; with the others it only doubles the work of both sides.
    """
    ignore, cipher = 2, str(connection.get_extra_info("send_cipher"))
    if not cipher.endswith(AEAD):
        return
    send = connection.send_packet

    def sent(kind: int, *args: bytes, handler: Any = None) -> None:
        if kind != ignore:
            send(kind, *args, handler=handler)

    connection.send_packet = sent


def _options(settings: Settings) -> dict[str, Any]:
    import asyncssh

    try:
        hosts = asyncssh.read_known_hosts(str(settings.known_hosts))
    except (OSError, ValueError) as error:
        text = f"known_hosts {settings.known_hosts}: {_reason(error)}"
        raise ConfigurationError(text, code="FILE_TARGET_LOGIN") from error
    password = settings.password or _secret(settings.password_env, settings.shown)
    return {
        "host": settings.host,
        "port": settings.port,
        "username": settings.user,
        "known_hosts": hosts,
        "password": password or None,
        "client_keys": _keys(settings),
        "encryption_algs": ",".join(settings.ciphers) or FAST_CIPHERS,
        "compression_algs": None,
        "config": None,
        "agent_path": None,
        "login_timeout": settings.timeout_seconds,
        "keepalive_interval": KEEPALIVE_SECONDS,
        "keepalive_count_max": KEEPALIVES_MAX,
    }


def _keys(settings: Settings) -> Any:
    import asyncssh

    if settings.key is None:
        return None
    passphrase = _secret(settings.key_passphrase_env, settings.shown) or None
    try:
        return [asyncssh.read_private_key(str(settings.key), passphrase)]
    except (OSError, asyncssh.KeyImportError) as error:
        text = f"key {settings.key}: {_reason(error)}"
        raise ConfigurationError(text, code="FILE_TARGET_LOGIN") from error


class _Seen:
    """The key that a server showed and that is not trusted."""

    fingerprint = ""


def _client(asyncssh: Any, seen: _Seen) -> Any:
    class Client(asyncssh.SSHClient):  # type: ignore[misc]
        def validate_host_public_key(self, *server: Any) -> bool:
            *_, key = server  # host, address, port, key
            seen.fingerprint = key.get_fingerprint()
            return False

    return Client


def _distrusted(settings: Settings, seen: _Seen, error: Exception) -> Exception:
    """Whether the server is not in the file, or is there with another key."""
    import asyncssh

    if isinstance(error, asyncssh.KeyExchangeFailed) and "host key" not in str(error).lower():
        text = f"{settings.shown}: {_reason(error)}"
        return ConfigurationError(text, code="FILE_TARGET_LOGIN")
    hosts = asyncssh.read_known_hosts(str(settings.known_hosts))
    known = any(asyncssh.match_known_hosts(hosts, settings.host, "", settings.port)[:2])
    shows = f", the server shows {seen.fingerprint}" if seen.fingerprint else ""
    where = f"{settings.host} port {settings.port}"
    if known:
        text = f"{settings.known_hosts} has another key for {where}{shows}"
        return HostKeyError(text, code="HOST_KEY_CHANGED")
    text = f"{settings.known_hosts} does not name {where}{shows}"
    return HostKeyError(text, code="HOST_KEY_UNKNOWN")


def _reason(error: BaseException) -> str:
    """What went wrong; libraries leave it empty for a timeout."""
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
