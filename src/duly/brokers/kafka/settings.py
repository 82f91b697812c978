"""What a ``kafka://`` or ``kafkas://`` URL says, and how errors speak of it.

Invariant: TLS verifies the server and its name unless the URL says ``verify=verify_none``, and no
text that comes from here shows the password. Owns what every client of this adapter is configured
with; what only a producer or a consumer needs is beside its use.
"""

from __future__ import annotations

import ipaddress
import re
import ssl
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from duly.errors import ConfigurationError
from duly.wire.options import choice, options_of, whole
from duly.wire.urls import redact

__all__ = ["Settings", "parse"]

PORT = 9092
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
# A killed process is noticed after it; the least that brokers admit by default.
SESSION_SECONDS = 6
PARTITIONS = 8  # the embedded broker's number too: a group can be spread over as many processes
_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", re.ASCII)
_OPTIONS = {
    "cacertfile",
    "certfile",
    "keyfile",
    "mechanism",
    "partitions",
    "replication",
    "session_timeout",
    "verify",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the cluster is and how to talk to it.

    servers: (host, port) to begin with. prefix: of all topics and groups, with its dot. mechanism:
    of SASL, used when there is a user. partitions,
    replication: of topics that are made here; replication 0: three, or as many as there are
    brokers. session_seconds: how long a receiver may be silent.
    """

    shown: str
    servers: tuple[tuple[str, int], ...]
    user: str = ""
    password: str = field(default="", repr=False)
    prefix: str = ""
    tls: bool = False
    verified: bool = True
    cacertfile: str | None = None
    certfile: str | None = None
    keyfile: str | None = field(default=None, repr=False)
    mechanism: str = MECHANISMS[0]
    partitions: int = PARTITIONS
    replication: int = 0
    session_seconds: int = SESSION_SECONDS

    @property
    def local(self) -> bool:
        """Whether every server named is on this machine, where TLS protects nothing."""
        return all(_is_local(host) for host, _ in self.servers)

    def check_files(self) -> None:
        """Raises ConfigurationError for TLS files that cannot be read: now, not later."""
        try:
            context = ssl.create_default_context(cafile=self.cacertfile)
            if self.certfile:
                context.load_cert_chain(self.certfile, self.keyfile)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"{self.shown}: TLS files: {error}") from error

    def client(self) -> dict[str, Any]:
        """The part of a client's configuration that all clients share."""
        named = (f"[{h}]:{p}" if ":" in h else f"{h}:{p}" for h, p in self.servers)
        given = {
            "bootstrap.servers": ",".join(named),
            "client.id": "duly",
            "security.protocol": ("SASL_" if self.user else "")
            + ("SSL" if self.tls else "PLAINTEXT"),
            "socket.keepalive.enable": True,
            "socket.connection.setup.timeout.ms": 5_000,
            "socket.timeout.ms": 10_000,
            "reconnect.backoff.ms": 100,
            "reconnect.backoff.max.ms": 2_000,
            "log_level": 0,  # its own lines go to standard error; what matters comes as an error
        }
        if self.user:
            given |= {
                "sasl.mechanism": self.mechanism,
                "sasl.username": self.user,
                "sasl.password": self.password,
            }
        if self.tls:
            files = {
                "ssl.ca.location": self.cacertfile,
                "ssl.certificate.location": self.certfile,
                "ssl.key.location": self.keyfile,
            }
            given |= {name: path for name, path in files.items() if path}
            given["enable.ssl.certificate.verification"] = self.verified
            given["ssl.endpoint.identification.algorithm"] = "https" if self.verified else "none"
        return given

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
    except ValueError:  # its text may quote the password
        raise ValueError("not a valid URL") from None
    login, _, places = parts.netloc.rpartition("@")
    if parts.scheme not in ("kafka", "kafkas") or not places:
        raise ValueError(
            "write kafka://user:password@host:9092,host:9092/prefix, or kafkas:// for TLS"
        )
    if parts.fragment:
        raise ValueError("a '#' must be written %23")
    options = options_of(parts.query, _OPTIONS)
    prefix = unquote(parts.path[1:])
    if prefix and not _PREFIX.fullmatch(prefix):
        raise ValueError("a prefix has up to 40 letters, digits, '_' and '-'")
    user, _, password = login.partition(":")
    return Settings(
        shown=shown,
        servers=tuple(_place(place) for place in places.split(",")),
        user=unquote(user),
        password=unquote(password),
        prefix=f"{prefix}." if prefix else "",
        tls=parts.scheme == "kafkas",
        verified=choice(options, "verify", ("verify_peer", "verify_none")) == "verify_peer",
        cacertfile=options.get("cacertfile"),
        certfile=options.get("certfile"),
        keyfile=options.get("keyfile"),
        mechanism=choice(options, "mechanism", MECHANISMS),
        partitions=whole(options, "partitions", default=PARTITIONS, most=1000),
        replication=whole(options, "replication", default=0, most=15),
        session_seconds=whole(options, "session_timeout", default=SESSION_SECONDS, most=300),
    )


def _place(text: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:  # its text may quote a password with a raw '@' or ','
        host, port = None, None
    if not host:
        raise ValueError("a server is written host:port, several with commas between them")
    return host, port or PORT


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
