"""From the URL of an embedded broker to the place where its log is kept.

Invariant: no error from here shows a password, and an option that is not known is refused.  Leaves
out what is done there (``file``, ``postgres``, ``mysql``), whose drivers are not imported before
their URL is used.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from duly.brokers.embedded.file import FilePlace
from duly.brokers.embedded.store import LEASE_SECONDS, RETENTION_SECONDS, Place
from duly.errors import ConfigurationError
from duly.kernel.durations import seconds
from duly.kernel.names import check_sql_name
from duly.wire.options import options_of
from duly.wire.urls import redact

__all__ = ["Server", "place_of"]

_OURS = {"lease", "retention"}
_TLS = {
    "postgresql": {"sslmode", "sslrootcert", "sslcert", "sslkey", "target_session_attrs"},
    "mysql": {"ssl_ca", "ssl_cert", "ssl_key", "ssl_verify_identity"},
}
_KINDS = {
    "postgres": "postgresql",
    "postgresql": "postgresql",
    "mysql": "mysql",
    "mariadb": "mysql",
}
_LEASE_SECONDS_MAX = 600.0


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server is. options: those of its driver; prefix: of all our tables there."""

    name: str
    host: str
    port: int | None
    user: str | None
    password: str | None = field(repr=False)
    database: str
    options: dict[str, str]
    prefix: str
    lease_seconds: float
    retention_seconds: float


def place_of(url: str, *, prefix: str) -> Place:
    """The place of a URL. Raises ConfigurationError, MissingExtraError."""
    kind = url.partition(":")[0].lower().partition("+")[2]
    if not kind:
        return FilePlace(_path(url))
    server = _server(url, kind, prefix)
    if _KINDS[kind] == "postgresql":
        from duly.brokers.embedded.postgres import PostgresPlace

        return PostgresPlace(server)
    from duly.brokers.embedded.mysql import MysqlPlace

    return MysqlPlace(server)


def _path(url: str) -> str:
    parts = urlsplit(url)
    path = unquote(parts.path)[1:]
    if (
        parts.scheme != "embedded"
        or parts.netloc
        or parts.query
        or parts.fragment
        or not path
        or "\0" in path
    ):
        raise ConfigurationError(
            f"broker URL {ascii(redact(url))[:200]}: write embedded:///file.db, "
            "embedded:////folder/file.db or embedded:///:memory:; on a server "
            "embedded+postgresql://... or embedded+mysql://..."
        )
    return path


def _server(url: str, kind: str, prefix: str) -> Server:
    shown = redact(url)
    try:
        return _parsed(url, kind, prefix=prefix, shown=shown)
    except (ValueError, ConfigurationError) as error:
        detail = error.detail if isinstance(error, ConfigurationError) else str(error)
        raise ConfigurationError(f"broker URL {ascii(shown)[1:-1][:300]}: {detail}") from None


def _parsed(url: str, kind: str, *, prefix: str, shown: str) -> Server:
    example = "embedded+postgresql://user:password@host/database or embedded+mysql://..."
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # its text may quote the password
        raise ValueError(f"not a valid URL; write {example}") from None
    database = unquote(parts.path[1:])
    whole = parts.hostname and database and "/" not in database and "\0" not in database
    if kind not in _KINDS or not whole or parts.fragment:
        raise ValueError(f"write {example}")
    options = options_of(parts.query, _OURS | _TLS[_KINDS[kind]])
    lease = seconds(options.pop("lease", LEASE_SECONDS), "lease")
    if not 0.5 <= lease <= _LEASE_SECONDS_MAX:
        raise ValueError(f"lease must be 500ms to {_LEASE_SECONDS_MAX:.0f}s")
    return Server(
        name=shown,
        host=parts.hostname or "",
        port=port,
        user=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        database=database,
        options=options,
        prefix=check_sql_name(f"{prefix}broker_", "table prefix"),
        lease_seconds=lease,
        retention_seconds=seconds(options.pop("retention", RETENTION_SECONDS), "retention"),
    )
