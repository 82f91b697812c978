"""What a ``nats://`` or ``nats+tls://`` URL says, and how errors speak of it.

Invariant: TLS verifies the server unless the URL says ``verify=verify_none``, and no text that
comes from here shows a password or token. Leaves out the client's own options (``link``).
"""

from __future__ import annotations

import ipaddress
import re
import ssl
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from duly.errors import ConfigurationError
from duly.wire.options import choice, options_of, whole
from duly.wire.urls import redact

__all__ = ["Settings", "parse"]

_OPTIONS = {
    "cacertfile",
    "certfile",
    "connection_timeout",
    "heartbeat",
    "keyfile",
    "monitor",
    "replicas",
    "verify",
}
_PREFIX = re.compile(r"[A-Za-z0-9_]{1,40}", re.ASCII)
_USAGE = "write nats://user:password@host:4222/prefix, or nats+tls:// for TLS"


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the servers are and how to talk to them.

    hosts: tried one after the other. prefix: first word of every subject and stream, so that
    several systems can share a server. monitor: port of the server's monitoring endpoint, where its
    sync interval can be read; 0 for none.
    """

    shown: str
    hosts: tuple[tuple[str, int], ...]
    prefix: str
    user: str
    password: str = field(repr=False)
    tls: bool = False
    verified: bool = True
    cacertfile: str | None = None
    certfile: str | None = None
    keyfile: str | None = field(default=None, repr=False)
    heartbeat_seconds: int = 10
    connection_timeout_seconds: int = 5
    replicas: int = 1
    monitor: int = 0

    @property
    def local(self) -> bool:
        """Whether every server is on this machine, where TLS protects nothing."""
        return all(_is_local(host) for host, _ in self.hosts)

    def tls_context(self) -> ssl.SSLContext:
        """The context for a connection. Raises ConfigurationError for unreadable files."""
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
        """``text`` without the secret, wherever a library has put it."""
        for secret in (self.password, "" if self.password else self.user):
            text = text.replace(secret, "***") if len(secret) > 2 else text
        return text


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def parse(url: str) -> Settings:
    """The settings of a URL. Raises ConfigurationError that names the fault, never the secret."""
    shown = redact(url)
    try:
        return _parse(url, shown)
    except ValueError as error:
        raise ConfigurationError(f"broker URL {shown}: {error}") from None


def _parse(url: str, shown: str) -> Settings:
    parts = urlsplit(url)
    login, _, places = parts.netloc.rpartition("@")
    if parts.scheme not in ("nats", "nats+tls") or parts.fragment:
        raise ValueError(_USAGE)
    hosts = tuple(_host(place) for place in places.split(","))
    prefix = unquote(parts.path[1:]) or "duly"
    if not _PREFIX.fullmatch(prefix):
        raise ValueError("the prefix must be 1 to 40 letters, digits and '_'")
    options = options_of(parts.query, _OPTIONS)
    user, _, password = login.partition(":")
    return Settings(
        shown=shown,
        hosts=hosts,
        prefix=prefix,
        user=unquote(user),
        password=unquote(password),
        tls=parts.scheme == "nats+tls",
        verified=choice(options, "verify", ("verify_peer", "verify_none")) == "verify_peer",
        cacertfile=options.get("cacertfile"),
        certfile=options.get("certfile"),
        keyfile=options.get("keyfile"),
        heartbeat_seconds=whole(options, "heartbeat", default=10, most=600),
        connection_timeout_seconds=whole(options, "connection_timeout", default=5, most=600),
        replicas=whole(options, "replicas", default=1, most=5),
        monitor=whole(options, "monitor", default=0, most=65_535),
    )


def _host(place: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{place}")
        port = parts.port
    except ValueError:  # its text may quote a part of the password
        raise ValueError("not a valid URL") from None
    if not parts.hostname or parts.path or parts.query:
        raise ValueError(_USAGE)
    return parts.hostname, port or 4222
