"""The log in tables of PostgreSQL, on psycopg 3.

Owns the session: READ COMMITTED, statements planned by index (a table that was empty when its
statistics were taken looks like one page), limits for locks and for idle transactions, and LISTEN.
Invariant: no call waits for a silent server longer than ``SILENCE_SECONDS``; libpq alone would wait
for as long as the server's machine acknowledges bytes.
"""

from __future__ import annotations

import select
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
from duly.brokers.embedded.tables import POSTGRES, statements
from duly.errors import BrokerUnavailableError, ConfigurationError, MissingExtraError
from duly.ports import Finding, Severity

__all__ = ["PostgresPlace", "PostgresStore"]

PAYLOAD_BYTES_MAX = 20_000_000  # well within the silence, on a slow disk too
LOOK_SECONDS = 1.0  # the bound when a notification is lost
_NOW = "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"
_WORDS = {"now": _NOW, "clock": _NOW, "lock": " FOR UPDATE", "greatest": "greatest"}
_REFUSED = {"28000", "28P01", "3D000", "42501"}
_REFUSED_WORDS = ("password authentication failed", "no pg_hba.conf entry", "does not exist")
_MISSING = {"42P01", "3F000"}
_POOLER = "this is a pooler: name the server itself"
_SESSION = {
    "lock_timeout": f"{LOCK_SECONDS}s",
    "idle_in_transaction_session_timeout": f"{IDLE_SECONDS}s",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "jit": "off",  # a plan that is forbidden costs so much that it would be compiled
}
_DURABLE = (
    ("fsync", ("on",), Severity.RED, "committed messages can be lost when the machine stops"),
    ("full_page_writes", ("on",), Severity.RED, "a torn page can corrupt the log"),
    (
        "synchronous_commit",
        ("on", "remote_apply", "remote_write", "local"),
        Severity.WEAK,
        "the last confirmed messages can be lost when the server stops",
    ),
)


class PostgresPlace:
    """A database of PostgreSQL. Raises MissingExtraError without psycopg."""

    own_sender = True

    def __init__(self, server: Server) -> None:
        try:
            import psycopg
        except ImportError as error:
            raise MissingExtraError("psycopg", "postgres") from error
        self._server = server
        self._class = _bounded(psycopg)
        self.name = server.name
        self.lease_seconds = server.lease_seconds
        self.retention_seconds = server.retention_seconds
        self.features = features(durable=True, payload_bytes_max=PAYLOAD_BYTES_MAX)

    def check(self) -> None:
        """Nothing is known before the server answers."""

    def open(self, *, listening: bool) -> PostgresStore:
        """As ``Place``."""
        store = PostgresStore(self._server, self._class)
        try:
            store.prepare()
            if listening:
                store.listen()
        except BaseException:
            store.close()
            raise
        return store


class PostgresStore(ServerStore):
    """One connection. connection: psycopg's class, bounded."""

    payload_bytes_max = PAYLOAD_BYTES_MAX
    pause_seconds = (LOOK_SECONDS, LOOK_SECONDS)
    begin = "BEGIN ISOLATION LEVEL READ COMMITTED"

    def __init__(self, server: Server, connection: Any) -> None:
        import psycopg

        super().__init__(server, _WORDS)
        self._driver = psycopg
        self._channel = f"{server.prefix}news"
        self._heard = 0
        self._listens = False
        given = {"host": server.host, "port": server.port, "user": server.user}
        given |= {"password": server.password, "dbname": server.database, **server.options}
        try:
            self._raw = connection.connect(
                autocommit=True,
                application_name="duly broker",
                connect_timeout=CONNECT_SECONDS,
                keepalives_idle=10,
                keepalives_interval=3,
                keepalives_count=3,
                tcp_user_timeout=15_000,
                options=" ".join(f"-c {name}={value}" for name, value in _SESSION.items()),
                **{name: value for name, value in given.items() if value is not None},
            )
        except psycopg.Error as error:
            raise self.map_error(error) from None  # its text may repeat what was given

    def prepare(self) -> None:
        """As ``ServerStore``, after a look whether this session is ours alone."""
        with self.reading():
            kept = self.run("SELECT current_setting('lock_timeout')", None)[0][0][0]
        if kept != _SESSION["lock_timeout"]:
            raise ConfigurationError(self.said(f"the session's settings are gone; {_POOLER}"))
        super().prepare()

    def run(self, text: str, values: Mapping[str, Any] | None) -> tuple[list[Any], int]:
        """As ``ServerStore``."""
        with self._raw.cursor(binary=True) as cursor:
            cursor.execute(text, values or None)
            rows = cursor.fetchall() if cursor.description is not None else []
            return rows, cursor.rowcount

    def change_all(self, text: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """As ``Rows``."""
        with self._raw.cursor() as cursor:
            cursor.executemany(self.rendered(text), rows)

    def ring(self) -> None:
        """As ``Rows``. Behind a publish, not in it: notifying transactions of a database commit one
        after the other, each waiting for its disk.
        """
        self.run(f'NOTIFY "{self._channel}"', None)

    def listen(self) -> None:
        """Hear of news from now on."""
        with self.reading():
            self._raw.add_notify_handler(self._hear)
            self.run(f'LISTEN "{self._channel}"', None)
        self._listens = True

    def _hear(self, _notify: object) -> None:
        self._heard += 1

    def version(self) -> object:
        """How often it was notified; and a tick, in case that a notification got lost."""
        with self.reading():
            self._raw.pgconn.consume_input()
            while self._raw.pgconn.notifies() is not None:
                self._heard += 1
        return self._heard, int(time.monotonic() / LOOK_SECONDS)

    @property
    def descriptor(self) -> int | None:
        """As ``Store``."""
        return int(self._raw.fileno()) if self._listens and not self.lost else None

    @property
    def lost(self) -> bool:
        """As ``Store``."""
        return bool(self._raw.closed or self._raw.broken)

    def is_missing(self, error: Exception) -> bool:
        """As ``ServerStore``."""
        return getattr(error, "sqlstate", None) in _MISSING

    def is_refusal(self, error: Exception) -> bool:
        """As ``ServerStore``."""
        return bool(getattr(error, "sqlstate", None))

    def make_tables(self) -> None:
        """As ``ServerStore``: one transaction."""
        with self._raw.transaction():
            self.run("SELECT pg_advisory_xact_lock(hashtext('duly broker tables'))", None)
            for statement in statements(POSTGRES):
                self.run(self.rendered(statement), None)

    def map_error(self, error: Exception) -> Exception:
        """psycopg's exceptions by SQLSTATE; a connection that was not made has none."""
        if not isinstance(error, self._driver.Error):
            return error
        state = error.sqlstate or ""
        lines = str(error).strip().splitlines() or [type(error).__name__]
        text = self.said(f"{lines[0]} ({state})" if state else lines[0])
        unmade = not state and any(words in str(error) for words in _REFUSED_WORDS)
        if state in _REFUSED or unmade:
            return ConfigurationError(text, code="DATABASE_REFUSED")
        if "unsupported startup parameter" in text:
            return ConfigurationError(f"{text}; {_POOLER}")
        return BrokerUnavailableError(text)

    def inspect(self) -> list[Finding]:
        """As ``Store``."""
        names = [name for name, *_ in _DURABLE]
        with self.reading():
            rows = self.run(
                "SELECT name, setting FROM pg_settings WHERE name = ANY(%(names)s)",
                {"names": [*names, "server_version"]},
            )[0]
            replica = self.run("SELECT pg_is_in_recovery()", None)[0][0][0]
        facts = {str(name): str(value) for name, value in rows}
        faults = [
            (severity, f"{name} is {facts[name]}: {harm}", f"set {name} = on")
            for name, good, severity, harm in _DURABLE
            if facts[name] not in good
        ]
        if replica:
            faults.append((Severity.RED, "the server is a replica", "use the primary"))
        return [self.verdict(faults, facts)]

    def close(self) -> None:
        """Close the connection; never raises."""
        with suppress(Exception):  # whatever a broken connection says, it is gone
            self._raw.close()


def _bounded(driver: Any) -> Any:
    """psycopg's connection, which gives up on a server that says nothing."""

    class Bounded(driver.Connection):  # type: ignore[misc]
        def wait(self, gen: Any, *_: Any, **__: Any) -> Any:
            descriptor = self.pgconn.socket  # once: a connection that breaks has none any more
            try:
                wanted = next(gen)
                while True:
                    ready = _ready(descriptor, wanted)
                    if not ready:
                        silence = driver.OperationalError(f"no answer in {SILENCE_SECONDS:.0f} s")
                        self.close()
                        gen.throw(silence)  # it cleans up behind itself
                        raise silence
                    wanted = gen.send(ready)
            except StopIteration as done:
                return done.value

    return Bounded


def _ready(descriptor: int, wanted: int) -> int:
    """Whether a socket can be read (1) or written (2), of what is wanted; 0 after the silence."""
    events = (select.POLLIN if wanted & 1 else 0) | (select.POLLOUT if wanted & 2 else 0)
    poll = select.poll()
    poll.register(descriptor, events)
    found = poll.poll(SILENCE_SECONDS * 1000)
    if not found:
        return 0
    happened = found[0][1]
    if happened & ~(select.POLLIN | select.POLLOUT):  # broken: libpq finds out how
        return wanted
    return (1 if happened & select.POLLIN else 0) | (2 if happened & select.POLLOUT else 0)
