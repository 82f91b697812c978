"""The joins with the App's real databases: statements, locks, identity checks and refusals."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from duly.databases.mysql.database import MysqlDatabase
from duly.databases.postgres.database import PostgresDatabase
from duly.databases.sqlite.database import SqliteDatabase
from duly.databases.sqlite.engine import sqlite_engine
from duly.errors import ConfigurationError, TransactionConflictError
from duly.frameworks.dbapi import atomic
from duly.frameworks.sqlalchemy import JOIN
from tests.conftest import mariadb
from tests.unit.frameworks.shop import Base, Order, Shop
from tests.unit.frameworks.store import Placed, TestApp


def placed(n: int) -> Placed:
    return Placed(order_id=n)


class RealShop(Shop):
    """The shop on a database of duly's own."""

    def __init__(self, engine: Any, database: Any) -> None:
        self.engine, self.store = engine, database
        connection = database.connect()
        try:
            for _, _, script in database.migrations():
                connection.script(script)
        finally:
            connection.close()
        Base.metadata.create_all(engine)
        self.app = TestApp(database)

    def raw(self) -> Any:
        """A driver connection of the user's own."""
        if isinstance(self.store, SqliteDatabase):
            return sqlite3.connect(self.store.path)
        if isinstance(self.store, MysqlDatabase):
            raw = mariadb(self.engine.url.render_as_string(hide_password=False))
            raw.autocommit(False)
            return raw
        return psycopg.connect(self.store.url)


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def shop(request: Any, sqlite_url: str) -> Iterator[RealShop]:
    if request.param == "sqlite":
        made = RealShop(sqlite_engine(sqlite_url), SqliteDatabase(sqlite_url))
    elif request.param == "mariadb":
        url = request.getfixturevalue("mariadb_url")
        made = RealShop(
            create_engine(url.replace("mysql://", "mysql+pymysql://", 1)), MysqlDatabase(url)
        )
    else:
        url = request.getfixturevalue("postgres_url")
        engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://", 1))
        made = RealShop(engine, PostgresDatabase(url))
    yield made
    made.engine.dispose()
    made.store.close()


def test_session_connection_and_raw(shop: RealShop) -> None:
    with Session(shop.engine) as s, s.begin():
        order = Order()
        s.add(order)
        shop.app.publish(s, lambda: placed(order.id), key=lambda: f"k{order.id}")
        with s.begin_nested() as savepoint:
            shop.app.publish(s, placed(99))
            savepoint.rollback()
        for n in (2, 3):
            shop.app.publish(s, placed(n), headers={"tenant": 'a "quoted" one'})
    with shop.engine.begin() as c:
        shop.app.publish(c, placed(4), key="k")
    raw = shop.raw()
    with atomic(raw) as tx:
        raw.cursor().execute("INSERT INTO orders (id, note) VALUES (5, '')")
        shop.app.publish(tx, placed(5), key="k")
    raw.cursor().execute("INSERT INTO orders (id, note) VALUES (6, '')")
    shop.app.publish(raw, placed(6))
    raw.commit()
    raw.close()
    assert (shop.saved(), shop.stored()) == ([1, 5, 6], [1, 2, 3, 4, 5, 6])


def test_another_database_is_refused(shop: RealShop, tmp_path: Path) -> None:
    """Another SQLite file for the one, another driver for the other: nothing of the work stays."""
    other = sqlite_engine(f"sqlite:///{tmp_path / 'other.db'}")
    Base.metadata.create_all(other)
    with pytest.raises(ConfigurationError) as caught, Session(other) as s, s.begin():
        s.add(Order(id=1))
        shop.app.publish(s, placed(1))
    assert caught.value.code == "WRONG_DATABASE"
    with other.connect() as c:
        assert c.execute(text("SELECT count(*) FROM orders")).scalar() == 0
    other.dispose()


def test_writers_of_one_key_conflict_as_a_retryable_error(postgres_url: str) -> None:
    """T1 has flushed key k and not committed; T2's flush waits for its stripe past its limit."""
    engine = create_engine(postgres_url.replace("postgresql://", "postgresql+psycopg://", 1))
    shop = RealShop(engine, PostgresDatabase(postgres_url))
    with Session(engine) as t1, Session(engine) as t2:
        shop.app.publish(t1, placed(1), key="k")
        JOIN.flush(t1)
        t2.execute(text("SET LOCAL lock_timeout = '50ms'"))
        shop.app.publish(t2, placed(2), key="k")
        with pytest.raises(TransactionConflictError):
            t2.commit()
        t1.commit()
    assert shop.stored() == [1]
    engine.dispose()


def test_sqlite_engines_that_begin_late_are_refused(sqlite_url: str) -> None:
    """The driver's own modes begin before the first INSERT only.

    So RELEASE of a savepoint opened before it is a COMMIT, and an order in it would be there before
    its message is: IMMEDIATE is no better than the default in this.
    """
    good = sqlite_engine(sqlite_url)
    shop = RealShop(good, SqliteDatabase(sqlite_url))
    for level in ("", "IMMEDIATE", "EXCLUSIVE"):
        engine = create_engine(sqlite_url, connect_args={"isolation_level": level})
        with Session(engine) as s:
            s.execute(text("INSERT INTO orders (id, note) VALUES (1, '')"))
            shop.app.publish(s, placed(1))
            with pytest.raises(ConfigurationError):
                s.commit()
        engine.dispose()
    good.dispose()
    assert (shop.saved(), shop.stored()) == ([], [])
