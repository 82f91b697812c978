"""A shop whose orders and messages must agree, on any database: what the tests of the joins look
at.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, String, event, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tests.unit.frameworks.store import (
    POSTGRES_TABLE,
    SQLITE_TABLE,
    PostgresStore,
    SqliteStore,
    TestApp,
    orders,
)


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str] = mapped_column(String(200), default="")


class Shop:
    """engine: the user's; app: what publishes."""

    __test__ = False

    def __init__(self, engine: Engine, store: SqliteStore | PostgresStore) -> None:
        self.engine = engine
        self.store = store
        self.app = TestApp(store)
        with engine.begin() as connection:
            Base.metadata.create_all(connection)
            connection.execute(
                text(SQLITE_TABLE if isinstance(store, SqliteStore) else POSTGRES_TABLE)
            )

    def stored(self) -> list[int]:
        """The order ids of the committed messages, in the order of the table."""
        with self.engine.connect() as connection:
            return orders(
                connection.execute(text("SELECT payload FROM duly_outbox ORDER BY id")).all()
            )

    def saved(self) -> list[int]:
        """The ids of the committed orders."""
        with self.engine.connect() as connection:
            return list(connection.execute(text("SELECT id FROM orders ORDER BY id")).scalars())

    @contextmanager
    def statements(self) -> Iterator[list[str]]:
        """The first words of the SQL that the engine runs."""
        seen: list[str] = []

        def watch(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
            seen.append(" ".join(statement.split()[:3]))
            logging.getLogger(__name__).debug("%s", statement)

        event.listen(self.engine, "before_cursor_execute", watch)
        try:
            yield seen
        finally:
            event.remove(self.engine, "before_cursor_execute", watch)
