"""What a ``redis://`` or ``rediss://`` URL says, and how errors speak of it.

Invariant: TLS verifies the server unless the URL says ``verify=verify_none``, and no text that
comes from here shows the password. Leaves out redis-py's own connection objects (``link``).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from duly.errors import ConfigurationError
from duly.kernel.durations import seconds
from duly.wire.options import options_of
from duly.wire.urls import redact

__all__ = ["Settings", "parse"]

_OPTIONS = {
    "prefix",
    "retention",
    "lease",
    "connection_timeout",
    "cacertfile",
    "certfile",
    "keyfile",
    "verify",
}
_SCHEMES = {"redis": False, "rediss": True, "redis+pubsub": False, "rediss+pubsub": True}
_PREFIX = re.compile(r"[A-Za-z0-9._:{}-]{1,60}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the server is and how to talk to it.

    prefix: what the names of our keys begin with. retention_seconds: how long messages stay that
    every group has done. lease_seconds: how long a receiver may be silent before others take what
    it holds.
    """

    shown: str
    host: str
    port: int
    db: int
    user: str | None
    password: str | None = field(repr=False)
    tls: bool = False
    verified: bool = True
    cacertfile: str | None = None
    certfile: str | None = None
    keyfile: str | None = field(default=None, repr=False)
    connection_timeout_seconds: float = 5.0
    prefix: str = "duly:"
    retention_seconds: float = 3600.0
    lease_seconds: float = 4.0

    @property
    def local(self) -> bool:
        """Whether the server is on this machine, where TLS protects nothing."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def censor(self, text: str) -> str:
        """``text`` without the password, wherever a library has put it."""
        secret = self.password or ""
        return text.replace(secret, "***") if len(secret) > 2 else text


def parse(url: str) -> Settings:
    """The settings of a URL. Raises ConfigurationError that names the fault, never the secret."""
    shown = redact(url)
    try:
        return _parse(url, shown)
    except (ValueError, ConfigurationError) as error:
        detail = error.detail if isinstance(error, ConfigurationError) else str(error)
        raise ConfigurationError(f"broker URL {shown}: {detail}") from None


def _parse(url: str, shown: str) -> Settings:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # its text may quote the password
        raise ValueError("not a valid URL") from None
    if parts.scheme not in _SCHEMES or not parts.hostname or parts.fragment:
        raise ValueError("write redis://user:password@host:6379/0, or rediss:// for TLS")
    options = options_of(parts.query, _OPTIONS)
    tls = _SCHEMES[parts.scheme]
    return Settings(
        shown=shown,
        host=parts.hostname,
        port=port or 6379,
        db=_database(parts.path),
        user=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        tls=tls,
        verified=_verified(options.get("verify", "verify_peer")),
        cacertfile=_file(options, "cacertfile", tls=tls),
        certfile=_file(options, "certfile", tls=tls),
        keyfile=_file(options, "keyfile", tls=tls),
        connection_timeout_seconds=_span(options, "connection_timeout", 5.0, most=60.0),
        prefix=_prefix(options.get("prefix", "duly:")),
        retention_seconds=seconds(options.get("retention", "1h"), "retention", allow_zero=True),
        lease_seconds=_span(options, "lease", 4.0, most=600.0),
    )


def _database(path: str) -> int:
    text = path.strip("/") or "0"
    if not text.isascii() or not text.isdigit() or len(text) > 4:
        raise ValueError("behind the host comes the number of the database, such as /0")
    return int(text)


def _verified(value: str) -> bool:
    if value not in ("verify_peer", "verify_none"):
        raise ValueError("verify must be verify_peer or verify_none")
    return value == "verify_peer"


def _file(options: dict[str, str], name: str, *, tls: bool) -> str | None:
    path = options.get(name)
    if path is None:
        return None
    if not tls:
        raise ValueError(f"{name} needs rediss://")
    if not Path(path).is_file():
        raise ValueError(f"TLS files: there is no file {name}={path}")
    return path


def _prefix(value: str) -> str:
    if not _PREFIX.fullmatch(value):
        raise ValueError("prefix must be 1 to 60 letters, digits and . _ : { } -")
    return value


def _span(options: dict[str, str], name: str, default: float, *, most: float) -> float:
    given = seconds(options.get(name, default), name)
    if not 0.5 <= given <= most:
        raise ValueError(f"{name} must be 500ms to {most:.0f}s")
    return given
