"""PostgreSQL on psycopg 3.

Owns our private connections: autocommit, statements planned by index (``enable_seqscan`` off: a
queue table that was empty when the statistics were taken looks like one page) and never compiled
(``jit`` off: by the penalty for a scan that no index spares, a statement of a millisecond looks
like hours of work, and compiling it takes a hundred times as long as running it), lock and idle
timeouts so that a frozen process cannot block its successor, and LISTEN for the wake-up.  Behind a
pooler in transaction mode no session is ours: these settings are then made anew in each
transaction, nothing is prepared on the server, and LISTEN has a connection that goes around the
pooler.  Errors are told apart by SQLSTATE, here and nowhere else.
"""

from __future__ import annotations

import re
import select
import socket
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, TypeVar

from duly.branches import BranchVerb, Finished
from duly.databases.postgres import arrays, prepared
from duly.databases.postgres.inspection import inspect_server
from duly.databases.statements import (
    Sql,
    drive,
    load_migrations,
    load_routine,
    load_statements,
    single,
)
from duly.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    MissingExtraError,
    OutcomeUnknownError,
    PermanentError,
    SchemaError,
    TransactionConflictError,
)
from duly.kernel.names import check_name
from duly.ports import Connection, Finding, Result, Statement, Steps

__all__ = ["PostgresConnection", "PostgresDatabase"]

T = TypeVar("T")
Call = tuple[str, Any, bool]
_PACKAGE = "duly.databases.postgres"
_NO_TRANSACTION = "25P01"
_CONFLICTS = {"40001", "40P01", "55P03", "55006"}
_REFUSED = {"28000", "28P01", "3D000", "42501"}
_UNAVAILABLE = ("08", "57", "53")
_BY_INDEX = {"enable_seqscan": "off", "enable_bitmapscan": "off", "jit": "off"}
# A connection that was not made has no SQLSTATE; libpq keeps only the server's text.
_REFUSED_TEXT = re.compile(
    "password authentication failed|no pg_hba.conf entry|is not permitted to log in|"
    '(?:database|role) ".*" does not exist|permission denied for database'
)


class PostgresDatabase:
    """A PostgreSQL database.

    url: ``postgresql://user:password@host/database``. listen_url: a direct connection for LISTEN
    where ``url`` goes through a pooler in transaction mode. Raises MissingExtraError without
    psycopg.
    """

    dialect = "postgres"
    notifies = True

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "duly_",
        lock_timeout_seconds: float = 5.0,
        idle_timeout_seconds: float = 300.0,
        connect_timeout_seconds: float = 5.0,
        listen_url: str | None = None,
        engine: Any = None,
        async_engine: Any = None,
    ) -> None:
        try:
            import psycopg
        except ImportError as error:
            raise MissingExtraError("psycopg", "postgres") from error
        self._driver = psycopg
        arrays.register()
        self.url = _plain(url)
        self.listen_url = _plain(listen_url) if listen_url else None
        self._prefix = prefix
        self._sql = load_statements(_PACKAGE, prefix=prefix, group_marker="%(group)s")
        self._namespace = zlib.crc32(f"duly:{prefix}".encode()) - 2**31
        self._timeouts = (lock_timeout_seconds, idle_timeout_seconds, connect_timeout_seconds)
        self.channel = f"{prefix}wake"
        self._engine, self._async_engine = engine, async_engine
        self._owned: list[Any] = []
        self._identity: tuple[Any, ...] | None = None

    def connect(self) -> PostgresConnection:
        """Open a private connection. Raises DatabaseUnavailableError, ConfigurationError."""
        return PostgresConnection(self, self._open(self.url))

    @property
    def pooled(self) -> bool:
        """Whether ``url`` is a pooler in transaction mode: then there is a ``listen_url``."""
        return self.listen_url is not None

    @property
    def begin(self) -> str:
        """What begins a transaction of ours."""
        if not self.pooled:
            return "BEGIN"
        settings = {**self._timeout_settings(), **_BY_INDEX}
        return "; ".join(["BEGIN", *(f"SET LOCAL {name} = {settings[name]}" for name in settings)])

    def _open(self, url: str) -> Any:
        try:
            raw = self._driver.connect(
                url,
                autocommit=True,
                keepalives_idle=10,
                keepalives_interval=3,
                keepalives_count=3,
                tcp_user_timeout=15_000,
                **self._arguments("duly", url, settings=_BY_INDEX),
            )
        except self._driver.Error as error:
            raise self.map_error(error) from error
        if raw.info.parameter_status("server_encoding") == "SQL_ASCII":
            text = "is in SQL_ASCII: it does not know what its text means. Make one in UTF8"
            refusal = ConfigurationError(f"{raw.info.dbname} {text}", code="DATABASE_ENCODING")
            raw.close()
            raise refusal
        return raw

    def engine(self) -> Any:
        """The sync Engine for handlers: the user's own, or one made for this URL."""
        if self._engine is None:
            from sqlalchemy import create_engine

            self._engine = create_engine(
                _alchemy(self.url), connect_args=self._handler_arguments(), pool_size=32
            )
            self._owned.append(self._engine)
        return self._engine

    def async_engine(self) -> Any:
        """The AsyncEngine for async handlers: the user's own, or one made for this URL."""
        if self._async_engine is None:
            from sqlalchemy.ext.asyncio import create_async_engine

            arguments = self._handler_arguments()
            self._async_engine = create_async_engine(
                _alchemy(self.url), connect_args=arguments, pool_size=32
            )
            self._owned.append(self._async_engine.sync_engine)
        return self._async_engine

    def _handler_arguments(self) -> dict[str, Any]:
        return self._arguments("duly handler", self.url)

    def _arguments(
        self, name: str, url: str, *, settings: Mapping[str, Any] = {}
    ) -> dict[str, Any]:
        wait = max(2, int(self._timeouts[2]))
        arguments = {"application_name": name, "connect_timeout": wait}
        if self.pooled and url == self.url:
            return {**arguments, "prepare_threshold": None}
        settings = {**self._timeout_settings(), **settings}
        return {**arguments, "options": " ".join(f"-c {n}={settings[n]}" for n in settings)}

    def _timeout_settings(self) -> dict[str, Any]:
        lock, idle, _ = (int(seconds * 1000) for seconds in self._timeouts)
        return {"lock_timeout": lock, "idle_in_transaction_session_timeout": idle}

    def turn(self) -> AbstractContextManager[None]:
        """Nothing to wait for: writers do not exclude each other."""
        return nullcontext()

    def prepare(self, statement: Statement) -> Sequence[Call]:
        """The driver calls of a statement; ``outbox.insert`` picks its locking form by whether any
        row has a key.
        """
        if statement.name == "outbox.insert":
            found = self._insert(statement.many or [], last=statement.params.get("last", True))
            if statement.params.get("prepared"):
                return [*found[:-1], (prepared.quiet(found[-1][0]), *found[-1][1:])]
            return found
        if statement.name.startswith("branch."):
            return prepared.calls(statement)
        if self.pooled and statement.name in ("inbox.deadline", "inbox.guard"):
            return self._handler_settings(statement.name)
        if statement.name == "lease.horizon":
            statement = Statement(statement.name, {"namespace": self._namespace % 2**32})
        sql = self._sql[statement.name]
        if statement.many is None:
            params = statement.params
            if "busy" in params:  # thousands of ids, at every read
                params = {**params, "busy": arrays.Numbers(params["busy"])}
            return [(text, params, False) for text in sql.texts]
        if sql.arrays:
            return [(text, arrays.columns(statement.many), False) for text in sql.texts]
        return [(text, statement.many, True) for text in sql.texts]

    def _handler_settings(self, name: str) -> Sequence[Call]:
        """Behind a pooler a handler's limits are made where its transaction begins: a session's
        setting would stay with the server for whoever comes next.
        """
        if name == "inbox.deadline":
            return [("SELECT 1", None, False)]
        limit = int(self._timeouts[1] * 1000)
        names = ("lock_timeout", "idle_in_transaction_session_timeout")
        settings = "".join(f"SET LOCAL {name} = {limit}; " for name in names)
        return [(settings + self._text("inbox.guard"), None, False)]

    def begin_guarded(self, driver: Any) -> bool:
        """As ``GuardsAtOnce``, for psycopg's plain connections with the settings of the server.

        By libpq's own call, not the cursor's: two commands in one text, and a third of the time.
        """
        if type(driver) is not self._driver.Connection or driver.autocommit:
            return False
        settings = (driver.isolation_level, driver.read_only, driver.deferrable)
        idle = driver.pgconn.transaction_status == self._driver.pq.TransactionStatus.IDLE
        if settings != (None, None, None) or not idle:
            return False
        (guard, _, _), *_ = self.prepare(Statement("inbox.guard"))
        if error := self._say(driver, f"BEGIN; {guard}"):
            raise error
        return True

    def commit_guarded(self, driver: Any) -> Exception | None:
        """As ``GuardsAtOnce``."""
        if driver.closed:
            raise self._driver.OperationalError("the connection is closed")
        error: Exception | None = self._say(driver, f"{self._text('inbox.unguard')}; COMMIT")
        in_error = driver.info.transaction_status is self._driver.pq.TransactionStatus.INERROR
        if error is not None and (in_error or getattr(error, "sqlstate", "") == _NO_TRANSACTION):
            raise error
        return error

    def _say(self, driver: Any, text: str) -> Any:  # psycopg.Error | None
        """Run commands without values in one round trip; the error of the first that fails."""
        status, field = self._driver.pq.ExecStatus, self._driver.pq.DiagnosticField
        try:
            with driver.lock:
                result = driver.pgconn.exec_(text.encode())
        except self._driver.OperationalError as lost:
            return lost
        if result.status in (status.COMMAND_OK, status.TUPLES_OK):
            return None
        if result.error_field(field.SQLSTATE) is None:  # libpq's own: the connection is lost
            return self._driver.OperationalError(result.error_message.decode(errors="replace"))
        return self._driver.errors.error_from_result(result)

    # --- branches of global transactions, as ``PreparesTransactions`` -----------------------------
    def branch_words(self, verb: BranchVerb, name: str) -> Sequence[str]:
        """What is said on the connection of a branch."""
        return prepared.words(verb, name)

    def branch_mark(self, name: str) -> str:
        """The statement before the preparation."""
        return prepared.mark(name)

    def prepared(self, connection: Connection) -> list[str]:
        """The prepared branches of this database."""
        return prepared.prepared(connection)

    def finish(self, connection: Connection, name: str, *, commit: bool) -> Finished:
        """End a prepared branch."""
        return prepared.finish(connection, name, commit=commit)

    def fate(self, connection: Connection, mark: str) -> bool | None:
        """How a marked branch ended."""
        return prepared.fate(connection, mark)

    def inspect_prepared(self) -> list[Finding]:
        """Whether this server prepares transactions, and for how many it has room."""
        with self._open(self.url) as connection:
            return prepared.inspect(connection)

    def _insert(self, rows: Sequence[Any], *, last: bool) -> Sequence[Call]:
        stripes = sorted({row["stripe"] for row in rows if row["stripe"] is not None})
        if not stripes and len(rows) == 1:
            return [(self._text("outbox.insert_one"), rows[0], False)]
        locking = {
            "namespace": self._namespace,
            "lock_timeout": f"{int(self._timeouts[0] * 1000)}ms",
            "last": last,
        }
        if len(rows) == 1:
            one = {**rows[0], **locking}
            return [(self._text("outbox.insert_one_keyed"), one, False)]
        values: dict[str, Any] = {**arrays.columns(rows)}
        del values["stripe"]
        if not stripes:
            return [(self._text("outbox.insert_plain"), values, False)]
        values |= {"stripes": stripes, **locking}
        return [(self._text("outbox.insert_keyed"), values, False)]

    def _text(self, name: str) -> str:
        found: Sql = self._sql[name]
        return found.texts[0]

    def map_error(self, error: Exception) -> Exception:
        """psycopg's exceptions by SQLSTATE; a lost connection has none."""
        if not isinstance(error, self._driver.Error):
            return error
        state = error.sqlstate or ""
        text = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        if state in _CONFLICTS:
            return TransactionConflictError(text)
        if state in _REFUSED or (not state and _REFUSED_TEXT.search(str(error))):
            return ConfigurationError(text, code="DATABASE_REFUSED")
        if state in ("42P01", "42703", "42883", "3F000"):
            return SchemaError(text)
        if not state and "unsupported startup parameter" in text:
            hint = "this is a pooler: give listen_url, a direct connection, too"
            return ConfigurationError(f"{text}; {hint}", code="POOLER_WITHOUT_LISTEN_URL")
        if state == "25006":
            return ConfigurationError(text, code="DATABASE_READ_ONLY")
        if state.startswith(_UNAVAILABLE) or (
            not state and isinstance(error, self._driver.OperationalError)
        ):
            return DatabaseUnavailableError(text)
        if isinstance(error, self._driver.InterfaceError):
            return DatabaseUnavailableError(text)
        return PermanentError(text, code="DATABASE_ERROR")

    def create(self) -> Steps[None]:
        """Nothing: here tables are made by ``duly db upgrade`` only."""
        yield from ()

    def migrations(self) -> list[tuple[int, str, str]]:
        """(version, name, SQL) of every migration, in order."""
        return load_migrations(_PACKAGE, prefix=self._prefix)

    def publish_routine(self, app: str) -> str:
        """As ``PublishesInSql``: a function; its name has the tables' prefix."""
        check_name(app, "app")
        return load_routine(_PACKAGE, prefix=self._prefix, app=app, namespace=self._namespace)

    def admits(self, connection: Any, *, managed: bool) -> Steps[None]:
        """Raise ConfigurationError (WRONG_DATABASE) unless driver, cluster, database and schema are
        those of the App, and for a read-only replica.
        """
        if not isinstance(connection, self._driver.Connection | self._driver.AsyncConnection):
            kind = f"{type(connection).__module__}.{type(connection).__qualname__}"
            raise ConfigurationError(f"{kind} is not psycopg 3", code="WRONG_DATABASE")
        theirs = (yield Statement("meta.identity")).rows[0]
        if self._identity is None:
            own = self.connect()
            try:
                self._identity = own.ask(Statement("meta.identity")).rows[0]
            finally:
                own.close()
        if theirs[-1]:
            raise ConfigurationError("this server is a read-only replica", code="WRONG_DATABASE")
        if tuple(theirs[:-1]) != tuple(self._identity[:-1]):
            raise ConfigurationError(
                f"this is database {theirs[1]}, schema {theirs[2]}; the App has another",
                code="WRONG_DATABASE",
            )

    def inspect(self) -> list[Finding]:
        """Durability settings, rights, sequence cache, version, for ``check`` and ``doctor``."""
        connection = self._open(self.url)
        try:
            return inspect_server(connection, self._prefix)
        finally:
            connection.close()

    def close(self) -> None:
        """Dispose of the engines that this object made."""
        for engine in self._owned:
            engine.dispose()
        self._owned.clear()


class PostgresConnection:
    """One connection of ours, used by one thread at a time."""

    def __init__(self, database: PostgresDatabase, raw: Any) -> None:
        self._database = database
        self._raw = raw
        self._listener: Any = None
        self._bell = socket.socketpair()
        for end in self._bell:
            end.setblocking(False)

    def run(self, steps: Steps[T]) -> T:
        """Drive ``steps`` in one READ COMMITTED transaction and commit it."""
        committing = False
        try:
            self._raw.execute(self._database.begin)
            answer = drive(steps, self._call)
            committing = True
            self._raw.execute("COMMIT")
        except BaseException as error:
            lost = self._rollback()
            if committing and lost:
                raise OutcomeUnknownError("the connection was lost during COMMIT") from error
            raise (
                self._database.map_error(error) if isinstance(error, Exception) else error
            ) from error
        return answer

    def ask(self, statement: Statement) -> Result:
        """Run one statement by itself; several texts of one name run in one transaction."""
        calls = self._database.prepare(statement)
        alone = statement.name.startswith("branch.")  # a prepared one is ended outside of others
        if (self._database.pooled and not alone) or len(calls) > 1 or calls[0][2]:
            return self.run(single(statement))
        try:
            return self._execute(calls[0])
        except Exception as error:
            raise self._database.map_error(error) from error

    def script(self, text: str) -> None:
        """Run a migration's text in one transaction that no other migration runs beside."""
        try:
            with self._raw.transaction():
                self._raw.execute("SET LOCAL lock_timeout = '30s'")
                self._raw.execute("SELECT pg_advisory_xact_lock(hashtext('duly migrations'))")
                self._raw.execute(text)
        except Exception as error:
            raise self._database.map_error(error) from error

    def wait(self, timeout_seconds: float) -> bool:
        """Until a flush notified, ``wake`` was called, or time is up."""
        end = time.monotonic() + timeout_seconds
        try:
            listener = self._listening()
            while True:
                if self._notified(listener):
                    return True
                left = end - time.monotonic()
                if left <= 0:
                    return False
                ready, _, _ = select.select([listener.fileno(), self._bell[0]], [], [], left)
                if self._bell[0] in ready:
                    self._bell[0].recv(4096)
                    return True
                if ready:
                    listener.pgconn.consume_input()
        except Exception as error:
            raise self._database.map_error(error) from error

    def wake(self) -> None:
        """End a ``wait`` early, from any thread."""
        with suppress(OSError):  # full: it is already ringing; closed: nobody waits
            self._bell[1].send(b"!")

    def close(self) -> None:
        """Close the connection; never raises."""
        listener = self._listener if self._listener is not self._raw else None
        for thing in (self._raw, listener, *self._bell):
            with suppress(Exception):  # whatever a broken connection says on close, it is gone
                if thing is not None:
                    thing.close()

    def _listening(self) -> Any:
        if self._listener is None:
            url = self._database.listen_url
            self._listener = self._raw if url is None else self._database._open(url)
            self._listener.add_notify_handler(self._heard)
            self._rang = False
            self._listener.execute(f'LISTEN "{self._database.channel}"')
        return self._listener

    def _heard(self, notify: Any) -> None:
        self._rang = True

    def _notified(self, listener: Any) -> bool:
        while listener.pgconn.notifies() is not None:
            self._rang = True
        rang, self._rang = self._rang, False
        return rang

    def _call(self, statement: Statement) -> Result:
        result = Result([], 0)
        for n, call in enumerate(self._database.prepare(statement)):
            step = self._execute(call)
            result = Result(step.rows or result.rows, step.count if n == 0 else result.count)
        return result

    def _execute(self, call: Call) -> Result:
        text, values, many = call
        with self._raw.cursor(binary=True) as cursor:
            if many:
                cursor.executemany(text, values)
                return Result([], cursor.rowcount)
            cursor.execute(text, values)
            rows = cursor.fetchall() if cursor.description is not None else []
            return Result(rows, cursor.rowcount)

    def _rollback(self) -> bool:
        """Roll back; True when the connection is lost instead."""
        try:
            self._raw.execute("ROLLBACK")
        except Exception:  # noqa: BLE001  # a lost connection has rolled back by itself
            self._raw.close()
            return True
        return bool(self._raw.closed)


def _plain(url: str) -> str:
    scheme, sep, rest = url.partition("://")
    return f"postgresql{sep}{rest}" if scheme.startswith("postgres") else url


def _alchemy(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://", 1)
