"""SQLite: the database that needs no server.

Owns our connections to the file: WAL, ``synchronous=FULL``, BEGIN IMMEDIATE for every transaction,
so that nothing is ever upgraded from a read to a write in mid-transaction.  SQLite has one writer:
ids are drawn in commit order, and no row lock exists or is needed.  Times come from the machine's
clock, which all processes of one file share.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from duly.databases.sqlite.engine import ImmediateConnection, sqlite_engine, use_wal
from duly.databases.sqlite.gate import begin, gate_of
from duly.databases.sqlite.inspection import inspect_file
from duly.databases.statements import Sql, drive, load_migrations, load_statements, single
from duly.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    OutcomeUnknownError,
    PermanentError,
    SchemaError,
    TransactionConflictError,
    UnsafeSettingError,
)
from duly.ports import Finding, Result, Statement, Steps

__all__ = ["SqliteConnection", "SqliteDatabase"]

T = TypeVar("T")
Call = tuple[str, Any, bool]
_PACKAGE = "duly.databases.sqlite"
RHYTHM_SECONDS = 0.01


class SqliteDatabase:
    """A SQLite file.

    url: ``sqlite:///relative.db`` or ``sqlite:////absolute.db``. Raises ConfigurationError for
    ``:memory:``: a database that only one connection sees cannot be shared with a relay.
    """

    dialect = "sqlite"
    notifies = False  # waiting looks at the file, which costs the writers nothing

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "duly_",
        busy_seconds: float = 5.0,
        now: Callable[[], float] = time.time,
        engine: Any = None,
        async_engine: Any = None,
    ) -> None:
        self.path = path_of(url)
        self.busy_seconds = busy_seconds
        self._sql = load_statements(_PACKAGE, prefix=prefix, group_marker=":group")
        self._prefix = prefix
        script = "".join(text for _, _, text in load_migrations(_PACKAGE, prefix=prefix))
        self._sql["schema.create"] = Sql(tuple(filter(str.strip, script.split(";"))), arrays=False)
        self._now = now
        self._engine, self._async_engine = engine, async_engine
        self._owned: list[Any] = []
        self._gate = gate_of(self.path)

    def connect(self) -> SqliteConnection:
        """Open a private connection. Raises DatabaseUnavailableError, ConfigurationError."""
        try:
            raw = sqlite3.connect(
                self.path,
                timeout=self.busy_seconds,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=256,
            )
        except sqlite3.Error as error:
            raise self.map_error(error) from error
        try:
            use_wal(raw.cursor(), self.busy_seconds)
            raw.execute("PRAGMA synchronous=FULL")
            raw.execute("PRAGMA foreign_keys=ON")
            return SqliteConnection(self, raw)
        except sqlite3.Error as error:
            raw.close()
            raise self.map_error(error) from error

    def engine(self) -> Any:
        """The sync Engine for handlers: the user's own, or one made for this file."""
        if self._engine is None:
            self._engine = sqlite_engine(f"sqlite:///{self.path}", busy_seconds=self.busy_seconds)
            self._owned.append(self._engine)
        return self._engine

    def async_engine(self) -> Any:
        """The AsyncEngine for async handlers: the user's own, or one made for this file with
        aiosqlite.
        """
        if self._async_engine is None:
            self._async_engine = sqlite_engine(
                f"sqlite+aiosqlite:///{self.path}",
                busy_seconds=self.busy_seconds,
                asynchronous=True,
            )
            self._owned.append(self._async_engine.sync_engine)
        return self._async_engine

    def turn(self) -> AbstractContextManager[None]:
        """A fair gate before BEGIN IMMEDIATE."""
        return self._gate.turn(self.busy_seconds)

    def prepare(self, statement: Statement) -> Sequence[Call]:
        """The driver calls of a statement; lists become JSON, ``:now`` is filled in.

        Many rows of a statement that takes arrays are one JSON text, ``:rows``: the interpreter's
        lock changes hands once per step of a statement, which with other threads busy costs more
        than the step.
        """
        texts, arrays = self._sql[statement.name]
        now = self._now()
        if statement.many is not None and arrays:
            values = {"rows": json.dumps(statement.many), "now": now}
            return [(text, values, False) for text in texts]
        if statement.many is not None:
            return [
                (text, [self._values(row, now) for row in statement.many], True) for text in texts
            ]
        values = self._values(statement.params, now)
        return [(text, values, False) for text in texts]

    @staticmethod
    def _values(params: Any, now: float) -> dict[str, Any]:
        values = {k: json.dumps(v) if isinstance(v, list | tuple) else v for k, v in params.items()}
        values["now"] = now
        return values

    def begin_guarded(self, driver: Any) -> bool:
        """As ``GuardsAtOnce``, for connections of engines that were made here: below SQLAlchemy,
        whose way to run two plain commands takes longer than SQLite does.
        """
        if not isinstance(driver, ImmediateConnection):
            return False
        begin(driver, self.busy_seconds)
        driver.execute(self._sql["inbox.guard"].texts[0])
        driver.begun = True
        return True

    def commit_guarded(self, driver: Any) -> Exception | None:
        """As ``GuardsAtOnce``."""
        driver.execute(self._sql["inbox.unguard"].texts[0])
        try:
            driver.execute("COMMIT")
        except sqlite3.Error as error:
            return error
        return None

    def map_error(self, error: Exception) -> Exception:
        """sqlite3's exceptions, told apart by their result code."""
        if not isinstance(error, sqlite3.Error):
            return error
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        text = str(error)
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return TransactionConflictError(f"{self.path}: {text}", code="DATABASE_LOCKED")
        if code == sqlite3.SQLITE_NOTADB:
            return ConfigurationError(
                f"{self.path} is not a SQLite database", code="NOT_A_DATABASE"
            )
        if code == sqlite3.SQLITE_READONLY:
            return ConfigurationError(
                f"{self.path} is read-only for this user", code="DATABASE_READ_ONLY"
            )
        if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
            return DatabaseUnavailableError(f"{self.path}: {text}")
        if code == sqlite3.SQLITE_CORRUPT:
            return ConfigurationError(f"{self.path}: {text}", code="DATABASE_CORRUPT")
        if text.startswith(("no such table: ", "no such column: ")):
            return SchemaError(f"{self.path}: {text}")
        return PermanentError(f"{self.path}: {text}", code="DATABASE_ERROR")

    def create(self) -> Steps[None]:
        """Make the tables in the transaction at hand, where they are not there: whoever publishes
        first holds the file's one write lock, so nobody else could.
        """
        if not (yield Statement("meta.tables")).rows:
            yield Statement("schema.create")

    def migrations(self) -> list[tuple[int, str, str]]:
        """(version, name, SQL) of every migration, in order."""
        return load_migrations(_PACKAGE, prefix=self._prefix)

    def admits(self, connection: Any, *, managed: bool) -> Steps[None]:
        """Raise ConfigurationError (WRONG_DATABASE) for another file or driver, UnsafeSettingError
        for an engine that begins late.

        ``isolation_level="IMMEDIATE"`` is not enough: releasing a savepoint that was set before the
        first write is a commit then.
        """
        raw = getattr(connection, "_conn", connection)  # aiosqlite keeps the connection there
        if not isinstance(raw, sqlite3.Connection):
            raise ConfigurationError(f"{type(raw).__qualname__}: not SQLite", code="WRONG_DATABASE")
        if managed and not isinstance(raw, ImmediateConnection):
            raise UnsafeSettingError(
                "this engine does not say BEGIN IMMEDIATE; make it with duly.sqlite_engine()",
                code="SQLITE_NOT_IMMEDIATE",
            )
        rows = (yield Statement("meta.identity")).rows
        theirs = next((str(row[2]) for row in rows if row[1] == "main"), "")
        if not theirs or not _same_file(theirs, self.path):
            raise ConfigurationError(
                f"this connection is to {theirs or ':memory:'}, not {self.path}",
                code="WRONG_DATABASE",
            )

    def inspect(self) -> list[Finding]:
        """Durability settings and the state of the file, for ``check`` and ``doctor``."""
        return inspect_file(self.path)

    def close(self) -> None:
        """Dispose of the engines that this object made."""
        for engine in self._owned:
            engine.dispose()
        self._owned.clear()


class SqliteConnection:
    """One connection of ours, used by one thread at a time."""

    def __init__(self, database: SqliteDatabase, raw: sqlite3.Connection) -> None:
        self._database = database
        self._raw = raw
        self._gate = gate_of(database.path)
        self._woken = threading.Event()
        self._version = self._data_version()
        self._told_at = 0.0

    def run(self, steps: Steps[T]) -> T:
        """Drive ``steps`` in one BEGIN IMMEDIATE transaction and commit it."""
        try:
            with self._gate.turn(self._database.busy_seconds):
                begin(self._raw, self._database.busy_seconds)
        except sqlite3.Error as error:
            raise self._database.map_error(error) from error
        try:
            answer = drive(steps, self._call)
        except BaseException as error:
            self._rollback()
            raise (
                self._database.map_error(error) if isinstance(error, Exception) else error
            ) from error
        self._commit()
        return answer

    def ask(self, statement: Statement) -> Result:
        """Run one statement by itself."""
        calls = self._database.prepare(statement)
        if len(calls) > 1 or calls[0][2]:
            return self.run(single(statement))
        try:
            return self._execute(calls[0])
        except sqlite3.Error as error:
            raise self._database.map_error(error) from error

    def script(self, text: str) -> None:
        """Run a migration's text in one exclusive transaction."""
        try:
            with self._gate.turn(self._database.busy_seconds):
                self._raw.executescript(f"BEGIN EXCLUSIVE;\n{text}\nCOMMIT;")
        except sqlite3.Error as error:
            self._rollback()
            raise self._database.map_error(error) from error

    def wait(self, timeout_seconds: float) -> bool:
        """Until another connection has committed (``PRAGMA data_version`` moved), ``wake`` was
        called, or time is up.

        Others that commit all the time are told of in a rhythm: to look after every commit costs
        more than it finds.
        """
        end = time.monotonic() + timeout_seconds
        pause = 0.002
        rest = min(timeout_seconds, self._told_at + RHYTHM_SECONDS - time.monotonic())
        if rest > 0 and self._woken.wait(rest):
            self._woken.clear()
            return True
        while True:
            version = self._data_version()
            if version != self._version:
                self._version, self._told_at = version, time.monotonic()
                return True
            left = end - time.monotonic()
            if left <= 0:
                return False
            if self._woken.wait(min(pause, left)):
                self._woken.clear()
                return True
            pause = min(pause * 1.2, 0.025)

    def wake(self) -> None:
        """End a ``wait`` early, from any thread."""
        self._woken.set()

    def close(self) -> None:
        """Close the connection; never raises."""
        with suppress(sqlite3.Error):  # a connection that cannot be closed is already gone
            self._raw.close()

    def _data_version(self) -> int:
        return int(self._raw.execute("PRAGMA data_version").fetchone()[0])

    def _call(self, statement: Statement) -> Result:
        result = Result([], 0)
        for n, call in enumerate(self._database.prepare(statement)):
            step = self._execute(call)
            result = Result(step.rows or result.rows, step.count if n == 0 else result.count)
        return result

    def _execute(self, call: Call) -> Result:
        text, values, many = call
        cursor = self._raw.executemany(text, values) if many else self._raw.execute(text, values)
        rows = cursor.fetchall() if cursor.description is not None else []
        return Result(rows, cursor.rowcount if cursor.rowcount >= 0 else len(rows))

    def _commit(self) -> None:
        try:
            self._raw.execute("COMMIT")
        except sqlite3.Error as error:
            in_doubt = not self._raw.in_transaction
            self._rollback()
            if in_doubt:
                raise OutcomeUnknownError(
                    f"{self._database.path}: COMMIT failed: {error}"
                ) from error
            raise self._database.map_error(error) from error

    def _rollback(self) -> None:
        if self._raw.in_transaction:
            self._raw.execute("ROLLBACK")


def _same_file(one: str, other: str) -> bool:
    try:
        return Path(one).samefile(other)
    except OSError:
        return False


def path_of(url: str) -> str:
    """The file of a ``sqlite:///`` URL. Raises ConfigurationError."""
    scheme, _, rest = url.partition("://")
    path = unquote(rest.partition("?")[0]).removeprefix("/")
    if not scheme.startswith("sqlite") or "\0" in path or not path or path == ":memory:":
        raise ConfigurationError(
            "database URL must be sqlite:///file.db; ':memory:' cannot be shared with a relay"
        )
    return str(Path(path).absolute())
