"""Rows of a query in the order of their key, from any database that SQLAlchemy has a dialect for.

Owns an engine without a pool and a cursor on the server, where the driver has one.  Nothing is
known of the database: a stage cannot be made, a row's size is known only when it is there, and text
keys must come in the order of their bytes, or the reading ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from duly.databases.rowwise import FETCH_ROWS, Dialect, Rows, RowwiseReader
from duly.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    MissingExtraError,
    PermanentError,
)
from duly.rows import Reading, RowColumn, RowFeatures, RowQuery

__all__ = ["AlchemyRows"]


class AlchemyRows:
    """A database by its SQLAlchemy URL, as a source of rows. Raises ConfigurationError for a URL
    that SQLAlchemy cannot read, MissingExtraError for a driver that is not installed.
    """

    features = RowFeatures()

    def __init__(self, url: str) -> None:
        from sqlalchemy import create_engine
        from sqlalchemy.exc import ArgumentError, NoSuchModuleError
        from sqlalchemy.pool import NullPool

        try:
            self._engine = create_engine(url, poolclass=NullPool)
        except (ArgumentError, NoSuchModuleError) as error:
            text = "SQLAlchemy has no dialect for this URL"
            raise ConfigurationError(text, code="DATABASE_URL") from error
        except ImportError as error:
            raise MissingExtraError(error.name or "the driver", "all") from error

    @property
    def dialect(self) -> str:
        """As ``RowSource``."""
        return str(self._engine.dialect.name)

    def open(self, *, moment: str = "") -> RowwiseReader:
        """As ``RowSource``."""
        from sqlalchemy.exc import SQLAlchemyError

        try:
            raw = self._engine.connect()
        except SQLAlchemyError as error:
            raise _mapped(error) from error
        return _Reader(_dialect(raw), raw.close)


class _Reader(RowwiseReader):
    """As ``RowReader``; what is too large is refused when it is here."""

    def _asked_columns(self, query: RowQuery) -> Sequence[RowColumn]:
        try:
            return super()._asked_columns(query)
        except DatabaseUnavailableError as error:
            if getattr(error.__cause__, "connection_invalidated", True):
                raise
            # Drivers call an unknown column an operational error, too.
            raise ConfigurationError(error.detail, code="BATCH_QUERY") from error

    def read(self, query: RowQuery, reading: Reading) -> Any:
        """As ``RowReader``."""
        for block in super().read(query, reading):
            for row in block.values:
                size = sum(len(v) for v in row if isinstance(v, str | bytes))
                if size > query.row_bytes_max:
                    text = f"a row of {size} bytes is larger than row_bytes_max"
                    raise PermanentError(text, code="BATCH_ROW_TOO_LARGE")
            yield block


def _dialect(raw: Any) -> Dialect:
    from sqlalchemy import text as as_text

    def execute(text: str, values: Mapping[str, Any]) -> Rows:
        options = {"stream_results": True, "max_row_buffer": FETCH_ROWS}
        result = raw.execution_options(**options).execute(as_text(text), dict(values))
        columns = [RowColumn(str(name)) for name in result.keys()]  # noqa: SIM118  # no dict
        return Rows(columns, result.fetchmany, result.close)

    def command(text: str, values: Mapping[str, Any]) -> None:
        raise ConfigurationError("no stage on this database", code="BATCH_MODE")

    quote: Callable[[str], str] = raw.dialect.identifier_preparer.quote_identifier
    return Dialect(
        execute,
        command,
        _mapped,
        quote=quote,
        mark=lambda name: f":{name}",
        literal=_literal,
    )


def _literal(part: str) -> str:
    """SQLAlchemy looks for names, too; it leaves a cast alone and takes what is escaped."""
    return part.replace("::", "\0").replace(":", "\\:").replace("\0", "::")


def _mapped(error: Exception) -> Exception:
    from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError

    if not isinstance(error, SQLAlchemyError):
        return error
    said = str(getattr(error, "orig", None) or error).strip().splitlines()
    text = (said or [type(error).__name__])[0][:300]
    if isinstance(error, OperationalError) or getattr(error, "connection_invalidated", False):
        return DatabaseUnavailableError(text)
    if isinstance(error, DBAPIError):
        return ConfigurationError(text, code="BATCH_QUERY")
    return PermanentError(text, code="DATABASE_ERROR")
