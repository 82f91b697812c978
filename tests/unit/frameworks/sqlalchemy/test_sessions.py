"""Messages and hooks follow a Session's transaction, whatever is done with it."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import IntegrityError, PendingRollbackError, ResourceClosedError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from duly.errors import ConfigurationError, DulyError, NotInTransactionError, PermanentError
from tests.unit.frameworks.shop import Order, Shop
from tests.unit.frameworks.store import Placed, SqliteStore, TestApp


def placed(n: int) -> Placed:
    return Placed(order_id=n)


# --- the plain ways -------------------------------------------------------------------------------
def test_order_and_message_commit_together(shop: Shop) -> None:
    with Session(shop.engine) as s, s.begin():
        s.add(Order(id=1))
        shop.app.publish(s, placed(1))
        assert shop.app.wakes == 0
    assert (shop.saved(), shop.stored(), shop.app.wakes) == ([1], [1], 1)


def test_publish_returns_the_id_that_is_stored(shop: Shop) -> None:
    with Session(shop.engine) as s, s.begin():
        first = shop.app.publish(s, placed(1))
        second = shop.app.publish(s, lambda: placed(2))
    with shop.engine.connect() as c:
        assert list(
            c.execute(text("SELECT message_id FROM duly_outbox ORDER BY id")).scalars()
        ) == [first, second]


def test_publish_does_no_io_and_autobegins(shop: Shop) -> None:
    with Session(shop.engine) as s:
        with shop.statements() as seen:
            shop.app.publish(s, placed(1))
        assert s.in_transaction()
        assert seen == []
        s.commit()
    assert shop.stored() == [1]


def test_message_alone_gets_a_connection_and_commits(shop: Shop) -> None:
    """The session ran no SQL, so without us its commit would touch no connection at all."""
    with Session(shop.engine) as s, s.begin():
        shop.app.publish(s, placed(7))
    assert shop.stored() == [7]


def test_late_values_see_the_flushed_keys(shop: Shop) -> None:
    with Session(shop.engine) as s, s.begin():
        order = Order(note="x")
        s.add(order)
        shop.app.publish(s, lambda: placed(order.id), key=lambda: order.id)
        assert order.id is None
    assert shop.stored() == shop.saved() == [1]
    with shop.engine.connect() as c:
        assert c.execute(text("SELECT key FROM duly_outbox")).scalar() == "1"


def test_late_value_may_query_add_and_publish(shop: Shop) -> None:
    """flush -> late value adds an object and publishes a later one -> flush -> that is resolved ->
    INSERT.
    """
    with Session(shop.engine) as s, s.begin():
        s.add(Order(id=5))

        def late() -> Placed:
            second = Order(id=s.execute(text("SELECT max(id) + 1 FROM orders")).scalar_one())
            s.add(second)
            shop.app.publish(s, lambda: placed(second.id))
            with s.begin_nested():
                shop.app.publish(s, placed(50))
            return placed(5)

        shop.app.publish(s, late)
    assert shop.saved() == [5, 6]
    assert shop.stored() == [5, 6, 50]


def test_an_object_is_frozen_when_it_is_published(shop: Shop) -> None:
    from dataclasses import dataclass

    @dataclass
    class Mutable:
        order_id: int

    shop.app.outlet.registry.declare(Mutable, "order.mutable", kind="event", topic="orders")
    value = Mutable(1)
    with Session(shop.engine) as s, s.begin():
        shop.app.publish(s, value)
        value.order_id = 99
    assert shop.stored() == [1]


def test_messages_are_the_last_statement_and_only_one(shop: Shop) -> None:
    with Session(shop.engine) as s:
        s.execute(text("SELECT 1"))
        shop.app.publish(s, placed(0))
        s.commit()  # the database is known from here on
        with shop.statements() as seen:
            for n in range(1, 101):
                shop.app.publish(s, lambda n=n: placed(n), key="k")
            s.add(Order(id=1))
            s.commit()
    assert seen == ["INSERT INTO orders", "INSERT INTO duly_outbox"]
    assert shop.stored() == list(range(101))


def test_without_messages_there_is_no_statement(shop: Shop) -> None:
    with Session(shop.engine) as s:
        shop.app.publish(s, placed(0))
        s.commit()
        with shop.statements() as seen:
            s.add(Order(id=1))
            s.commit()
            s.commit()  # an empty one
    assert seen == ["INSERT INTO orders"]


# --- rolled back ----------------------------------------------------------------------------------
@pytest.mark.parametrize("end", ["rollback", "close", "raise", "reset", "invalidate"])
def test_nothing_is_stored_when_the_session_does_not_commit(shop: Shop, end: str) -> None:
    ran: list[int] = []
    s = Session(shop.engine)
    s.add(Order(id=1))
    s.flush()
    shop.app.publish(s, placed(1))
    shop.app.after_commit(s, lambda: ran.append(1))
    if end == "raise":
        with pytest.raises(ZeroDivisionError), s, s.begin_nested():
            raise ZeroDivisionError
    else:
        getattr(s, end)()
    shop.app.publish(s, placed(2))  # the same session goes on, with a clean buffer
    s.commit()
    assert (shop.saved(), shop.stored(), ran) == ([], [2], [])


def test_session_is_reused_after_commit(shop: Shop) -> None:
    with Session(shop.engine) as s:
        for n in (1, 2, 3):
            shop.app.publish(s, placed(n))
            s.commit()
            shop.app.publish(s, placed(-n))
            s.rollback()
    assert shop.stored() == [1, 2, 3]


def test_flush_error_rolls_everything_back(shop: Shop) -> None:
    """The flush of the commit fails; publishing is refused until the rollback; then the session
    works again.
    """
    with Session(shop.engine) as s:
        s.add(Order(id=1))
        s.commit()
        s.expunge_all()
        shop.app.publish(s, placed(2))
        s.execute(text("INSERT INTO orders (id, note) VALUES (2, '')"))
        s.add(Order(id=1))
        with pytest.raises(IntegrityError):
            s.commit()
        assert s.in_transaction()
        with pytest.raises(NotInTransactionError):
            shop.app.publish(s, placed(3))
        with pytest.raises(NotInTransactionError):
            shop.app.after_commit(s, lambda: None)
        with pytest.raises(PendingRollbackError):
            s.commit()
        s.rollback()
        shop.app.publish(s, placed(4))
        s.commit()
    assert (shop.saved(), shop.stored()) == ([1], [4])


# --- savepoints -----------------------------------------------------------------------------------
def test_savepoints_keep_and_drop(shop: Shop) -> None:
    """publish 1; SP a {2; SP b {3} rolled back; SP c {4} released} released; SP d {5; SP e {6}
    released} rolled back.
    """
    with Session(shop.engine) as s, s.begin():
        shop.app.publish(s, placed(1))
        with s.begin_nested():
            shop.app.publish(s, placed(2))
            b = s.begin_nested()
            shop.app.publish(s, placed(3))
            b.rollback()
            with s.begin_nested():
                shop.app.publish(s, placed(4))
        d = s.begin_nested()
        shop.app.publish(s, placed(5))
        with s.begin_nested():
            shop.app.publish(s, placed(6))
        d.rollback()
        shop.app.publish(s, placed(7))
    assert shop.stored() == [1, 2, 4, 7]


@pytest.mark.parametrize("with_sql", [False, True])
def test_savepoints_with_and_without_sql(shop: Shop, with_sql: bool) -> None:
    with Session(shop.engine) as s, s.begin():
        for n, keep in ((1, True), (2, False), (3, True)):
            savepoint = s.begin_nested()
            if with_sql:
                s.execute(text("INSERT INTO orders (id, note) VALUES (:n, '')"), {"n": n})
            shop.app.publish(s, placed(n))
            if keep:
                savepoint.commit()
            else:
                savepoint.rollback()
    assert shop.stored() == [1, 3]
    assert shop.saved() == ([1, 3] if with_sql else [])


def test_released_savepoint_of_a_rolled_back_transaction(shop: Shop) -> None:
    """SP released -> after_commit fires in SQLAlchemy -> outer rollback: neither message nor
    hook.
    """
    ran: list[int] = []
    with Session(shop.engine) as s:
        with s.begin_nested():
            s.add(Order(id=1))
            shop.app.publish(s, placed(1))
            shop.app.after_commit(s, lambda: ran.append(1))
        s.rollback()
        s.commit()
    assert (shop.saved(), shop.stored(), ran) == ([], [], [])


def test_exception_inside_a_savepoint_only_drops_its_messages(shop: Shop) -> None:
    with Session(shop.engine) as s, s.begin():
        s.add(Order(id=1))
        shop.app.publish(s, placed(1))
        with pytest.raises(IntegrityError), s.begin_nested():
            shop.app.publish(s, placed(2))
            s.execute(text("INSERT INTO orders (id, note) VALUES (1, '')"))
        shop.app.publish(s, placed(3))
    assert (shop.saved(), shop.stored()) == ([1], [1, 3])


def test_commit_of_the_root_over_an_open_savepoint(shop: Shop) -> None:
    """root.commit() with SP open: SQLAlchemy fires before_commit once, for both; the items are
    taken at the Core commit.
    """
    with Session(shop.engine) as s:
        root = s.begin()
        s.add(Order(id=1))
        s.begin_nested()
        shop.app.publish(s, placed(1))
        shop.app.publish(s, lambda: placed(2))
        root.commit()
    assert (shop.saved(), shop.stored(), shop.app.wakes) == ([1], [1, 2], 1)


def test_late_value_that_needs_sql_too_late_is_a_coded_error(shop: Shop) -> None:
    """As above, but the late value queries the session, which is inside its commit by then."""
    with Session(shop.engine) as s:
        root = s.begin()
        s.execute(text("INSERT INTO orders (id, note) VALUES (1, '')"))
        s.begin_nested()
        shop.app.publish(s, lambda: placed(s.execute(text("SELECT 1")).scalar_one()))
        with pytest.raises(ConfigurationError) as caught:
            root.commit()
        assert caught.value.code == "TOO_LATE_FOR_SQL"
        s.rollback()
    assert (shop.saved(), shop.stored()) == ([], [])


# --- other sessions -------------------------------------------------------------------------------
def test_scoped_sessions_and_factories(shop: Shop) -> None:
    class Mine(Session):
        pass

    scoped = scoped_session(sessionmaker(shop.engine, class_=Mine))
    shop.app.publish(scoped, placed(1))
    scoped.add(Order(id=1))
    scoped.commit()
    shop.app.publish(scoped, placed(2))
    scoped.remove()
    with sessionmaker(shop.engine).begin() as s:
        shop.app.publish(s, placed(3))
    with sessionmaker(shop.engine, autobegin=False)() as s:
        with pytest.raises(NotInTransactionError):
            shop.app.publish(s, placed(4))
        with s.begin():
            shop.app.publish(s, placed(5))
    assert shop.stored() == [1, 3, 5]


BEFORE_ANY_APP = """
import sys
from sqlalchemy.orm import Session
from duly.databases.sqlite.engine import sqlite_engine
from tests.unit.frameworks.shop import Order, Shop
from tests.unit.frameworks.store import Placed, SqliteStore, TestApp

path = sys.argv[1]
engine = sqlite_engine(f"sqlite:///{path}")
sessions = [Session(engine) for _ in range(2)]
s = sessions[0]
s.add(Order(id=2))
s.flush()
savepoint = s.begin_nested()
assert "duly.frameworks.sqlalchemy" not in sys.modules
app = TestApp(SqliteStore(path))
app.publish(s, lambda: Placed(order_id=2))
savepoint.commit()
s.commit()
app.publish(sessions[1], Placed(order_id=3))
sessions[1].commit()
"""


def test_sessions_made_before_any_app(shop: Shop) -> None:
    """A new process; its session is inside a savepoint when duly hears of it for the first time."""
    assert isinstance(shop.store, SqliteStore)
    done = subprocess.run(
        [sys.executable, "-c", BEFORE_ANY_APP, shop.store.path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stderr == ""
    assert (shop.saved(), shop.stored()) == ([2], [2, 3])


def test_two_apps_on_one_session_keep_the_order_of_each(shop: Shop) -> None:
    other = TestApp(shop.store, name="other")
    with Session(shop.engine) as s, s.begin():
        shop.app.publish(s, placed(1))
        other.publish(s, placed(10))
        shop.app.publish(s, placed(2))
        other.publish(s, placed(20))
    assert shop.stored() == [1, 2, 10, 20]
    assert (shop.app.wakes, other.wakes) == (1, 1)


def test_publish_on_the_connection_inside_a_mapper_event(shop: Shop) -> None:
    """after_insert gives a Connection, in the middle of the session's flush; order of publishing is
    kept.
    """

    def inserted(mapper: Any, connection: Any, order: Order) -> None:
        shop.app.publish(connection, placed(order.id))

    event.listen(Order, "after_insert", inserted)
    try:
        with Session(shop.engine) as s, s.begin():
            shop.app.publish(s, placed(0))
            s.add(Order(id=1))
            with s.begin_nested() as savepoint:
                s.add(Order(id=2))
                s.flush()
                savepoint.rollback()
            shop.app.publish(s, placed(3))
    finally:
        event.remove(Order, "after_insert", inserted)
    assert (shop.saved(), shop.stored()) == ([1], [0, 1, 3])


def test_publish_in_the_users_own_before_commit(shop: Shop) -> None:
    """A listener registered after ours publishes after our hand-over: a straggler, taken at the
    Core commit.
    """
    with Session(shop.engine) as s:
        s.add(Order(id=1))
        shop.app.publish(s, placed(1))
        event.listen(s, "before_commit", lambda session: shop.app.publish(session, placed(2)))
        s.commit()
    assert shop.stored() == [1, 2]


def test_a_message_left_over_raises(shop: Shop) -> None:
    """A hook-only session has no connection; a late listener publishes: nothing would ever store
    it.
    """
    with Session(shop.engine) as s:
        shop.app.after_commit(s, lambda: None)
        event.listen(s, "before_commit", lambda session: shop.app.publish(session, placed(2)))
        with pytest.raises(DulyError) as caught:
            s.commit()
        assert caught.value.code == "MESSAGES_LEFT_OVER"
    assert shop.stored() == []


def test_publish_after_the_commit_is_refused(shop: Shop) -> None:
    refused: list[str] = []

    def after(session: Session) -> None:
        try:
            shop.app.publish(session, placed(9))
        except NotInTransactionError as error:
            refused.append(error.code)

    with Session(shop.engine) as s:
        event.listen(s, "after_commit", after)
        shop.app.publish(s, placed(1))
        s.commit()
    with Session(shop.engine) as s, s.begin():
        s.commit()
        with pytest.raises(NotInTransactionError):
            shop.app.publish(s, placed(2))
    closed = Session(shop.engine, close_resets_only=False)
    closed.close()
    with pytest.raises(NotInTransactionError):
        shop.app.publish(closed, placed(3))
    assert (refused, shop.stored()) == (["NOT_IN_TRANSACTION"], [1])


# --- errors in late values ------------------------------------------------------------------------
def test_error_in_a_late_value_fails_the_commit(shop: Shop) -> None:
    with Session(shop.engine) as s:
        s.add(Order(id=1))
        shop.app.publish(s, lambda: placed(1 // 0))
        with pytest.raises(ZeroDivisionError):
            s.commit()
        with pytest.raises(ZeroDivisionError):
            s.commit()  # swallowing it does not help
        s.rollback()
        shop.app.publish(s, placed(2))
        s.commit()
    assert (shop.saved(), shop.stored()) == ([], [2])


def test_key_that_becomes_none_fails_the_commit(shop: Shop) -> None:
    with Session(shop.engine) as s:
        s.add(Order(id=1))
        shop.app.publish(s, placed(1), key=lambda: None)
        with pytest.raises(PermanentError) as caught:
            s.commit()
    assert caught.value.code == "KEY_IS_NONE"
    assert (shop.saved(), shop.stored()) == ([], [])


def test_endless_publishing_is_ended(shop: Shop) -> None:
    with Session(shop.engine) as s:

        def again() -> Placed:
            shop.app.publish(s, again)
            return placed(1)

        shop.app.publish(s, again)
        with pytest.raises(ConfigurationError) as caught:
            s.commit()
    assert caught.value.code == "PUBLISH_NEVER_ENDS"


# --- refused databases ----------------------------------------------------------------------------
def test_somebody_elses_database_is_refused(shop: Shop, tmp_path: Any) -> None:
    other = TestApp(SqliteStore(str(tmp_path / "other.db")))
    with Session(shop.engine) as s:
        s.add(Order(id=1))
        other.publish(s, placed(1))
        with pytest.raises(ConfigurationError) as caught:
            s.commit()
    assert caught.value.code == "WRONG_DATABASE"
    assert shop.saved() == []


def test_the_database_is_asked_once_per_engine(shop: Shop) -> None:
    for n in range(3):
        with Session(shop.engine) as s, s.begin():
            shop.app.publish(s, placed(n))
    with Session(shop.engine.execution_options(x=1)) as s, s.begin():
        shop.app.publish(s, placed(3))
    assert shop.store.admissions == 1


# --- joined to an outer transaction ---------------------------------------------------------------
MODES = ["conditional_savepoint", "rollback_only", "control_fully", "create_savepoint"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("outer", ["commit", "rollback"])
@pytest.mark.parametrize("inner", ["commit", "rollback", "close"])
def test_joined_session(shop: Shop, mode: Any, outer: str, inner: str) -> None:
    """Session on a Connection with an open transaction; first the session ends, then the outer
    transaction.

    Whatever became of the order must have become of its message and its hook; where the session's
    own end leaves that open (closed without a commit, its row kept by the outer transaction), the
    outer commit raises and keeps neither.
    """
    ran: list[int] = []
    with shop.engine.connect() as c:
        transaction = c.begin()
        s = Session(c, join_transaction_mode=mode)
        s.add(Order(id=1))
        shop.app.publish(s, lambda: placed(1))
        shop.app.after_commit(s, lambda: ran.append(1))
        s.flush()
        getattr(s, inner)()
        s.close()
        assert ran == ([1] if mode == "control_fully" and inner == "commit" else [])
        if transaction.is_active:
            if (inner, outer) == ("close", "commit") and mode in MODES[:2]:
                with pytest.raises(ConfigurationError) as caught:
                    transaction.commit()
                assert caught.value.code == "SESSION_NOT_COMMITTED"
            else:
                getattr(transaction, outer)()
    assert shop.saved() == shop.stored() == ran
    expected = inner == "commit" and (outer == "commit" or mode == "control_fully")
    assert bool(ran) is expected


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("first", ["flush", "publish"])
def test_outer_commit_while_the_session_was_never_committed(
    shop: Shop, mode: Any, first: str
) -> None:
    """The outer transaction would keep the flushed order; its message is still in the session.

    Refused, and both are gone - whether the session had its connection before it published or
    after.
    """
    with shop.engine.connect() as c:
        transaction = c.begin()
        s = Session(c, join_transaction_mode=mode)
        s.add(Order(id=1))
        if first == "flush":
            s.flush()
        shop.app.publish(s, placed(1))
        s.flush()
        with pytest.raises(ConfigurationError) as caught:
            transaction.commit()
        assert caught.value.code == "SESSION_NOT_COMMITTED"
        s.close()
    assert shop.saved() == shop.stored() == []


def test_session_joined_inside_a_savepoint_of_the_connection(shop: Shop) -> None:
    """Outer SP rolled back after the session committed into it: message and hook go with it; the
    next one stays.
    """
    ran: list[int] = []
    with shop.engine.connect() as c, c.begin():
        for n, keep in ((1, False), (2, True)):
            savepoint = c.begin_nested()
            with Session(c) as s:
                s.add(Order(id=n))
                shop.app.publish(s, placed(n))
                shop.app.after_commit(s, lambda n=n: ran.append(n))
                s.commit()
            assert ran == []
            if keep:
                savepoint.commit()
            else:
                savepoint.rollback()
    assert shop.saved() == shop.stored() == ran == [2]


def test_hook_of_a_joined_session_without_sql_waits_for_the_outer_commit(shop: Shop) -> None:
    ran: list[int] = []
    with shop.engine.connect() as c:
        with c.begin():
            with Session(c) as s:
                shop.app.after_commit(s, lambda: ran.append(1))
                s.commit()
            assert ran == []
        assert ran == [1]


# --- after commit ---------------------------------------------------------------------------------
def test_hooks_run_in_order_after_the_commit(shop: Shop) -> None:
    seen: list[Any] = []
    with Session(shop.engine) as s:
        s.add(Order(id=1))
        shop.app.after_commit(s, lambda: seen.append(("a", shop.saved())))
        with s.begin_nested():
            shop.app.after_commit(s, lambda: seen.append("b"))
        shop.app.after_commit(s, lambda: seen.append("c"))
        assert seen == []
        s.commit()
        s.commit()
    assert seen == [("a", [1]), "b", "c"]


def test_hook_of_an_empty_transaction_runs(shop: Shop) -> None:
    seen: list[int] = []
    with Session(shop.engine) as s, shop.statements() as statements:
        shop.app.after_commit(s, lambda: seen.append(1))
        s.commit()
    assert (seen, statements) == ([1], [])


def test_raising_hook_is_reported_and_the_next_one_runs(shop: Shop) -> None:
    seen: list[int] = []

    def bad() -> None:
        raise ValueError("hook")

    with Session(shop.engine) as s, s.begin():
        s.add(Order(id=1))
        shop.app.after_commit(s, bad)
        shop.app.after_commit(s, lambda: seen.append(2))
    assert (shop.saved(), seen) == ([1], [2])
    [(name, error)] = shop.app.reports
    assert name.endswith("bad")
    assert isinstance(error, ValueError)


@pytest.mark.parametrize("form", ["with", "commit"])
def test_hook_may_use_the_session(shop: Shop, form: str) -> None:
    """Read an expired attribute, write, publish: the hook has a transaction of its own, committed
    when it returns.
    """
    seen: list[int] = []

    def hook() -> None:
        seen.append(order.id)  # expired by the commit: a SELECT
        s.add(Order(id=2))
        shop.app.publish(s, placed(2))

    with Session(shop.engine) as s:
        order = Order(id=1)
        if form == "with":
            with s.begin():
                s.add(order)
                shop.app.after_commit(s, hook)
        else:
            s.add(order)
            shop.app.after_commit(s, hook)
            s.commit()
        assert not s.in_transaction()
        with s.begin():
            s.add(Order(id=3))
    assert shop.app.reports == []
    assert (seen, shop.saved(), shop.stored()) == ([1], [1, 2, 3], [2])


def test_hook_may_begin_and_register_again(shop: Shop) -> None:
    seen: list[str] = []

    def hook() -> None:
        with s.begin():
            s.add(Order(id=2))
            shop.app.after_commit(s, lambda: seen.append("inner"))
        seen.append("outer")

    with Session(shop.engine) as s:
        with s.begin():
            s.add(Order(id=1))
            shop.app.after_commit(s, hook)
        with pytest.raises(ZeroDivisionError), s.begin():
            s.add(Order(id=3))
            raise ZeroDivisionError
    assert (seen, shop.saved(), shop.app.reports) == (["inner", "outer"], [1, 2], [])


def test_work_of_a_raising_hook_is_rolled_back(shop: Shop) -> None:
    def hook() -> None:
        s.add(Order(id=2))
        s.flush()
        shop.app.publish(s, placed(2))
        raise ValueError

    with Session(shop.engine) as s, s.begin():
        shop.app.after_commit(s, hook)
        shop.app.after_commit(s, lambda: s.add(Order(id=3)))
        s.add(Order(id=1))
    assert (shop.saved(), shop.stored()) == ([1, 3], [])
    assert len(shop.app.reports) == 1


def test_hook_on_the_session_is_not_run_when_the_commit_fails(shop: Shop) -> None:
    """A deferred foreign key is only checked by COMMIT itself: INSERT message ok, COMMIT fails,
    nothing is left.
    """
    ran: list[int] = []
    with shop.engine.begin() as c:
        c.execute(
            text(
                "CREATE TABLE line (o INTEGER REFERENCES orders(id) DEFERRABLE INITIALLY DEFERRED)"
            )
        )
    with Session(shop.engine) as s:
        s.execute(text("INSERT INTO line VALUES (77)"))
        shop.app.publish(s, placed(1))
        shop.app.after_commit(s, lambda: ran.append(1))
        with pytest.raises(IntegrityError):
            s.commit()
        s.rollback()
        shop.app.publish(s, placed(2))
        s.commit()
    assert (shop.stored(), ran, shop.app.wakes) == ([2], [], 1)


# --- memory ---------------------------------------------------------------------------------------
def test_sessions_and_buffers_are_forgotten(shop: Shop) -> None:
    """10,000 sessions, abandoned in every state, with closures that hold the session: nothing is
    kept.
    """
    with Session(shop.engine) as s, s.begin():
        shop.app.publish(s, placed(0))

    class Witness:
        pass

    alive: list[weakref.ref[Any]] = []
    for n in range(10_000):
        s = Session(shop.engine)
        witness = Witness()
        shop.app.publish(s, lambda s=s, w=witness: placed(len(s.new)))
        if n % 3 == 0:
            s.begin_nested()
            shop.app.after_commit(s, lambda s=s: s.close())
        if n % 3 == 1:
            s.rollback()
        if n % 1000 == 0:
            alive += [weakref.ref(s), weakref.ref(witness)]
        if n == 4999:
            gc.collect()
            before = sys.getallocatedblocks()
    del s, witness
    gc.collect()
    assert sys.getallocatedblocks() - before < 1000
    assert [r for r in alive if r() is not None] == []
    assert shop.stored() == [0]


def test_closed_session_holds_nothing(shop: Shop) -> None:
    s = Session(shop.engine)
    shop.app.publish(s, placed(1))
    s.commit()
    transaction = s.begin()
    assert "_duly_frame" not in vars(transaction)
    s.close()
    with pytest.raises(ResourceClosedError):
        transaction.commit()


def test_publish_from_a_savepoint_inside_the_last_flush(shop: Shop) -> None:
    """before_flush opens a savepoint and publishes; nothing was published when the commit began."""

    def before(session: Session, context: Any, instances: Any) -> None:
        with session.begin_nested():
            shop.app.publish(session, lambda: placed(1))

    with Session(shop.engine) as s:
        s.add(Order(id=1))
        event.listen(s, "before_flush", before)
        s.commit()
    assert (shop.saved(), shop.stored()) == ([1], [1])


@pytest.mark.parametrize("early", [True, False])
def test_late_values_that_change_objects_in_the_last_flush(shop: Shop, early: bool) -> None:
    """after_flush publishes a late value that adds an object, whose flush publishes again.

    With a message before the commit, we flush and resolve in turns, and find out that it never
    ends.  Without one the value comes after the last flush, and its object would stay behind.
    """
    with Session(shop.engine) as s:

        def late() -> Placed:
            s.add(Order())
            return placed(1)

        event.listen(s, "after_flush", lambda session, context: shop.app.publish(session, late))
        s.add(Order())
        if early:
            shop.app.publish(s, placed(0))
        with pytest.raises(ConfigurationError) as caught:
            s.commit()
    assert caught.value.code == ("PUBLISH_NEVER_ENDS" if early else "TOO_LATE_FOR_SQL")
    assert (shop.saved(), shop.stored()) == ([], [])
