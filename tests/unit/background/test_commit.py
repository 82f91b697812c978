"""After the commit, once, or never; and stored calls that run where the App consumes."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pydantic
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from duly import App, Retry, atomic
from duly.databases.sqlite.engine import sqlite_engine
from duly.errors import (
    BackgroundFullError,
    ConfigurationError,
    NotInTransactionError,
    NotSerializableError,
    UndecodableError,
)
from duly.observe import facts as f
from duly.observe.facts import Fact
from duly.outbox.failure_log import FailureScope, FailureStore
from tests.unit.background.test_threads import Gate, gate, occupied
from tests.unit.background.waiting import LIMIT_SECONDS, until
from tests.unit.frameworks.shop import Order

__all__ = ["gate"]

HELD: dict[str, Any] = {}


@pytest.fixture
def saved(engine: Engine) -> Any:
    """Gives the orders that somebody else sees."""

    def saved() -> list[int]:
        with engine.connect() as connection:
            return list(connection.execute(text("SELECT id FROM orders ORDER BY id")).scalars())

    return saved


def test_begins_when_the_commit_can_be_seen(app: App, engine: Engine, saved: Any) -> None:
    look = app.background(name="look")(saved)
    with Session(engine) as session, session.begin():
        session.add(Order(id=1))
        task = look.after(session).submit()
        assert not task.done()
    assert task.result(LIMIT_SECONDS) == [1]


@pytest.mark.parametrize("end", ["rollback", "close"])
def test_a_rollback_cancels(app: App, engine: Engine, end: str) -> None:
    look = app.background(name="look")(lambda: None)
    gc.disable()
    try:
        with Session(engine) as session:
            session.add(Order(id=1))
            task = look.after(session).submit()
            getattr(session, end)()
        assert task.cancelled()
    finally:
        gc.enable()


def test_a_savepoint_keeps_and_drops(app: App, engine: Engine) -> None:
    look = app.background(name="look")(lambda n: n)
    with Session(engine) as session, session.begin():
        with session.begin_nested():
            kept = look.after(session).submit(1)
        savepoint = session.begin_nested()
        dropped = look.after(session).submit(2)
        savepoint.rollback()
        assert dropped.cancelled()
        assert not kept.done()
    assert kept.result(LIMIT_SECONDS) == 1


async def test_on_an_async_session(app: App, engine: Engine, saved: Any, tmp_path: Path) -> None:
    @app.background()
    async def look() -> Any:
        return await asyncio.to_thread(saved)

    other = sqlite_engine(f"sqlite:///{tmp_path / 'shop.db'}", asynchronous=True)
    async with AsyncSession(other) as session, session.begin():
        session.add(Order(id=1))
        task = look.after(session).submit()
        with pytest.raises(ConfigurationError) as error:
            await task
        assert error.value.code == "WAITS_FOR_ITS_OWN_COMMIT"
    assert await task == [1]
    await other.dispose()


def test_in_a_block_on_a_raw_connection(app: App, engine: Engine) -> None:
    look = app.background(name="look")(lambda n: n)
    connection = sqlite3.connect(str(engine.url.database))
    with atomic(connection):
        with suppress(LookupError), atomic(connection) as dropped_block:
            dropped = look.after(dropped_block).submit(1)
            raise LookupError
        with atomic(connection) as inner:
            kept = look.after(connection).submit(2)
        assert dropped.cancelled()
    assert kept.result(LIMIT_SECONDS) == 2
    with suppress(LookupError), atomic(connection) as outer:
        with atomic(connection) as inner:
            lost = look.after(inner).submit(3)
        raise LookupError
    assert lost.cancelled()
    assert outer is not inner
    with pytest.raises(NotInTransactionError):
        look.after(connection).submit(4)
    connection.close()


def test_waiting_for_the_own_commit_is_refused(app: App, engine: Engine) -> None:
    look = app.background(name="look")(lambda: None)
    with Session(engine) as session, session.begin():
        task = look.after(session).submit()
        with pytest.raises(ConfigurationError) as error:
            task.result()
        assert error.value.code == "WAITS_FOR_ITS_OWN_COMMIT"
        with pytest.raises(TimeoutError):
            task.exception(0.001)
    assert task.result(LIMIT_SECONDS) is None


def test_a_worker_that_waits_does_not_begin_it_before_the_commit(
    app: App, engine: Engine, saved: Any
) -> None:
    """A worker does the work that it waits for - but not what waits for a commit."""
    look = app.background(name="look", workers=2)(saved)
    with Session(engine) as session, session.begin():
        session.add(Order(id=1))
        task = look.after(session).submit()
        waits = app.background(name="waits")(lambda: HELD["task"].result())
        HELD["task"] = task
        waiting = waits.submit()
        until(lambda: app.tasks.status()[0].running == 1)
        with pytest.raises(TimeoutError):
            waiting.result(0.05)
    assert waiting.result(LIMIT_SECONDS) == [1]


def test_outside_of_a_transaction(app: App, engine: Engine) -> None:
    look = app.background(name="look")(lambda: None)
    with engine.connect() as connection, pytest.raises(NotInTransactionError):
        look.after(connection).submit()


def test_full_after_the_commit_is_the_handles_affair(
    app: App, engine: Engine, gate: Gate, saved: Any, facts: list[Fact]
) -> None:
    function = occupied(app, gate)
    with Session(engine) as session, session.begin():
        session.add(Order(id=1))
        task = function.after(session).submit()
    assert saved() == [1]
    with pytest.raises(BackgroundFullError):
        task.result(LIMIT_SECONDS)
    assert [x.code for x in facts if isinstance(x, f.TaskFailed)] == ["BACKGROUND_FULL"]


async def test_full_on_a_loop_after_the_commit_is_deferred_aside(
    app: App, engine: Engine, gate: Gate, tmp_path: Path
) -> None:
    app.upgrade_tables()
    function = occupied(app, gate, on_full="defer")
    other = sqlite_engine(f"sqlite:///{tmp_path / 'shop.db'}", asynchronous=True)
    async with AsyncSession(other) as session, session.begin():
        session.add(Order(id=1))
        task = function.after(session).submit()
    with pytest.raises(asyncio.CancelledError):
        await task
    with engine.connect() as connection:
        stored = connection.execute(text("SELECT message_type FROM duly_outbox")).scalars().all()
    assert stored == ["shop.background.wait"]
    await other.dispose()


# --- stored ---------------------------------------------------------------------------------------
@dataclass
class Line:
    price: Decimal
    day: date


class Note(pydantic.BaseModel):
    text: str


async def settle(app: App) -> None:
    await app.run_once(timeout=40)


async def test_a_stored_call_runs_with_what_it_was_given(app: App, engine: Engine) -> None:
    seen: list[Any] = []

    @app.background()
    def work(line: Line, *more: Decimal, note: Note, untyped: Any = (1,), **rest: date) -> None:
        seen.append((line, more, note, untyped, rest))

    day = date(2026, 11, 23)
    with Session(engine) as session, session.begin():
        session.add(Order(id=1))
        work.durable(session).submit(
            Line(Decimal("1.50"), day), Decimal(2), note=Note(text="hi"), then=day
        )
    await settle(app)
    assert seen == [
        (Line(Decimal("1.50"), day), (Decimal(2),), Note(text="hi"), (1,), {"then": day})
    ]


async def test_a_stored_call_of_an_async_function_is_tried_again(app: App, engine: Engine) -> None:
    tries: list[int] = []

    @app.background(retry=Retry(attempts=3, base="10ms"))
    async def work(n: int) -> None:
        tries.append(n)
        if len(tries) < 2:
            raise ConnectionError

    with Session(engine) as session, session.begin():
        work.durable(session).submit(7)
    with Session(engine) as session:
        work.durable(session).submit(8)
        session.rollback()
    await settle(app)
    assert tries == [7, 7]


def test_a_call_that_cannot_be_stored(app: App, engine: Engine) -> None:
    function = app.background(name="f")(lambda what: None)
    with Session(engine) as session, session.begin():
        with pytest.raises(NotSerializableError):
            function.durable(session).submit(object())
        with pytest.raises(TypeError):
            function.durable(session).submit(1, 2)
        in_c = app.background(name="in_c")(min)
        with pytest.raises(NotSerializableError, match="tells nobody its parameters"):
            in_c.durable(session).submit(1, 2)


def test_a_stored_call_that_does_not_fit_any_more(app: App) -> None:
    def now(day: date) -> None: ...

    form = app.background(name="now")(now).function.form
    for arguments in ({"day": "soon"}, {"gone": 1}, {}):
        with pytest.raises(UndecodableError) as error:
            form.call(form.type(arguments=arguments))
        assert "soon" not in str(error.value)


async def test_the_failure_log_keeps_it_and_runs_it_again(app: App, engine: Engine) -> None:
    app.upgrade_tables()
    broken = [True]
    ran: list[int] = []

    @app.background(failure_log=True)
    def work(n: int) -> None:
        if broken:
            raise LookupError("secret")
        ran.append(n)

    with pytest.raises(LookupError):
        await work.submit(7)
    store = FailureStore(app.database.connect)
    until(lambda: store.count(FailureScope()) == 1)
    (line,) = store.find(FailureScope())
    assert (line.source, line.type, line.due_at) == ("background", "shop.background.work", None)
    assert line.error is not None
    assert line.error.startswith("LookupError at ")
    assert "secret" not in line.error
    broken.clear()
    from duly.outbox.operator import By

    store.act("retry", line.id, by=By("test", "now"))
    async with app.running() as running:
        async with asyncio.timeout(LIMIT_SECONDS):
            while not ran:
                await asyncio.sleep(0.02)
        await running.settled()
    assert ran == [7]


def test_arguments_for_the_failure_log_are_checked_at_once(app: App) -> None:
    function = app.background(name="f", failure_log=True)(lambda what: None)
    with pytest.raises(NotSerializableError):
        function.submit(object())


def test_a_failure_log_out_of_reach_is_told(
    app: App, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @app.background(failure_log=True)
    def work() -> None:
        raise LookupError

    monkeypatch.setattr(type(app.database), "connect", lambda _: 1 / 0)
    with pytest.raises(LookupError):
        work.submit().result(LIMIT_SECONDS)
    until(lambda: "the failure of background work is not in the failure log" in caplog.text)
