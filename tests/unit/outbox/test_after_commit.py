"""Hooks and messages that wait for the commit."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from duly.databases.sqlite.engine import sqlite_engine
from duly.errors import ConfigurationError, PermanentError
from duly.kernel.backoff import Retry
from duly.outbox.after_commit import FailureLog, Hook, Ignore, Policy
from tests.unit.frameworks.shop import Order, Shop
from tests.unit.frameworks.store import Placed, SqliteStore


@pytest.fixture
def shop(tmp_path: Path) -> Any:
    path = tmp_path / "shop.db"
    engine = sqlite_engine(f"sqlite:///{path}")
    yield Shop(engine, SqliteStore(str(path)))
    engine.dispose()


def test_async_functions_are_refused() -> None:
    async def hook(n: int = 0) -> None: ...

    class Runner:
        async def __call__(self) -> None: ...

    for run in (hook, partial(partial(hook), 1), Runner(), Runner().__call__):
        with pytest.raises(ConfigurationError) as caught:
            Hook(run, lambda name, error: None)
        assert caught.value.code == "ASYNC_HOOK"


def test_a_coroutine_that_a_hook_returns_is_reported(shop: Shop) -> None:
    async def work() -> None: ...

    with Session(shop.engine) as s, s.begin():
        shop.app.after_commit(s, lambda: work())  # a plain function, as far as anybody can see
    [(name, error)] = shop.app.reports
    assert "<lambda>" in name
    assert isinstance(error, ConfigurationError)


@pytest.mark.parametrize("policy", [Ignore(), Retry(attempts=3), FailureLog()])
def test_unstored_message_is_sent_after_the_commit(shop: Shop, policy: Policy) -> None:
    with Session(shop.engine) as s:
        order = Order()
        s.add(order)
        shop.app.unstored(s, lambda: Placed(order_id=order.id), key=lambda: order.id, policy=policy)
        with s.begin_nested() as savepoint:
            shop.app.unstored(s, Placed(order_id=99), policy=policy)
            savepoint.rollback()
        assert shop.app.sent == []
        s.commit()
        shop.app.unstored(s, Placed(order_id=100), policy=policy)
        s.rollback()
    [(message, seen)] = shop.app.sent
    assert (message.payload, message.key, seen) == (b'{"order_id":1}', "1", policy)
    assert (shop.saved(), shop.stored(), shop.app.wakes) == ([1], [], 0)


def test_late_value_of_an_unstored_message_may_still_fail_the_commit(shop: Shop) -> None:
    with Session(shop.engine) as s:
        s.add(Order(id=1))
        shop.app.unstored(s, Placed(order_id=1), key=lambda: None, policy=Ignore())
        with pytest.raises(PermanentError):
            s.commit()
    assert (shop.saved(), shop.app.sent) == ([], [])


def test_failing_delivery_is_reported_and_the_commit_stands(shop: Shop) -> None:
    shop.app.broken = True
    ran: list[int] = []
    with Session(shop.engine) as s, s.begin():
        s.add(Order(id=1))
        shop.app.unstored(s, Placed(order_id=1), policy=Ignore())
        shop.app.after_commit(s, lambda: ran.append(1))
    [(name, error)] = shop.app.reports
    assert (name, type(error), ran, shop.saved()) == ("order.placed", ConnectionError, [1], [1])
