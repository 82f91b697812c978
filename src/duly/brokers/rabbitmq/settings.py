"""What an ``amqp://`` or ``amqps://`` URL says, and how errors speak of it.

Invariant: TLS verifies the server unless the URL says ``verify=verify_none``, and no text that
comes from here shows the password. Leaves out pika's own parameter objects (``link``).
"""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from duly.errors import ConfigurationError
from duly.wire.options import choice, options_of, whole
from duly.wire.urls import redact

__all__ = ["Settings", "parse"]

_OPTIONS = {
    "heartbeat",
    "connection_timeout",
    "cacertfile",
    "certfile",
    "keyfile",
    "verify",
    "queue_type",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the server is and how to talk to it. queue_type: ``quorum`` or ``classic``."""

    shown: str
    host: str
    port: int
    vhost: str
    user: str
    password: str = field(repr=False)
    tls: bool = False
    verified: bool = True
    cacertfile: str | None = None
    certfile: str | None = None
    keyfile: str | None = field(default=None, repr=False)
    heartbeat_seconds: int = 10
    connection_timeout_seconds: float = 10.0
    queue_type: str = "quorum"

    @property
    def local(self) -> bool:
        """Whether the server is on this machine, where TLS protects nothing."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def tls_context(self) -> ssl.SSLContext:
        """The context for the connection. Raises ConfigurationError for unreadable files."""
        try:
            context = ssl.create_default_context(cafile=self.cacertfile)
            if self.certfile:
                context.load_cert_chain(self.certfile, self.keyfile)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"{self.shown}: TLS files: {error}") from error
        if not self.verified:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def censor(self, text: str) -> str:
        """``text`` without the password, wherever a library has put it."""
        return text.replace(self.password, "***") if len(self.password) > 2 else text


def parse(url: str) -> Settings:
    """The settings of a URL. Raises ConfigurationError that names the fault, never the secret."""
    shown = redact(url)
    try:
        return _parse(url, shown)
    except ValueError as error:
        raise ConfigurationError(f"broker URL {shown}: {error}") from None


def _parse(url: str, shown: str) -> Settings:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # its text may quote the password
        raise ValueError("not a valid URL") from None
    if parts.scheme not in ("amqp", "amqps") or not parts.hostname or parts.fragment:
        raise ValueError("write amqp://user:password@host:5672/vhost, or amqps:// for TLS")
    options = options_of(parts.query, _OPTIONS)
    tls = parts.scheme == "amqps"
    return Settings(
        shown=shown,
        host=parts.hostname,
        port=port or (5671 if tls else 5672),
        vhost=unquote(parts.path[1:]) or "/",
        user=unquote(parts.username or "guest"),
        password=unquote(parts.password or "guest"),
        tls=tls,
        verified=choice(options, "verify", ("verify_peer", "verify_none")) == "verify_peer",
        cacertfile=options.get("cacertfile"),
        certfile=options.get("certfile"),
        keyfile=options.get("keyfile"),
        heartbeat_seconds=whole(options, "heartbeat", default=10, most=600),
        connection_timeout_seconds=whole(options, "connection_timeout", default=10, most=600),
        queue_type=choice(options, "queue_type", ("quorum", "classic")),
    )
