"""The workers of a handler: every job ends once, whatever happens to it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from duly.errors import DatabaseUnavailableError
from duly.inbox import crew as crews
from duly.inbox.context import ConsumeContext, Job
from duly.inbox.crew import Task, crew_of
from duly.inbox.ending import End, Ending
from duly.inbox.handlers import Handler, HandlerRegistry
from duly.inbox.identity import Identity
from duly.kernel.backoff import Retry
from duly.message import Event, Message, Registry
from duly.observe.hooks import Hooks

RETRY = Ending(End.RETRY, "ValueError: raised at x.py:1")


class Placed(Event, name="order.placed", topic="orders"):
    order_id: int


class NoDesk:
    """Keeps what it was told to store. error: of the database."""

    error: Exception | None = None
    stored: ClassVar[list[Any]] = []
    opened = 0

    def __init__(self, database: Any, *, limit_seconds: float, turn: Any) -> None:
        self.desk = self
        type(self).opened += 1

    def run(self, steps: Any) -> None:
        if self.error is not None:
            raise self.error
        type(self).stored += list(steps)

    async def call(self, function: Any) -> Any:
        return function()

    async def aclose(self) -> None: ...

    def close(self) -> Any:
        return self.aclose()


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> type[NoDesk]:
    class Closes(NoDesk):
        def close(self) -> None:  # type: ignore[override]
            return None

    NoDesk.error, NoDesk.stored, NoDesk.opened = None, [], 0
    monkeypatch.setattr(crews, "Desk", Closes)
    monkeypatch.setattr(crews, "AsyncDesk", NoDesk)
    monkeypatch.setattr(crews, "store", lambda unhandled: list(unhandled))
    return NoDesk


def handler_of(*, is_async: bool, **options: Any) -> tuple[ConsumeContext, Handler]:
    registry = Registry()
    handlers = HandlerRegistry(registry)

    def plain(event: Placed) -> None: ...

    async def coloured(event: Placed) -> None: ...

    handlers.on(Placed, group="sales", **options)(coloured if is_async else plain)
    context = ConsumeContext(
        database=None,  # type: ignore[arg-type]
        registry=registry,
        handlers=handlers,
        outlet=None,  # type: ignore[arg-type]
        hooks=Hooks(),
        deadlines=None,  # type: ignore[arg-type]
        workers=2,
    )
    return context, handlers.of_group("sales")[0]


class Told:
    """Waits for endings, which may come from any thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, endings: Any) -> None:
        self.ends: list[list[Ending]] = []
        self.began = threading.Semaphore(0)

        def run(context: Any, desk: Any, job: Job) -> list[Ending]:
            self.began.release()
            return list(endings(job)) if callable(endings) else list(endings)

        async def run_async(context: Any, desk: Any, job: Job) -> list[Ending]:
            return run(context, desk, job)

        monkeypatch.setattr(crews, "run", run)
        monkeypatch.setattr(crews, "run_async", run_async)

    def task(self, handler: Handler, *, stores: bool = True) -> Task:
        message = Message("1", "order.placed", "event", "orders", None, b"{}", {})
        job = Job(handler, [message], [Identity("sales", handler.name, "1")])
        return Task(job, self.done, stores)

    def done(self, job: Job, endings: Sequence[Ending]) -> None:
        self.ends.append(list(endings))

    async def until(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.ends) < count:
                await asyncio.sleep(0.002)


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_failure_is_stored_with_the_very_time_that_is_told(
    monkeypatch: pytest.MonkeyPatch, desk: type[NoDesk], is_async: bool
) -> None:
    context, handler = handler_of(is_async=is_async, retry=Retry(attempts=2, base="10s", max="10s"))
    told = Told(monkeypatch, [RETRY])
    crew = crew_of(context, handler)
    crew.submit(told.task(handler))
    await told.until(1)
    crew.stop()
    assert await crew.join(10)
    [[ending]], [stored] = told.ends, desk.stored
    assert stored.ending == ending
    assert 5 <= ending.due_in_seconds <= 10


@pytest.mark.parametrize("is_async", [False, True])
async def test_what_cannot_be_stored_goes_back_to_the_broker(
    monkeypatch: pytest.MonkeyPatch, desk: type[NoDesk], is_async: bool
) -> None:
    context, handler = handler_of(is_async=is_async)
    desk.error = DatabaseUnavailableError("gone")
    told = Told(monkeypatch, [RETRY])
    crew = crew_of(context, handler)
    crew.submit(told.task(handler))
    await told.until(1)
    crew.submit(told.task(handler, stores=False))
    await told.until(2)
    crew.stop()
    assert await crew.join(10)
    assert [(one.end, one.error.partition(":")[0]) for (one,) in told.ends] == [
        (End.AGAIN, "DATABASE_UNAVAILABLE"),
        (End.RETRY, "ValueError"),
    ]


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_fault_of_ours_ends_the_job_and_not_the_worker(
    monkeypatch: pytest.MonkeyPatch, desk: type[NoDesk], is_async: bool
) -> None:
    context, handler = handler_of(is_async=is_async, concurrency=1)

    def endings(job: Job) -> list[Ending]:
        if not told.ends:
            raise KeyError("bug")
        return [Ending(End.DONE)]

    told = Told(monkeypatch, endings)
    crew = crew_of(context, handler)
    crew.submit(told.task(handler))
    await told.until(1)
    crew.submit(told.task(handler))
    await told.until(2)
    crew.stop()
    assert await crew.join(10)
    assert [one.end for (one,) in told.ends] == [End.AGAIN, End.DONE]
    assert told.ends[0][0].error.startswith("KeyError")


@pytest.mark.parametrize("is_async", [False, True])
async def test_what_was_not_begun_is_given_back_and_nothing_starts_before_the_first_job(
    monkeypatch: pytest.MonkeyPatch, desk: type[NoDesk], is_async: bool
) -> None:
    context, handler = handler_of(is_async=is_async)
    told = Told(monkeypatch, [Ending(End.DONE)])
    idle = crew_of(context, handler)
    assert await idle.join(1)
    assert desk.opened == 0
    queued = [told.task(handler) for _ in range(3)]
    crew = crew_of(
        context, handler_of(is_async=True)[1]
    )  # its tasks begin with the loop's next turn
    for task in queued:
        crew.submit(task)
    assert crew.stop() == queued
    assert await crew.join(10)
    assert told.ends == []
