"""What ``check`` and ``doctor`` say of a MySQL or MariaDB server."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from duly.ports import Finding, Severity

__all__ = ["inspect_server"]

OLDEST = {"MariaDB": (10, 6), "MySQL": (8, 0, 13)}
LONG_TRANSACTION_SECONDS = 600
FEW_CONNECTIONS = 10
PACKET_BYTES = 4 * 1024 * 1024
_DURABLE = (
    ("innodb_flush_log_at_trx_commit", "1", "the last commits can be lost when the machine stops"),
    (
        "sync_binlog",
        "1",
        "after a crash replicas and readers of the log can miss commits",
    ),
    ("innodb_doublewrite", "ON", "a torn page can corrupt the database"),
)
_OLDEST_TRANSACTION = (
    "SELECT MAX(TIMESTAMPDIFF(SECOND, trx_started, NOW())) FROM information_schema.innodb_trx"
)
_NOT_INNODB = (
    "SELECT GROUP_CONCAT(table_name ORDER BY table_name) FROM information_schema.tables "
    "WHERE table_schema = DATABASE() AND table_type = 'BASE TABLE' AND engine <> 'InnoDB' "
    "AND (LEFT(table_name, CHAR_LENGTH(%s)) = %s) = %s"
)
_MAY_LOOK = (
    "SELECT COUNT(*) FROM information_schema.user_privileges WHERE privilege_type = 'PROCESS' "
    "AND REPLACE(grantee, CHAR(39), '') = CURRENT_USER()"
)
Ask = Callable[..., Any]


def inspect_server(connection: Any, prefix: str) -> list[Finding]:
    """Findings on version, durability, replica, log format, engines, old transactions, room."""

    def ask(sql: str, *values: Any) -> Any:
        with connection.cursor() as cursor:
            cursor.execute(sql, values or None)
            row = cursor.fetchone()
            return row[0] if row else None

    with connection.cursor() as cursor:
        cursor.execute("SHOW GLOBAL VARIABLES")
        settings = {str(name): str(value) for name, value in cursor.fetchall()}
    return [
        *_server(settings),
        *_durability(settings),
        *_engines(ask, settings, prefix),
        *_load(ask, settings),
    ]


def _server(settings: dict[str, str]) -> Iterator[Finding]:
    version = settings["version"]
    kind = "MariaDB" if "MariaDB" in version else "MySQL"
    numbers = tuple(map(int, re.findall(r"\d+", version)[:3]))
    wanted = OLDEST[kind]
    if numbers >= wanted:
        yield Finding("MYSQL_VERSION", Severity.GREEN, f"{kind} {version}")
    else:
        oldest = ".".join(map(str, wanted))
        text = f"{kind} {version} is older than {oldest}"
        yield Finding("MYSQL_VERSION", Severity.RED, text, "upgrade it")
    if settings.get("read_only", "OFF") not in ("OFF", "0"):
        fix = "use the primary, with write rights"
        yield Finding("DATABASE_READ_ONLY", Severity.RED, "this server is read-only", fix)
    if settings.get("wsrep_on") == "ON":
        text = "a Galera cluster: rows locked on one node are free on the others"
        fix = "let all writers use one node, else messages of one key can change places"
        yield Finding("GALERA", Severity.WEAK, text, fix)


def _durability(settings: dict[str, str]) -> Iterator[Finding]:
    for name, good, harm in _DURABLE:
        value = settings.get(name, good)
        if name == "sync_binlog" and settings.get("log_bin") != "ON":
            continue
        if value != good and not (name == "innodb_doublewrite" and value != "OFF"):
            text = f"{name} is {value}: {harm}"
            yield Finding("NOT_DURABLE", Severity.WEAK, text, f"set {name} = {good}")
    if settings.get("log_bin") == "ON" and settings.get("binlog_format") == "STATEMENT":
        text = "binlog_format is STATEMENT, which READ COMMITTED cannot be written in"
        yield Finding("BINLOG_FORMAT", Severity.RED, text, "set binlog_format = ROW")
    packet = int(settings.get("max_allowed_packet", PACKET_BYTES))
    if packet < PACKET_BYTES:
        text = f"max_allowed_packet is {packet}: a large message cannot be stored"
        yield Finding("SMALL_PACKETS", Severity.WEAK, text, "set max_allowed_packet = 16M")


def _engines(ask: Ask, settings: dict[str, str], prefix: str) -> Iterator[Finding]:
    ours = ask(_NOT_INNODB, prefix, prefix, 1)
    if ours:
        text = f"{ours}: not InnoDB, so a rollback does not undo what is written there"
        yield Finding("NOT_INNODB", Severity.RED, text, "ALTER TABLE ... ENGINE = InnoDB")
    theirs = ask(_NOT_INNODB, prefix, prefix, 0)
    if theirs:
        text = f"{theirs[:300]}: not InnoDB; what is written there stays when the message does not"
        yield Finding("TABLES_NOT_INNODB", Severity.WEAK, text, "ALTER TABLE ... ENGINE = InnoDB")
    engine = settings.get("default_storage_engine", "InnoDB")
    if engine != "InnoDB":
        text = f"new tables are made as {engine}, which knows no rollback"
        fix = "set default_storage_engine = InnoDB"
        yield Finding("DEFAULT_ENGINE", Severity.WEAK, text, fix)


def _load(ask: Ask, settings: dict[str, str]) -> Iterator[Finding]:
    if ask(_MAY_LOOK):
        oldest = ask(_OLDEST_TRANSACTION)
        if oldest is not None and oldest > LONG_TRANSACTION_SECONDS:
            text = f"a transaction has been open for {int(oldest)} s: dead rows cannot be removed"
            fix = "end it; see information_schema.innodb_trx"
            yield Finding("LONG_TRANSACTION", Severity.WEAK, text, fix)
    # Where the count stands differs: MySQL keeps it in performance_schema.
    threads = ask("SELECT COUNT(*) FROM information_schema.processlist")
    room = int(settings["max_connections"]) - int(threads)
    if room < FEW_CONNECTIONS:
        text = f"only {room} connections are free"
        yield Finding("FEW_CONNECTIONS", Severity.WEAK, text, "raise max_connections")
