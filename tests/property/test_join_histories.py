"""Whatever is done with savepoints and sessions: an order is there if and only if its message is.

Each unit of work inserts order n, publishes message n and registers hook n, at one and the same
place of a random history of savepoints (ended in and out of order), nested sessions and ends.  The
database itself is the oracle: afterwards the orders, the messages and the hooks that ran are equal.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import SAWarning
from sqlalchemy.orm import Session

from duly.databases.sqlite.engine import sqlite_engine
from duly.errors import ConfigurationError
from tests.unit.frameworks.shop import Order, Shop
from tests.unit.frameworks.store import Placed, SqliteStore

MODES = ("conditional_savepoint", "rollback_only", "control_fully", "create_savepoint")
STEPS = st.tuples(
    st.sampled_from(["work", "orm", "core", "open", "open", "release", "back"]),
    st.integers(0, 3),
)
ENDS = st.sampled_from(["commit", "commit", "commit", "rollback", "close"])
SETTINGS = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class History:
    """Runs steps on a shop and counts the units of work."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.n = 0
        self.ran: list[int] = []
        self.sessions: list[Session] = []

    def publish(self, target: Any, n: int) -> None:
        if n % 2:
            self.shop.app.publish(target, Placed(order_id=n))
        else:
            self.shop.app.publish(target, lambda: Placed(order_id=n), key=lambda: n)
        self.shop.app.after_commit(target, lambda: self.ran.append(n))

    def work(self, target: Any, form: str) -> None:
        self.n += 1
        if form == "orm" and isinstance(target, Session):
            target.add(Order(id=self.n))
        else:
            target.execute(text("INSERT INTO orders (id, note) VALUES (:n, '')"), {"n": self.n})
        if form == "core" and isinstance(target, Session):
            self.publish(target.connection(), self.n)
        else:
            self.publish(target, self.n)

    def steps(self, target: Any, steps: list[tuple[str, int]]) -> None:
        """Savepoints are ended at any depth of those that are open, by the tuple's number."""
        savepoints: list[Any] = []
        for verb, place in steps:
            if verb == "open":
                savepoints.append(target.begin_nested())
            elif verb in ("release", "back"):
                if savepoints:
                    # a Session ends the inner ones too; a Connection wants them ended in order
                    at = place % len(savepoints) if isinstance(target, Session) else -1
                    getattr(savepoints[at], "commit" if verb == "release" else "rollback")()
                    del savepoints[at:]
            else:
                self.work(target, verb)

    def outcome(self) -> tuple[list[int], list[int], list[int]]:
        """The orders, the messages and the hooks that came to be."""
        saved = self.shop.saved()
        event(f"{'some' if saved else 'no'} orders")
        assert self.shop.app.reports == []
        return saved, sorted(self.shop.stored()), sorted(self.ran)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    path = tmp_path_factory.mktemp("histories") / "shop.db"
    engine = sqlite_engine(f"sqlite:///{path}", synchronous="NORMAL")
    yield Shop(engine, SqliteStore(str(path)))
    engine.dispose()


def history(shop: Shop) -> History:
    """A history on the emptied shop."""
    with shop.engine.begin() as c:
        c.execute(text("DELETE FROM orders"))
        c.execute(text("DELETE FROM duly_outbox"))
    return History(shop)


@SETTINGS
@given(st.lists(st.tuples(st.lists(STEPS, max_size=12), ENDS), min_size=1, max_size=3))
def test_session(shop: Shop, parts: list[tuple[list[tuple[str, int]], str]]) -> None:
    h = history(shop)
    with Session(h.shop.engine) as s:
        for steps, end in parts:
            h.steps(s, steps)
            getattr(s, end)()
    saved, stored, ran = h.outcome()
    assert saved == stored == ran


@SETTINGS
@given(st.lists(STEPS, max_size=14), ENDS)
def test_connection(shop: Shop, steps: list[tuple[str, int]], end: str) -> None:
    h = history(shop)
    with h.shop.engine.connect() as c:
        c.begin()
        h.steps(c, steps)
        getattr(c, end)()
    saved, stored, ran = h.outcome()
    assert saved == stored == ran


@SETTINGS
@given(
    st.sampled_from(MODES),
    st.lists(
        st.one_of(STEPS, st.tuples(st.lists(STEPS, max_size=6), ENDS)), min_size=1, max_size=8
    ),
    ENDS,
)
def test_sessions_inside_a_connection(
    shop: Shop, mode: Any, steps: list[tuple[Any, Any]], end: str
) -> None:
    """Sessions come and go on one Connection with an open transaction and savepoints of its own.

    A session that ends without a commit may leave its orders to the outer transaction; then the
    outer commit is refused, and nothing of it may be there.
    """
    h = history(shop)
    with h.shop.engine.connect() as c, warnings.catch_warnings():
        warnings.simplefilter("ignore", SAWarning)
        root = c.begin()
        savepoints: list[Any] = []
        for first, second in steps:
            if not root.is_active or any(not one.is_active for one in savepoints):
                break
            if isinstance(first, list):
                with Session(c, join_transaction_mode=mode) as s:
                    h.steps(s, first)
                    getattr(s, second)()
            elif first == "open":
                savepoints.append(c.begin_nested())
            elif first in ("work", "orm", "core"):
                h.work(c, first)
            elif savepoints:
                getattr(savepoints.pop(), "commit" if first == "release" else "rollback")()
        if root.is_active:
            try:
                getattr(root, "commit" if end == "commit" else "rollback")()
            except ConfigurationError as error:
                event("refused")
                if error.code != "SESSION_NOT_COMMITTED":
                    raise
    saved, stored, ran = h.outcome()
    assert saved == stored == ran
