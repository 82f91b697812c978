"""What ``check`` and ``doctor`` say of a PostgreSQL server."""

from __future__ import annotations

from typing import Any

from duly.ports import Finding, Severity

__all__ = ["inspect_server"]

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


def inspect_server(connection: Any, prefix: str) -> list[Finding]:
    """Findings on durability, role, isolation, sequence cache, long transactions, free connections
    and version.
    """

    def one(sql: str, *values: Any) -> Any:
        row = connection.execute(sql, values).fetchone()
        return row[0] if row else None

    found = [
        Finding("POSTGRES_VERSION", Severity.GREEN, f"PostgreSQL {one('SHOW server_version')}")
    ]
    if int(one("SHOW server_version_num")) < 130000:
        found = [
            Finding(
                "POSTGRES_VERSION", Severity.RED, "older than PostgreSQL 13", "upgrade the server"
            )
        ]
    for name, good, severity, harm in _DURABLE:
        value = one("SELECT current_setting(%s)", name)
        if value not in good:
            found.append(
                Finding("NOT_DURABLE", severity, f"{name} is {value}: {harm}", f"set {name} = on")
            )
    if one("SELECT pg_is_in_recovery()"):
        found.append(
            Finding(
                "DATABASE_READ_ONLY",
                Severity.RED,
                "this server is a read-only replica",
                "use the primary",
            )
        )
    isolation = one("SHOW default_transaction_isolation")
    if isolation != "read committed":
        text = f"isolation is {isolation}: handlers meet serialization failures and are retried"
        found.append(Finding("ISOLATION", Severity.WEAK, text))
    cache = one(
        "SELECT max(seqcache) FROM pg_sequence WHERE seqrelid = to_regclass(%s)",
        f"{prefix}outbox_id_seq",
    )
    if cache is not None and cache != 1:
        text = f"the outbox sequence caches {cache} ids: order per key is lost"
        found.append(
            Finding(
                "SEQUENCE_CACHE",
                Severity.RED,
                text,
                f"ALTER SEQUENCE {prefix}outbox_id_seq CACHE 1",
            )
        )
    oldest = one(
        "SELECT extract(epoch FROM max(clock_timestamp() - xact_start)) FROM pg_stat_activity "
        "WHERE xact_start IS NOT NULL"
    )
    if oldest is not None and oldest > 600:
        text = f"a transaction has been open for {int(oldest)} s: dead rows cannot be removed"
        found.append(
            Finding("LONG_TRANSACTION", Severity.WEAK, text, "end it; see pg_stat_activity")
        )
    room = one(
        "SELECT current_setting('max_connections')::int "
        "- (SELECT count(*) FROM pg_stat_activity)::int"
    )
    if room < 10:
        found.append(
            Finding(
                "FEW_CONNECTIONS",
                Severity.WEAK,
                f"only {room} connections are free",
                "raise max_connections",
            )
        )
    return found
