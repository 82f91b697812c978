"""The log in tables of MySQL or MariaDB, on PyMySQL.

Owns the session: READ COMMITTED (in REPEATABLE READ a read with locks also locks the gaps), strict
mode, the server's clock in UTC, limits for locks and for idle transactions.  Invariant: no call
waits for a silent server longer than ``SILENCE_SECONDS``.  There is nothing like LISTEN here, so it
looks with growing pauses.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from duly.brokers.embedded.places import Server
from duly.brokers.embedded.server import (
    CONNECT_SECONDS,
    IDLE_SECONDS,
    LOCK_SECONDS,
    SILENCE_SECONDS,
    ServerStore,
)
from duly.brokers.embedded.store import features
from duly.brokers.embedded.tables import MYSQL, statements
from duly.errors import BrokerUnavailableError, ConfigurationError, MissingExtraError
from duly.ports import Finding, Severity

__all__ = ["MysqlPlace", "MysqlStore"]

# PyMySQL writes values into the text, where each byte may need two, and MariaDB takes 16 MB of it.
PAYLOAD_BYTES_MAX = 7_000_000
_ENVELOPE_BYTES = 200_000
_PAUSE_SECONDS = (0.005, 0.1)
_TABLES_SECONDS = 30
_NOW = "UNIX_TIMESTAMP(NOW(6))"
_WORDS = {"now": _NOW, "clock": _NOW, "lock": " FOR UPDATE", "greatest": "greatest"}
_SESSION = (
    "SET SESSION sql_mode = 'STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION', time_zone = '+00:00', "
    f"innodb_lock_wait_timeout = {LOCK_SECONDS}, wait_timeout = 60"
    f"/*M!100300 , idle_transaction_timeout = {IDLE_SECONDS} */"
)
_ISOLATION = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED"
_REFUSED = {1044, 1045, 1049, 1130, 1142, 1143, 1227, 1370, 1698, 2026, 2054, 2059, 4151}
_STATEMENT_LOG = 1665
_MISSING = 1146
_ROLLED_BACK = {1020, 1205, 1213, 3101}  # changed, lock timeout, deadlock, refused by the group
_DURABLE = (
    ("innodb_flush_log_at_trx_commit", "1", "the last confirmed messages can be lost"),
    ("innodb_doublewrite", "ON", "a torn page can corrupt the log"),
)


class MysqlPlace:
    """A database of MySQL or MariaDB. Raises MissingExtraError without PyMySQL."""

    own_sender = True

    def __init__(self, server: Server) -> None:
        try:
            import pymysql  # noqa: F401  # only whether it is there
        except ImportError as error:
            raise MissingExtraError("pymysql", "mysql") from error
        self._server = server
        self.name = server.name
        self.lease_seconds = server.lease_seconds
        self.retention_seconds = server.retention_seconds
        self.features = features(durable=True, payload_bytes_max=PAYLOAD_BYTES_MAX)

    def check(self) -> None:
        """Raise ConfigurationError for TLS files that cannot be read."""
        _tls(self._server.options)

    def open(self, *, listening: bool) -> MysqlStore:
        """As ``Place``."""
        store = MysqlStore(self._server)
        try:
            store.prepare()
        except BaseException:
            store.close()
            raise
        return store


class MysqlStore(ServerStore):
    """One connection."""

    pause_seconds = _PAUSE_SECONDS
    begin = "START TRANSACTION"

    def __init__(self, server: Server) -> None:
        import pymysql
        from pymysql.constants import CLIENT

        super().__init__(server, _WORDS)
        self._driver = pymysql
        self._seen: object = None
        self._look_at = 0.0
        try:
            self._raw = pymysql.connect(
                host=server.host,
                port=server.port or 3306,
                user=server.user,
                password=server.password or "",
                database=server.database,
                charset="utf8mb4",
                autocommit=True,
                client_flag=CLIENT.FOUND_ROWS,  # a row that was met counts, changed or not
                connect_timeout=CONNECT_SECONDS,
                read_timeout=SILENCE_SECONDS,
                write_timeout=SILENCE_SECONDS,
                ssl=_tls(server.options),
            )
        except (self._driver.Error, OSError) as error:
            raise self.map_error(error) from None  # its text may repeat what was given
        try:
            with self.reading():
                self.run(_SESSION, None)
                self.run(_ISOLATION, None)
                packet = int(self.run("SELECT @@max_allowed_packet", None)[0][0][0])
        except BaseException:
            self.close()
            raise
        self.payload_bytes_max = min(PAYLOAD_BYTES_MAX, (packet - _ENVELOPE_BYTES) // 2)

    def run(self, text: str, values: Mapping[str, Any] | None) -> tuple[list[Any], int]:
        """As ``ServerStore``."""
        with self._raw.cursor() as cursor:
            cursor.execute(text, values or None)
            rows = list(cursor.fetchall()) if cursor.description is not None else []
            return rows, cursor.rowcount

    def change_all(self, text: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """As ``Rows``."""
        with self._raw.cursor() as cursor:
            cursor.executemany(self.rendered(text), rows)

    def ring(self) -> None:
        """Nothing: nobody can be woken here."""

    def version(self) -> object:
        """How far all sources reach together, and the epoch; asked for at most every 5 ms."""
        now = time.monotonic()
        if now >= self._look_at:
            with self.reading():
                self._seen = self.ask("SELECT (SELECT value FROM {epoch}), SUM(next) FROM {source}")
            self._look_at = time.monotonic() + _PAUSE_SECONDS[0]
        return self._seen

    @property
    def lost(self) -> bool:
        """As ``Store``."""
        return not self._raw.open

    def is_missing(self, error: Exception) -> bool:
        """As ``ServerStore``."""
        return bool(getattr(error, "args", None)) and error.args[0] == _MISSING

    def is_refusal(self, error: Exception) -> bool:
        """As ``ServerStore``."""
        return bool(getattr(error, "args", None)) and error.args[0] in _ROLLED_BACK

    def make_tables(self) -> None:
        """As ``ServerStore``: every CREATE commits, so the row of ``epoch`` comes last."""
        lock = "CONCAT('duly broker ', MD5(DATABASE()))"
        if self.run(f"SELECT GET_LOCK({lock}, {_TABLES_SECONDS})", None)[0][0][0] != 1:
            raise BrokerUnavailableError(self.said("another process is making the tables"))
        try:
            for statement in statements(MYSQL):
                self.run(self.rendered(statement), None)
        finally:
            self.run(f"SELECT RELEASE_LOCK({lock})", None)

    def map_error(self, error: Exception) -> Exception:
        """PyMySQL's exceptions by their number."""
        if not isinstance(error, self._driver.Error | OSError):
            return error
        number = error.args[0] if error.args and isinstance(error.args[0], int) else 0
        text = self.said(f"{error.args[-1] if error.args else 'connection closed'} ({number})")
        if number in _REFUSED:
            return ConfigurationError(text, code="DATABASE_REFUSED")
        if number == _STATEMENT_LOG:
            return ConfigurationError(f"{text}; set binlog_format = ROW", code="BINLOG_FORMAT")
        return BrokerUnavailableError(text)

    def inspect(self) -> list[Finding]:
        """As ``Store``."""
        with self.reading():
            settings = {str(n): str(v) for n, v in self.run("SHOW GLOBAL VARIABLES", None)[0]}
        names = [*(name for name, *_ in _DURABLE), "sync_binlog", "max_allowed_packet", "version"]
        faults = [
            (Severity.WEAK, f"{name} is {settings[name]}: {harm}", f"set {name} = {good}")
            for name, good, harm in _DURABLE
            if settings.get(name, good) != good
        ]
        if settings.get("log_bin") == "ON" and settings.get("sync_binlog") != "1":
            text = "sync_binlog is not 1: the last confirmed messages can be lost"
            faults.append((Severity.WEAK, text, "set sync_binlog = 1"))
        if settings.get("read_only", "OFF") not in ("OFF", "0"):
            faults.append((Severity.RED, "the server is read-only", "use the primary"))
        if settings.get("log_bin") == "ON" and settings.get("binlog_format") == "STATEMENT":
            text = "binlog_format is STATEMENT, which READ COMMITTED cannot be written in"
            faults.append((Severity.RED, text, "set binlog_format = ROW"))
        if self.payload_bytes_max < PAYLOAD_BYTES_MAX:
            text = f"messages above {self.payload_bytes_max} bytes are refused"
            faults.append((Severity.WEAK, text, "set max_allowed_packet = 16M"))
        return [self.verdict(faults, {n: settings[n] for n in names if n in settings})]

    def close(self) -> None:
        """Close the connection; never raises."""
        with suppress(Exception):  # whatever a broken connection says, it is gone
            self._raw.close()


def _tls(options: Mapping[str, str]) -> ssl.SSLContext | None:
    """TLS as the URL says; None lets the driver do without."""
    if not options:
        return None
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca"))
        if "ssl_cert" in options:
            context.load_cert_chain(options["ssl_cert"], options.get("ssl_key"))
    except OSError as error:
        raise ConfigurationError(f"TLS files: {error}") from error
    context.check_hostname = options.get("ssl_verify_identity", "true") != "false"
    return context
