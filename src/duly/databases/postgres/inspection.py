"""What ``check`` and ``doctor`` say of a PostgreSQL server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from duly.ports import Finding, Severity

__all__ = ["inspect_server"]

OLDEST_VERSION = 130_000
LONG_TRANSACTION_SECONDS = 600
FEW_CONNECTIONS = 10
_DURABLE = (
    ("fsync", {"on"}, Severity.RED, "committed data can be lost when the machine stops"),
    ("full_page_writes", {"on"}, Severity.RED, "a torn page can corrupt the database"),
    (
        "synchronous_commit",
        {"on", "remote_apply", "remote_write", "local"},
        Severity.WEAK,
        "the last commits can be lost when the server stops",
    ),
)
_OLDEST = (
    "SELECT extract(epoch FROM max(clock_timestamp() - xact_start)) FROM pg_stat_activity "
    "WHERE xact_start IS NOT NULL"
)
_ROOM = (
    "SELECT current_setting('max_connections')::int - (SELECT count(*) FROM pg_stat_activity)::int"
)
Ask = Callable[..., Any]


def inspect_server(connection: Any, prefix: str) -> list[Finding]:
    """Findings on version, durability, role, isolation, sequence cache, old transactions, room."""

    def ask(sql: str, *values: Any) -> Any:
        row = connection.execute(sql, values).fetchone()
        return row[0] if row else None

    return [*_server(ask), *_durability(ask), *_tables(ask, prefix), *_load(ask)]


def _server(ask: Ask) -> Iterator[Finding]:
    name = f"PostgreSQL {ask('SHOW server_version')}"
    if int(ask("SHOW server_version_num")) >= OLDEST_VERSION:
        yield Finding("POSTGRES_VERSION", Severity.GREEN, name)
    else:
        yield Finding("POSTGRES_VERSION", Severity.RED, f"{name} is older than 13", "upgrade it")
    if ask("SELECT pg_is_in_recovery()") or ask("SHOW transaction_read_only") == "on":
        text = "this server or role is read-only"
        yield Finding(
            "DATABASE_READ_ONLY", Severity.RED, text, "use the primary, with write rights"
        )
    isolation = ask("SHOW default_transaction_isolation")
    if isolation != "read committed":
        text = f"isolation is {isolation}: handlers meet serialization failures and are retried"
        yield Finding("ISOLATION", Severity.WEAK, text)


def _durability(ask: Ask) -> Iterator[Finding]:
    for name, good, severity, harm in _DURABLE:
        value = ask("SELECT current_setting(%s)", name)
        if value not in good:
            yield Finding("NOT_DURABLE", severity, f"{name} is {value}: {harm}", f"set {name} = on")


def _tables(ask: Ask, prefix: str) -> Iterator[Finding]:
    sequence = f"{prefix}outbox_id_seq"
    cache = ask("SELECT max(seqcache) FROM pg_sequence WHERE seqrelid = to_regclass(%s)", sequence)
    if cache is not None and cache != 1:
        text = f"the outbox sequence caches {cache} ids: order per key is lost"
        yield Finding("SEQUENCE_CACHE", Severity.RED, text, f"ALTER SEQUENCE {sequence} CACHE 1")


def _load(ask: Ask) -> Iterator[Finding]:
    oldest = ask(_OLDEST)
    if oldest is not None and oldest > LONG_TRANSACTION_SECONDS:
        text = f"a transaction has been open for {int(oldest)} s: dead rows cannot be removed"
        yield Finding("LONG_TRANSACTION", Severity.WEAK, text, "end it; see pg_stat_activity")
    room = ask(_ROOM)
    if room < FEW_CONNECTIONS:
        text = f"only {room} connections are free"
        yield Finding("FEW_CONNECTIONS", Severity.WEAK, text, "raise max_connections")
