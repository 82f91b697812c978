"""What an ``activemq://`` or ``activemq+tls://`` URL says: a participant of global transactions.

Owns the words that the server's own client is given.  Invariant: TLS verifies the server unless the
URL says ``verify=verify_none``, and no text that comes from here shows a password.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from duly.errors import ConfigurationError
from duly.wire.options import choice, options_of, whole
from duly.wire.urls import redact

__all__ = ["XaSettings", "parse"]

_OPTIONS = {"cacertfile", "connection_timeout", "jars", "verify"}
_PREFIX = re.compile(r"[A-Za-z0-9_]{1,40}", re.ASCII)
_USAGE = "write activemq://user:password@host:61616/prefix?jars=FOLDER, or activemq+tls:// for TLS"


@dataclass(frozen=True, slots=True)
class XaSettings:
    """Where the server is. prefix: first word of every address, as of ``stomp://``. jars: a folder
    with those of the server's client, None where the Java VM has them already.
    """

    shown: str
    host: str
    port: int
    prefix: str
    user: str
    password: str = field(repr=False)
    jars: Path | None = None
    tls: bool = False
    verified: bool = True
    cacertfile: str | None = None
    timeout_seconds: int = 5

    @property
    def locator(self) -> str:
        """The URL for the client; logins are not in it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        words = ["useTopologyForLoadBalancing=false"]
        if self.tls:
            words += ["sslEnabled=true", f"verifyHost={str(self.verified).lower()}"]
            words += [] if self.verified else ["trustAll=true"]
        if self.cacertfile:
            words += ["trustStoreType=PEM", f"trustStorePath={quote(self.cacertfile)}"]
        return f"tcp://{host}:{self.port}?{'&'.join(words)}"


def parse(url: str) -> XaSettings:
    """The settings of a URL. Raises ConfigurationError that names the fault, never the secret."""
    shown = redact(url).partition("?")[0]
    try:
        return _parse(url, shown)
    except ValueError as error:
        raise ConfigurationError(f"participant URL {shown}: {error}") from None


def _parse(url: str, shown: str) -> XaSettings:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # its text may quote a part of the password
        raise ValueError("not a valid URL") from None
    if parts.scheme not in ("activemq", "activemq+tls") or parts.fragment or not parts.hostname:
        raise ValueError(_USAGE)
    prefix = unquote(parts.path[1:]) or "duly"
    if not _PREFIX.fullmatch(prefix):
        raise ValueError("the prefix must be 1 to 40 letters, digits and '_'")
    options = options_of(parts.query, _OPTIONS)
    return XaSettings(
        shown=shown,
        host=parts.hostname,
        port=port or 61616,
        prefix=prefix,
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        jars=Path(options["jars"]) if "jars" in options else None,
        tls=parts.scheme == "activemq+tls",
        verified=choice(options, "verify", ("verify_peer", "verify_none")) == "verify_peer",
        cacertfile=options.get("cacertfile"),
        timeout_seconds=whole(options, "connection_timeout", default=5, most=600),
    )
