"""Messages and hooks follow a Core transaction, and a failing flush leaves nothing behind on the
connection.
"""

from __future__ import annotations

import gc
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.engine.base import NestedTransaction, RootTransaction, TwoPhaseTransaction
from sqlalchemy.exc import InvalidRequestError, OperationalError, PendingRollbackError
from sqlalchemy.orm import Session

from duly.databases.sqlite.engine import sqlite_engine
from duly.errors import ConfigurationError, NotInTransactionError, TransactionConflictError
from duly.frameworks.sqlalchemy import JOIN, core
from tests.unit.frameworks.shop import Shop
from tests.unit.frameworks.store import SQLITE_TABLE, Placed, SqliteStore, TestApp


def placed(n: int) -> Placed:
    return Placed(order_id=n)


def insert(connection: Any, n: int) -> None:
    connection.execute(text("INSERT INTO orders (id, note) VALUES (:n, '')"), {"n": n})


@pytest.mark.parametrize("form", ["engine.begin", "with begin", "commit", "commit transaction"])
def test_commit_in_every_form(shop: Shop, form: str) -> None:
    ran: list[int] = []

    def work(c: Any) -> None:
        insert(c, 1)
        shop.app.publish(c, placed(1))
        shop.app.publish(
            c, lambda: placed(c.execute(text("SELECT max(id) + 1 FROM orders")).scalar_one())
        )
        shop.app.after_commit(c, lambda: ran.append(1))

    if form == "engine.begin":
        with shop.engine.begin() as c:
            work(c)
    else:
        with shop.engine.connect() as c:
            if form == "with begin":
                with c.begin():
                    work(c)
            elif form == "commit":
                c.execute(text("SELECT 1"))
                work(c)
                c.commit()
            else:
                transaction = c.begin()
                work(c)
                transaction.commit()
            assert ran == [1]
    assert (shop.saved(), shop.stored(), ran, shop.app.wakes) == ([1], [1, 2], [1], 1)


@pytest.mark.parametrize(
    "form", ["raise", "rollback", "close", "transaction.close", "invalidate", "forget"]
)
def test_nothing_remains_without_a_commit(shop: Shop, form: str) -> None:
    ran: list[int] = []
    c = shop.engine.connect()
    transaction = c.begin()
    insert(c, 1)
    shop.app.publish(c, placed(1))
    shop.app.after_commit(c, lambda: ran.append(1))
    if form == "raise":
        with pytest.raises(ZeroDivisionError), transaction:
            raise ZeroDivisionError
    elif form == "transaction.close":
        transaction.close()
    elif form == "forget":
        del c, transaction
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()
        c = shop.engine.connect()
    else:
        getattr(c, form)()
        if form == "invalidate":
            c.rollback()
    if form == "close":
        c = shop.engine.connect()
    with c.begin():
        insert(c, 2)
        shop.app.publish(c, placed(2))
    c.close()
    assert (shop.saved(), shop.stored(), ran) == ([2], [2], [])


def test_savepoints(shop: Shop) -> None:
    """1; SP{2; SP{3} back; 4} released; SP{5; SP{6} released} back; SP{hook} back; SP left open {7}
    at the commit.
    """
    ran: list[str] = []
    with shop.engine.connect() as c:
        root = c.begin()
        shop.app.publish(c, placed(1))
        with c.begin_nested():
            shop.app.publish(c, placed(2))
            inner = c.begin_nested()
            shop.app.publish(c, placed(3))
            inner.rollback()
            shop.app.publish(c, placed(4))
        outer = c.begin_nested()
        shop.app.publish(c, placed(5))
        with c.begin_nested():
            shop.app.publish(c, placed(6))
        outer.rollback()
        hooked = c.begin_nested()
        shop.app.after_commit(c, lambda: ran.append("dropped"))
        hooked.close()
        c.begin_nested()
        shop.app.publish(c, placed(7))
        shop.app.after_commit(c, lambda: ran.append("kept"))
        root.commit()
    assert (shop.stored(), ran) == ([1, 2, 4, 7], ["kept"])


@pytest.mark.parametrize("verb", ["rollback", "commit", "close"])
def test_savepoints_ended_out_of_order(shop: Shop, verb: str) -> None:
    """A{1; B{2}}, A ends while B is open: the database ends both. Then C{3} released, D{4} back."""
    with shop.engine.connect() as c, warnings.catch_warnings():
        warnings.simplefilter("ignore")

        def work(n: int) -> None:
            insert(c, n)
            shop.app.publish(c, placed(n))

        with c.begin():
            a = c.begin_nested()
            work(1)
            b = c.begin_nested()
            work(2)
            getattr(a, verb)()
            if verb == "commit":
                with pytest.raises(OperationalError, match="no such savepoint"):
                    b.rollback()
                a.rollback()  # SQLAlchemy runs no SQL before
            with c.begin_nested():
                work(3)
            d = c.begin_nested()
            work(4)
            d.rollback()
    assert shop.saved() == shop.stored() == ([1, 2, 3] if verb == "commit" else [3])


def test_no_transaction_no_publish(shop: Shop) -> None:
    with shop.engine.connect() as c:
        with pytest.raises(NotInTransactionError):
            shop.app.publish(c, placed(1))
        with c.begin() as transaction:
            transaction.commit()
            with pytest.raises(NotInTransactionError):
                shop.app.publish(c, placed(2))
        c.execute(text("SELECT 1"))
        shop.app.publish(c, placed(3))
        c.commit()
    assert shop.stored() == [3]


def test_transaction_is_a_target_too(shop: Shop) -> None:
    with shop.engine.connect() as c, c.begin() as transaction:
        shop.app.publish(transaction, placed(1))
    assert shop.stored() == [1]


# --- errors at the flush --------------------------------------------------------------------------
def broken_flush(shop: Shop) -> Any:
    """Make the INSERT of messages fail once its table is gone."""
    with shop.engine.begin() as c:
        c.execute(text("ALTER TABLE duly_outbox RENAME TO away"))

    def repair() -> None:
        with shop.engine.begin() as c:
            c.execute(text("ALTER TABLE away RENAME TO duly_outbox"))

    return repair


def one_connection(path: Path) -> Shop:
    """A pool of one: whoever comes next gets this very driver connection."""
    return Shop(
        sqlite_engine(f"sqlite:///{path}", pool_size=1, max_overflow=0, busy_seconds=0.2),
        SqliteStore(str(path)),
    )


@pytest.mark.parametrize("after", ["rollback", "close", "with", "commit again", "go on"])
@pytest.mark.parametrize("kind", ["session", "connection"])
def test_flush_error_then_the_same_connection_again(path: Path, kind: str, after: str) -> None:
    """order -> message -> flush fails -> the next transaction on that driver connection commits: no
    order either.

    The planted failure: with the flush in SQLAlchemy's commit event and no rollback of the driver,
    the Transaction calls itself inactive, nobody says ROLLBACK, and the next COMMIT on the
    connection keeps the order without its message (shown to be real by
    ``test_the_planted_failure_is_real``).
    """
    shop = one_connection(path)
    with shop.engine.begin() as c:
        shop.app.publish(c, placed(0))
    repair = broken_flush(shop)
    subject: Any = Session(shop.engine) if kind == "session" else shop.engine.connect()
    if after == "with":
        with pytest.raises(OperationalError), subject, subject.begin():
            insert(subject, 1)
            shop.app.publish(subject, placed(1))
    else:
        subject.execute(text("SELECT 1"))
        insert(subject, 1)
        shop.app.publish(subject, placed(1))
        with pytest.raises(OperationalError):
            subject.commit()
        if after == "commit again":
            if kind == "session":
                with pytest.raises((InvalidRequestError, PendingRollbackError)):
                    subject.commit()
            else:
                subject.commit()  # nothing is open any more
        if after == "go on" and kind == "connection":
            insert(subject, 2)
            subject.commit()
        subject.rollback() if after == "rollback" else subject.close()
    subject.close()
    repair()
    with shop.engine.begin() as c:
        insert(c, 3)
    assert shop.saved() == ([2, 3] if (after, kind) == ("go on", "connection") else [3])
    assert shop.stored() == [0]
    shop.engine.dispose()


def test_the_planted_failure_is_real(path: Path) -> None:
    """The same flush done the obvious way, as a listener of the commit event: the order is
    committed by somebody else.
    """
    shop = one_connection(path)

    def flush(connection: Any) -> None:
        if connection.info.get("publish"):
            connection.exec_driver_sql("INSERT INTO no_such_table VALUES (1)")

    event.listen(shop.engine, "commit", flush)
    with shop.engine.connect() as c:
        insert(c, 1)
        c.info["publish"] = True
        with pytest.raises(OperationalError):
            c.commit()
        c.info["publish"] = False
        c.rollback()  # SQLAlchemy: inactive already, so no ROLLBACK reaches the driver
        c.connection.commit()
    assert shop.saved() == [1]
    shop.engine.dispose()


def test_connection_that_cannot_be_rolled_back_is_thrown_away(shop: Shop) -> None:
    repair = broken_flush(shop)
    original = shop.engine.dialect.do_rollback
    with shop.engine.connect() as c:
        raw = c.connection.dbapi_connection
        insert(c, 1)
        shop.app.publish(c, placed(1))

        def fails(connection: Any) -> None:
            raise OperationalError("ROLLBACK", {}, Exception("lost"))

        shop.engine.dialect.do_rollback = fails  # type: ignore[method-assign]
        try:
            with pytest.raises(OperationalError, match="no such table"):
                c.commit()
        finally:
            shop.engine.dialect.do_rollback = original  # type: ignore[method-assign]
        assert c.invalidated
        c.rollback()
        assert c.connection.dbapi_connection is not raw
    repair()
    assert shop.saved() == []


def test_driver_errors_come_as_ours(shop: Shop) -> None:
    """The table is locked by the map's own word: what the flush meets is RetryableError, from the
    driver's error.
    """
    with shop.engine.connect() as c:
        insert(c, 1)
        shop.app.publish(c, placed(1))
        with shop.statements(), pytest.raises(TransactionConflictError) as caught:
            event.listen(c, "before_cursor_execute", _locked)
            c.commit()
        assert caught.value.__cause__ is not None
    assert shop.saved() == []


def _locked(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
    import sqlite3

    if "duly_outbox" in statement:
        from sqlalchemy.exc import DBAPIError

        raise DBAPIError.instance(
            statement,
            {},
            sqlite3.OperationalError("database is locked"),
            sqlite3.Error,
            dialect=connection.dialect,
        )


# --- refused --------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", ["engine", "option engine", "connection"])
def test_autocommit_is_refused(path: Path, shop: Shop, form: str) -> None:
    options = {"isolation_level": "AUTOCOMMIT"}
    if form == "engine":
        engine = create_engine(f"sqlite:///{path}", **options)
    else:
        engine = (
            shop.engine.execution_options(**options) if form == "option engine" else shop.engine
        )
    with engine.connect() as c:
        if form == "connection":
            c = c.execution_options(**options)
        insert(c, 1)
        with pytest.raises(ConfigurationError) as caught:
            shop.app.publish(c, placed(1))
            c.commit()
        assert caught.value.code in ("AUTOCOMMIT", "SQLITE_NOT_BEGUN")
    with Session(engine) as s:
        if form == "connection":
            s.connection(execution_options=options)
        shop.app.publish(s, placed(2))
        with pytest.raises(ConfigurationError):
            s.commit()
    assert shop.stored() == []


def test_sqlite_engine_that_does_not_begin_is_refused(path: Path, shop: Shop) -> None:
    """The default engine: a SELECT and then nothing else begins no transaction that the message
    could share.
    """
    engine = create_engine(f"sqlite:///{path}")
    with Session(engine) as s:
        s.execute(text("SELECT 1"))
        shop.app.publish(s, placed(1))
        with pytest.raises(ConfigurationError) as caught:
            s.commit()
    assert caught.value.code == "SQLITE_NOT_BEGUN"
    engine.dispose()


def test_wrong_database(path: Path, tmp_path: Path) -> None:
    other = sqlite_engine(f"sqlite:///{tmp_path / 'else.db'}")
    with other.begin() as c:
        c.execute(text(SQLITE_TABLE))
    app = TestApp(SqliteStore(str(path)))
    with pytest.raises(ConfigurationError) as caught, other.begin() as c:
        app.publish(c, placed(1))
    assert caught.value.code == "WRONG_DATABASE"
    with other.connect() as c:
        assert c.execute(text("SELECT count(*) FROM duly_outbox")).scalar() == 0
    other.dispose()


# --- hooks ----------------------------------------------------------------------------------------
def test_hooks_use_the_connection(shop: Shop) -> None:
    with shop.engine.connect() as c:
        with c.begin():
            insert(c, 1)
            shop.app.after_commit(c, lambda: insert(c, 2))
            shop.app.after_commit(c, lambda: [insert(c, 3), insert(c, 3)])
            shop.app.after_commit(
                c, lambda: shop.app.publish(c, placed(c.execute(text("SELECT 4")).scalar_one()))
            )
        assert not c.in_transaction()
    assert (shop.saved(), shop.stored(), len(shop.app.reports)) == ([1, 2], [4], 1)


def test_hook_that_closes_the_connection(shop: Shop) -> None:
    with shop.engine.connect() as c:
        c.begin()
        insert(c, 1)
        shop.app.after_commit(c, c.close)
        c.commit()
    assert (shop.saved(), shop.app.reports) == ([1], [])


def test_base_exception_in_a_hook_passes(shop: Shop) -> None:
    with shop.engine.connect() as c:
        c.begin()
        insert(c, 1)

        def stop() -> None:
            insert(c, 2)
            raise KeyboardInterrupt

        shop.app.after_commit(c, stop)
        with pytest.raises(KeyboardInterrupt):
            c.commit()
        assert not c.in_transaction()
    assert shop.saved() == [1]


# --- the rest -------------------------------------------------------------------------------------
def test_flush_stores_inside_the_open_transaction(shop: Shop) -> None:
    """For tests whose outer transaction never commits: rows are there, and gone with it."""
    ran: list[int] = []
    with shop.engine.connect() as c:
        transaction = c.begin()
        with Session(c, join_transaction_mode="create_savepoint") as s:
            shop.app.publish(s, placed(1))
            JOIN.flush(s)
            shop.app.publish(s, lambda: placed(2))
            shop.app.after_commit(s, lambda: ran.append(1))
            s.commit()
            JOIN.flush(c)
            JOIN.flush(c)
        assert c.execute(text("SELECT count(*) FROM duly_outbox")).scalar() == 2
        transaction.rollback()
    with shop.engine.connect() as c:
        JOIN.flush(c)
    with Session(shop.engine) as s:
        JOIN.flush(s)
    assert (shop.stored(), ran) == ([], [])


def test_adopted_classes_have_the_layout_of_sqlalchemys(shop: Shop) -> None:
    """What the mechanism rests on: same slots, and the three public classes are all there are."""
    assert set(core._ADOPTED) == {RootTransaction, NestedTransaction, TwoPhaseTransaction}
    for theirs, ours in core._ADOPTED.items():
        assert theirs.__basicsize__ == ours.__basicsize__
        made = theirs.__new__(theirs)
        made.__class__ = ours
        assert isinstance(made, theirs)
    with shop.engine.connect() as c:
        c.begin()
        savepoint = c.begin_nested()
        assert savepoint._previous_nested is None
        assert c.begin_nested()._previous_nested is savepoint


def test_connections_are_forgotten(shop: Shop) -> None:
    alive: list[weakref.ref[Any]] = []
    for n in range(500):
        with shop.engine.connect() as c:
            c.begin()
            shop.app.publish(c, lambda c=c: placed(c.execute(text("SELECT 1")).scalar_one()))
            if n % 2:
                c.commit()
            alive.append(weakref.ref(c))
    del c
    gc.collect()
    assert [r for r in alive if r() is not None] == []


def test_a_transaction_class_that_is_not_sqlalchemys_is_refused(shop: Shop) -> None:
    class Mine(RootTransaction):
        __slots__ = ()

    with shop.engine.connect() as c:
        c.begin()
        transaction = c.get_transaction()
        assert transaction is not None
        transaction.__class__ = Mine
        with pytest.raises(ConfigurationError, match=r"cannot join a .*Mine"):
            shop.app.publish(c, placed(1))


@pytest.mark.parametrize("autocommit", [True, False])
def test_drivers_that_cannot_tell_autocommit_are_asked_by_attribute(
    shop: Shop, autocommit: bool
) -> None:
    """As the async MySQL drivers: the dialect knows no switch, the connection has one."""

    class Driver:
        dbapi_connection: Any = None

    Driver.dbapi_connection = Driver()
    Driver.autocommit = autocommit  # type: ignore[attr-defined]

    class Dialect:
        name = "other"

        def detect_autocommit_setting(self, driver: Any) -> bool:
            raise NotImplementedError

    class Connection:
        dialect, connection = Dialect(), Driver()

        def get_execution_options(self) -> dict[str, Any]:
            return {}

    if autocommit:
        with pytest.raises(ConfigurationError):
            core.refuse_autocommit(Connection())  # type: ignore[arg-type]
    else:
        core.refuse_autocommit(Connection())  # type: ignore[arg-type]
