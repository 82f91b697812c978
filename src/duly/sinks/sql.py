"""A table of another database, kept in step exactly once: PostgreSQL, MySQL, MariaDB, SQLite.

Rows and the place in the stream are one transaction of the target, in a table ``duly_sink`` there.
Its first statement moves the place from where this sink knows it to be, under the token and epoch
of the reader: so what an older reader still has in hand changes nothing, what was applied is not
applied again, and a target that was restored to an earlier state is found out.  The table itself is
the user's; of its own it needs a column ``duly_mark BIGINT``, by which rows are found that vanished
from the source unseen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from duly.errors import (
    ConfigurationError,
    DulyError,
    MissingExtraError,
    SinkLostError,
    SinkRefusedError,
    SinkUnavailableError,
    StaleLeaseError,
)
from duly.kernel import failpoints
from duly.kernel.upserts import fold, pieces
from duly.sink import Batch, Fed, Feed
from duly.sinks.tabular import MARK, Call, Copy, as_json, value_for
from duly.wire.urls import redact

__all__ = ["SqlUpsert"]

PIECE_ROWS = 1000
PIECE_BYTES = 1024 * 1024
PATIENCE_SECONDS = 5
STATEMENT_SECONDS = 60
_DRIVERS = {
    "mariadb": "mysql+pymysql",
    "mysql": "mysql+pymysql",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
}
_TABLE = """CREATE TABLE IF NOT EXISTS duly_sink (
  name VARCHAR(120) NOT NULL PRIMARY KEY, token BIGINT NOT NULL, epoch BIGINT NOT NULL,
  place VARCHAR(200) NOT NULL)"""
_LOOK = "SELECT token, epoch, place FROM duly_sink WHERE name = ?"
_ADD = "INSERT INTO duly_sink (name, token, epoch, place) VALUES (?, ?, ?, '')"
_OPEN = "UPDATE duly_sink SET token = ?, epoch = ?, place = ? WHERE name = ? AND token = ?"
_MOVE = "UPDATE duly_sink SET place = ? WHERE name = ? AND token = ? AND epoch = ? AND place = ?"


class SqlUpsert:
    """A table of another database.

    url: of the database, as for ``App(database=...)``. table: its name, with its schema where it
    has one; it has a column ``duly_mark BIGINT`` and no unique index but its primary key. key: its
    key columns in the order of the source's, where they have other names. Raises
    ConfigurationError.
    """

    snapshots = True

    def __init__(self, url: str, *, table: str, key: str | Sequence[str] = ()) -> None:
        self._url, self._table = url, table
        self._wanted_key = (key,) if isinstance(key, str) else tuple(key)
        self._engine: Any = None
        self._copy: Any = None
        self._feed: Feed | None = None
        self._place = ""

    @property
    def place(self) -> str:
        """As ``Sink``."""
        return f"{redact(self._url)} {self._table}"

    # --- a sink -----------------------------------------------------------------------------------
    def look(self, name: str) -> Fed:
        """As ``Sink``."""
        from sqlalchemy import inspect

        with self._transaction() as connection:
            if not inspect(connection).has_table("duly_sink"):
                return Fed()
            row = _run(connection, Call(_LOOK, [name])).fetchone()
            return Fed() if row is None else Fed(row[1], row[2])

    def open(self, feed: Feed) -> None:
        """As ``Sink``."""
        self._make()
        with self._transaction() as connection:
            self._copy = self._copy_of(connection)
            row = _run(connection, Call(_LOOK, [feed.name])).fetchone()
            if row is None:
                self._add(connection, feed)
                place = ""
            else:
                token, epoch, place = row
                if (epoch, token) > (feed.epoch, feed.token):
                    raise StaleLeaseError(f"{self.place} is fed by another reader")
                place = place if epoch == feed.epoch else ""
                values = [feed.token, feed.epoch, place, feed.name, token]
                if _run(connection, Call(_OPEN, values)).rowcount != 1:
                    raise StaleLeaseError(f"{self.place} is fed by another reader")
        self._feed, self._place = feed, place

    def apply(self, batch: Batch) -> None:
        """As ``Sink``: exactly once."""
        assert self._feed is not None, "open comes first"
        feed, copy = self._feed, self._copy
        with self._transaction() as connection:
            where = [feed.name, feed.token, feed.epoch, self._place]
            if _run(connection, Call(_MOVE, [batch.place, *where])).rowcount != 1:
                self._refuse(connection, feed)
            for piece in pieces(batch.operations, count=PIECE_ROWS, size_bytes=PIECE_BYTES):
                for call in copy.calls(fold(piece), feed.epoch):
                    _run(connection, call)
            if batch.complete:
                _run(connection, copy.sweep(feed.epoch))
            failpoints.hit(failpoints.SINK_WRITTEN)
        self._place = batch.place
        failpoints.hit(failpoints.SINK_APPLIED)

    def close(self) -> None:
        """As ``Sink``."""
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    # --- details ----------------------------------------------------------------------------------
    def _make(self) -> None:
        from sqlalchemy import inspect

        try:
            with self._transaction() as connection:
                connection.exec_driver_sql(_TABLE)
        except SinkRefusedError:  # PostgreSQL says so where another stream makes it at this moment
            with self._transaction() as connection:
                if not inspect(connection).has_table("duly_sink"):
                    raise

    def _add(self, connection: Any, feed: Feed) -> None:
        from sqlalchemy.exc import IntegrityError

        try:
            _run(connection, Call(_ADD, [feed.name, feed.token, feed.epoch]))
        except IntegrityError as error:  # it is no row of the user's that does not fit
            text = f"{self.place}: another reader began at this moment"
            raise SinkUnavailableError(text) from error

    def _refuse(self, connection: Any, feed: Feed) -> NoReturn:
        row = _run(connection, Call(_LOOK, [feed.name])).fetchone()
        if row is not None and (row[1], row[0]) != (feed.epoch, feed.token):
            raise StaleLeaseError(f"{self.place} is fed by another reader")
        raise SinkLostError(f"{self.place} is not where it was left")

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

        try:
            with self._opened().begin() as connection:
                yield connection
        except (OperationalError, InterfaceError) as error:
            raise SinkUnavailableError(f"{self.place}: {_reason(error)}") from error
        except SQLAlchemyError as error:
            raise SinkRefusedError(f"{self.place}: {_reason(error)}") from error

    def _opened(self) -> Any:
        if self._engine is None:
            self._engine = _engine(self._url)
        return self._engine

    def _copy_of(self, connection: Any) -> Copy:
        from sqlalchemy import inspect
        from sqlalchemy.exc import NoSuchTableError

        dialect = connection.dialect.name
        schema, _, table = self._table.rpartition(".")
        found = inspect(connection)
        try:
            columns = {c["name"]: c["type"] for c in found.get_columns(table, schema or None)}
            primary = found.get_pk_constraint(table, schema or None)["constrained_columns"]
            unique = [*found.get_indexes(table, schema or None)]
        except NoSuchTableError as error:
            raise ConfigurationError(f"{self.place} is not there", code="SINK_TABLE") from error
        key = self._wanted_key or tuple(primary)
        _check(self.place, columns, key, primary=primary, unique=unique)
        quote = connection.dialect.identifier_preparer.quote
        name = ".".join(quote(part) for part in (schema, table) if part)
        adapt = _adapt(dialect, columns)
        ordered = bool(self._wanted_key)
        return Copy(name, dialect=dialect, key=key, ordered=ordered, quote=quote, adapt=adapt)


def _check(
    place: str,
    columns: dict[str, Any],
    key: Sequence[str],
    *,
    primary: Sequence[str],
    unique: Sequence[Any],
) -> None:
    if not key:
        raise ConfigurationError(f"{place} has no primary key", code="SINK_KEY")
    if missing := {*key, MARK} - set(columns):
        text = f"{place} has no column {min(missing)}"
        raise ConfigurationError(
            f"{text}; it needs {', '.join(key)} and {MARK} BIGINT", code="SINK_COLUMN"
        )
    if set(primary) != set(key):
        text = f"{place} has another primary key than {', '.join(key)}"
        raise ConfigurationError(text, code="SINK_KEY")
    others = [index["name"] for index in unique if index["unique"]]
    if others:
        # Rows come one by one where the source changed them at once, and on MySQL an upsert would
        # go to whichever row any unique index names.
        text = f"{place}: a copy may have no unique index but its primary key, not {others[0]}"
        raise ConfigurationError(text, code="SINK_UNIQUE")


def _adapt(dialect: str, columns: dict[str, Any]) -> Any:
    from sqlalchemy.types import JSON

    plain = value_for(dialect)
    json = {name for name, kind in columns.items() if isinstance(kind, JSON)}

    def adapt(name: str, value: Any) -> Any:
        if name in json and value is not None and not isinstance(value, str):
            return as_json(value)
        return plain(value)

    return adapt


def _run(connection: Any, call: Call) -> Any:
    style = connection.dialect.paramstyle
    sql = call.sql
    if style != "qmark":
        sql = sql.replace("%", "%%").replace("?", "%s")
    result = connection.exec_driver_sql(sql, tuple(call.values))
    if call.rows is not None and result.rowcount != call.rows:
        text = "an update came without all its values, and its row is not there to keep them"
        raise SinkRefusedError(text, code="ABSENT_VALUE")
    return result


def _engine(url: str) -> Any:
    from sqlalchemy import create_engine, make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    scheme, _, rest = url.partition("://")
    if scheme not in (*_DRIVERS, "sqlite"):
        known = ", ".join(sorted({*_DRIVERS, "sqlite"}))
        raise ConfigurationError(f"{redact(url)}: a sink is one of {known}", code="SINK_URL")
    try:
        given = make_url(f"{_DRIVERS.get(scheme, scheme)}://{rest}")
        return create_engine(
            given, pool_size=1, max_overflow=0, connect_args=_patience(given.get_backend_name())
        )
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise ConfigurationError(
            f"{redact(url)} is no URL of a database", code="SINK_URL"
        ) from error
    except ImportError as error:
        extra = "postgres" if scheme.startswith("postgres") else "mysql"
        raise MissingExtraError(error.name or "the driver", extra) from error


def _patience(dialect: str) -> dict[str, Any]:
    """Limits of time for everything that is asked of the target."""
    if dialect == "sqlite":
        return {"timeout": PATIENCE_SECONDS}
    if dialect == "postgresql":
        wait, whole = PATIENCE_SECONDS * 1000, STATEMENT_SECONDS * 1000
        options = f"-c lock_timeout={wait} -c statement_timeout={whole} -c TimeZone=UTC"
        options += f" -c idle_in_transaction_session_timeout={whole}"
        return {
            "connect_timeout": PATIENCE_SECONDS,
            "options": options,
            "tcp_user_timeout": STATEMENT_SECONDS * 1000,
        }
    strict = "sql_mode = CONCAT(@@sql_mode, ',STRICT_ALL_TABLES')"
    return {
        "connect_timeout": PATIENCE_SECONDS,
        "read_timeout": STATEMENT_SECONDS,
        "write_timeout": STATEMENT_SECONDS,
        "init_command": f"SET time_zone = '+00:00', innodb_lock_wait_timeout = 5, {strict}",
    }


def _reason(error: Any) -> str:
    """The driver's first line; without the statement and the row that SQLAlchemy adds."""
    original = getattr(error, "orig", None) or error
    if isinstance(original, DulyError):
        return original.detail
    text = str(original.args[-1] if original.args else original).strip()
    return text.partition("\n")[0][:200] or type(original).__name__
