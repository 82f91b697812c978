"""MySQL and MariaDB on PyMySQL, asyncmy for async handlers.

Owns how a statement becomes driver calls, which connections may store messages, and our engines.
No text relies on RETURNING, on partial indexes or on a session's sql_mode; where the two servers
differ the text says so in comments that only one of them reads (``/*M! ... */`` is MariaDB's,
``/*!80000 ... */`` MySQL's).  Row counts are those of rows found: CLIENT_FOUND_ROWS, as SQLAlchemy
sets it, so that a compare-and-set counts the row that it met.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from duly.branches import BranchVerb, Finished
from duly.databases.mysql import prepared
from duly.databases.mysql.connection import MysqlConnection, keep_alive
from duly.databases.mysql.failures import mapped
from duly.databases.mysql.inspection import inspect_server
from duly.databases.mysql.values import (
    check_lengths,
    claimed,
    expanded,
    in_chunks,
    listed,
    paired,
)
from duly.databases.statements import load_migrations, load_routine, load_statements
from duly.errors import ConfigurationError, MissingExtraError, UnsafeSettingError
from duly.kernel.names import check_name
from duly.message import new_id
from duly.ports import Connection, Finding, Statement, Steps

__all__ = ["MysqlDatabase"]

Call = tuple[str, Any, bool]
_PACKAGE = "duly.databases.mysql"
_MODE = "STRICT_TRANS_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION"
_SESSION = (
    f"SET SESSION sql_mode = '{_MODE}', time_zone = '+00:00', "
    "innodb_lock_wait_timeout = %(lock)s, group_concat_max_len = 16777216"
    "/*M!100300 , idle_transaction_timeout = %(idle)s */"
)
_CHARSET = "utf8mb4"


class MysqlDatabase:
    """A MySQL or MariaDB database.

    url: ``mysql://user:password@host/database``; ``mariadb://`` is the same. Raises
    MissingExtraError without PyMySQL, ConfigurationError for a URL without a database or with
    another charset than utf8mb4.
    """

    dialect = "mysql"
    notifies = False  # waiting looks at the tables, which asks nothing of the flushes

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "duly_",
        lock_timeout_seconds: float = 5.0,
        idle_timeout_seconds: float = 300.0,
        connect_timeout_seconds: float = 5.0,
        engine: Any = None,
        async_engine: Any = None,
    ) -> None:
        try:
            import pymysql
        except ImportError as error:
            raise MissingExtraError("pymysql", "mysql") from error
        self._driver = pymysql
        self._url = _parsed(url)
        self._prefix = prefix
        self._sql = load_statements(_PACKAGE, prefix=prefix, group_marker="%(group)s")
        self._wait_seconds = max(1, math.ceil(lock_timeout_seconds))  # the server counts in seconds
        self._idle_seconds = max(1, math.ceil(idle_timeout_seconds))
        self._connect_seconds = max(1, math.ceil(connect_timeout_seconds))
        self._engine, self._async_engine = engine, async_engine
        self._owned: list[Any] = []
        self._identity: tuple[Any, ...] | None = None

    @property
    def url(self) -> str:
        """Where it is, with the password."""
        return str(self._url.set(drivername="mysql").render_as_string(hide_password=False))

    @property
    def driver(self) -> Any:
        """PyMySQL."""
        return self._driver

    @property
    def schema(self) -> str:
        """The name of the database."""
        return str(self._url.database)

    def arguments(self) -> dict[str, Any]:
        """What PyMySQL connects with: where, who, TLS, the character set."""
        _, arguments = _dialect(self._url).create_connect_args(self._url)
        return {**arguments, "charset": _CHARSET}

    def connect(self) -> MysqlConnection:
        """Open a private connection. Raises DatabaseUnavailableError, ConfigurationError."""
        return MysqlConnection(self, self._open())

    def _open(self) -> Any:
        from pymysql.constants import CLIENT, FIELD_TYPE
        from pymysql.converters import conversions

        arguments = self.arguments()
        arguments |= {
            "client_flag": arguments.get("client_flag", 0) | CLIENT.FOUND_ROWS,
            "autocommit": True,
            "connect_timeout": self._connect_seconds,
            "conv": {**conversions, FIELD_TYPE.VAR_STRING: _text},
        }
        try:
            raw = self._driver.connect(**arguments)
            keep_alive(raw)
            with raw.cursor() as cursor:
                cursor.execute(_SESSION, {"lock": self._wait_seconds, "idle": self._idle_seconds})
                cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        except self._driver.Error as error:
            raise self.map_error(error) from error
        return raw

    def engine(self) -> Any:
        """The sync Engine for handlers: the user's own, or one made for this URL."""
        if self._engine is None:
            from sqlalchemy import create_engine

            self._engine = create_engine(self._url, **self._engine_options())
            self._owned.append(self._engine)
        return self._engine

    def async_engine(self) -> Any:
        """The AsyncEngine for async handlers: the user's own, or one made for this URL with
        asyncmy.
        """
        if self._async_engine is None:
            from sqlalchemy.ext.asyncio import create_async_engine

            try:
                import asyncmy  # noqa: F401  # only whether it is there
            except ImportError as error:
                raise MissingExtraError("asyncmy", "mysql") from error
            url = self._url.set(drivername="mysql+asyncmy")
            self._async_engine = create_async_engine(url, **self._engine_options())
            self._owned.append(self._async_engine.sync_engine)
        return self._async_engine

    def _engine_options(self) -> dict[str, Any]:
        return {
            "isolation_level": "READ COMMITTED",
            "pool_size": 32,
            "connect_args": {"connect_timeout": self._connect_seconds, "charset": _CHARSET},
        }

    def turn(self) -> AbstractContextManager[None]:
        """Nothing to wait for: writers do not exclude each other."""
        return nullcontext()

    # --- statements -------------------------------------------------------------------------------
    def prepare(self, statement: Statement) -> Sequence[Call]:
        """The driver calls of a statement."""
        if statement.name.startswith("branch."):
            return prepared.calls(statement)
        shape = _SHAPES.get(statement.name)
        if shape is not None:
            return shape(self, statement)
        sql = self._sql[statement.name]
        if statement.many is not None and sql.arrays:
            return self._rows(statement.name, statement.many)
        if statement.many is not None:
            return [(text, list(map(listed, statement.many)), True) for text in sql.texts]
        if statement.name in _IDENTITIES:
            check_lengths([statement.params])
        values = listed(statement.params)
        if "topics" in values and "keys" in values:
            values["pairs"] = paired(statement.params["topics"], statement.params["keys"])
        return [(text, values, False) for text in sql.texts]

    def _rows(self, name: str, rows: Sequence[Any]) -> list[Call]:
        check_lengths(rows)
        text = self._sql[name].texts[0]
        return [(*expanded(text, chunk), False) for chunk in in_chunks(rows)]

    def _insert(self, statement: Statement) -> Sequence[Call]:
        rows = statement.many or []
        stripes = sorted({row["stripe"] for row in rows if row["stripe"] is not None})
        calls: list[Call] = []
        if stripes:
            values = {"stripes": tuple(stripes), "wait_seconds": self._wait_seconds}
            calls.append((self._sql["outbox.stripes"].texts[0], values, False))
        return calls + self._rows(statement.name, rows)

    def _settle(self, statement: Statement) -> Sequence[Call]:
        rows = statement.many or []
        calls: list[Call] = []
        statuses = sorted({row["status"] for row in rows}) if statement.name == _KEEP else [None]
        for status in statuses:
            these = [row for row in rows if status is None or row["status"] == status]
            ids = tuple(row["id"] for row in these) or (None,)
            message_ids = tuple(row["message_id"] for row in these) or (None,)
            values = {"ids": ids, "message_ids": message_ids, "status": status}
            calls.append((self._sql[statement.name].texts[0], values, False))
        return calls

    def _claim(self, statement: Statement) -> Sequence[Call]:
        """As one statement however many rows there are: its count is what was new."""
        rows = claimed(statement.params)
        check_lengths(rows)
        text, *after = self._sql[statement.name].texts
        if not after:
            return [(*expanded(text, rows), False)]
        mark = f"claim {new_id()}"
        keys = tuple(row["dedupe_key"] for row in rows)
        values = {**statement.params, "dedupe_keys": keys, "mark": mark}
        first = (*expanded(text, [{**row, "mark": mark} for row in rows]), False)
        return [first, *((text, values, False) for text in after)]

    def _of_message(self, statement: Statement) -> Sequence[Call]:
        params = statement.params
        rows = [
            {"message_id": message_id, "handler": handler, "group": params["group"]}
            for message_id in params["message_ids"]
            for handler in params["handlers"]
        ]
        return [(*expanded(self._sql[statement.name].texts[0], rows), False)]

    def _lanes(self, statement: Statement) -> Sequence[Call]:
        """Lanes by the names of their rows, which is the order that all take them in."""
        scope, lanes = statement.params["scope"], statement.params["lanes"]
        names = tuple(f"lane/{scope}/{lane}" for lane in lanes) or (None,)
        values = {"names": names, "holder": statement.params["holder"]}
        return [(text, values, False) for text in self._sql[statement.name].texts]

    def _deadline(self, statement: Statement) -> Sequence[Call]:
        values = {"seconds": max(1, math.ceil(int(statement.params["milliseconds"]) / 1000))}
        return [(text, values, False) for text in self._sql[statement.name].texts]

    def map_error(self, error: Exception) -> Exception:
        """The drivers' exceptions by their number."""
        return mapped(error)

    # --- branches of global transactions, as ``PreparesTransactions`` -----------------------------
    def branch_words(self, verb: BranchVerb, name: str) -> Sequence[str]:
        """What is said on the connection of a branch."""
        return prepared.words(verb, name)

    def branch_mark(self, name: str) -> str:
        """There are no marks."""
        return ""

    def prepared(self, connection: Connection) -> list[str]:
        """The prepared branches of this server."""
        return prepared.prepared(connection)

    def finish(self, connection: Connection, name: str, *, commit: bool) -> Finished:
        """End a prepared branch."""
        return prepared.finish(connection, name, commit=commit)

    def fate(self, connection: Connection, mark: str) -> bool | None:
        """Nobody knows."""
        return None

    def inspect_prepared(self) -> list[Finding]:
        """Whether branches can be prepared, listed, and stay ended."""
        raw = self._open()
        try:
            return prepared.inspect(raw)
        finally:
            raw.close()

    # --- schema, checks ---------------------------------------------------------------------------
    def create(self) -> Steps[None]:
        """Nothing: here tables are made by ``duly db upgrade`` only."""
        yield from ()

    def migrations(self) -> list[tuple[int, str, str]]:
        """(version, name, SQL) of every migration, in order."""
        return load_migrations(_PACKAGE, prefix=self._prefix)

    def publish_routine(self, app: str) -> str:
        """As ``PublishesInSql``: a procedure; its name has the tables' prefix."""
        check_name(app, "app")
        return load_routine(_PACKAGE, prefix=self._prefix, app=app)

    def admits(self, connection: Any, *, managed: bool) -> Steps[None]:
        """Raise ConfigurationError (WRONG_DATABASE) unless driver, server and database are those of
        the App, and for a replica; UnsafeSettingError for a session that could cut what is stored.
        """
        packages = {cls.__module__.partition(".")[0] for cls in type(connection).__mro__}
        if packages.isdisjoint({"pymysql", "asyncmy"}):
            kind = f"{type(connection).__module__}.{type(connection).__qualname__}"
            raise ConfigurationError(
                f"{kind} is neither PyMySQL nor asyncmy", code="WRONG_DATABASE"
            )
        theirs = (yield Statement("meta.identity")).rows[0]
        if self._identity != _where(theirs):
            self._identity = self._ask_identity()  # perhaps another server has taken over
        if theirs[2]:
            raise ConfigurationError("this server is a read-only replica", code="WRONG_DATABASE")
        if self._identity != _where(theirs):
            raise ConfigurationError(
                f"this is database {theirs[1]}; the App has another", code="WRONG_DATABASE"
            )
        _refuse_unsafe(theirs)

    def _ask_identity(self) -> tuple[Any, ...]:
        own = self.connect()
        try:
            return _where(own.ask(Statement("meta.identity")).rows[0])
        finally:
            own.close()

    def inspect(self) -> list[Finding]:
        """Durability, engines, log format, replica, version, for ``check`` and ``doctor``."""
        raw = self._open()
        try:
            return inspect_server(raw, self._prefix)
        finally:
            raw.close()

    def close(self) -> None:
        """Dispose of the engines that this object made."""
        for engine in self._owned:
            engine.dispose()
        self._owned.clear()


_KEEP = "outbox.keep"
_IDENTITIES = {"inbox.claim", "inbox.store", "inbox.rekey", "effect.intend"}
_SHAPES = {
    "outbox.insert": MysqlDatabase._insert,
    "outbox.settle": MysqlDatabase._settle,
    _KEEP: MysqlDatabase._settle,
    "inbox.claim_all": MysqlDatabase._claim,
    "inbox.claim_many": MysqlDatabase._claim,
    "inbox.of_message": MysqlDatabase._of_message,
    "inbox.deadline": MysqlDatabase._deadline,
    "lease.take": MysqlDatabase._lanes,
    "lease.release": MysqlDatabase._lanes,
}


def _where(identity: Sequence[Any]) -> tuple[Any, ...]:
    """Server and database, as text: drivers disagree on what is bytes."""
    return tuple(v.decode() if isinstance(v, bytes) else v for v in identity[:2])


def _refuse_unsafe(identity: Sequence[Any]) -> None:
    charset, strict, others = identity[3:6]
    charset = charset.decode() if isinstance(charset, bytes) else charset
    if charset != _CHARSET:
        raise UnsafeSettingError(
            f"the connection's character set is {charset}; connect with charset={_CHARSET}",
            code="MYSQL_CHARSET",
        )
    if not strict:
        raise UnsafeSettingError(
            "sql_mode is not strict: a value that is too long would be cut without a word; "
            "add STRICT_TRANS_TABLES",
            code="MYSQL_NOT_STRICT",
        )
    if others:
        raise UnsafeSettingError(
            f"{others} of duly's tables are not InnoDB: they know no rollback", code="NOT_INNODB"
        )


def _parsed(url: str) -> Any:
    from sqlalchemy.engine import make_url

    parsed = make_url(url)
    if not parsed.database:
        raise ConfigurationError("database URL must name a database: mysql://host/database")
    if parsed.query.get("charset", _CHARSET) != _CHARSET:
        raise ConfigurationError(
            f"the URL says charset={parsed.query['charset']}; leave it out, or say {_CHARSET}",
            code="MYSQL_CHARSET",
        )
    return parsed.set(drivername="mysql+pymysql")


def _dialect(url: Any) -> Any:
    return url.get_dialect()()


def _text(value: Any) -> Any:
    """Keys are stored as bytes, and are text."""
    return value.decode() if isinstance(value, bytes) else value
