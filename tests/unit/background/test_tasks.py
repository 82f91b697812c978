"""Tasks: async functions only, on the caller's loop, cut off in place, never lost with a loop."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from contextlib import suppress
from typing import Any

import pytest

from duly import App
from duly.errors import (
    BackgroundClosedError,
    BackgroundFullError,
    BackgroundTimeoutError,
    ConfigurationError,
)
from duly.observe import facts as f
from duly.observe.facts import Fact
from tests.unit.background.waiting import LIMIT_SECONDS, until

user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")


async def double(n: int) -> int:
    await asyncio.sleep(0)
    return 2 * n


async def test_runs_on_the_callers_loop(app: App) -> None:
    @app.background()
    async def where() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    assert await where() is asyncio.get_running_loop()
    assert await where.submit() is asyncio.get_running_loop()
    assert app.tasks.status()[0].executor == "tasks"


def test_runs_on_a_loop_of_the_pool_for_threads(app: App) -> None:
    function = app.background()(double)
    assert [function.submit(n).result(LIMIT_SECONDS) for n in range(3)] == [0, 2, 4]
    assert app.tasks.drain() == (0, 0, 0)
    assert function.submit(4).result(LIMIT_SECONDS) == 8


@pytest.mark.parametrize(
    ("executor", "function"), [("tasks", lambda: None), ("threads", double)], ids=["plain", "async"]
)
def test_the_wrong_executor_is_refused(app: App, executor: Any, function: Any) -> None:
    with pytest.raises(ConfigurationError) as error:
        app.background(executor=executor, name="f")(function)
    assert error.value.code == "BACKGROUND_EXECUTOR"


async def test_bounded(app: App) -> None:
    most = now = 0

    @app.background(workers=3, queue=20)
    async def work() -> None:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.002)
        now -= 1

    tasks = [work.submit() for _ in range(23)]
    with pytest.raises(BackgroundFullError):
        work.submit()
    await asyncio.gather(*tasks)
    assert most == 3


async def test_asubmit_waits_for_a_place(app: App) -> None:
    gate = asyncio.Event()
    function = app.background(workers=1, queue=0, on_full="block", name="wait")(gate.wait)
    hasty = app.background(name="hasty", on_full="block", full_timeout="20ms")(gate.wait)
    function.submit()
    with pytest.raises(BackgroundFullError):
        function.submit()  # it would block
    with pytest.raises(BackgroundFullError, match="no place in time"):
        await hasty.asubmit()
    asyncio.get_running_loop().call_later(0.02, gate.set)
    assert await (await function.asubmit())


async def test_nested_submits_do_not_deadlock(app: App) -> None:
    @app.background(workers=2, queue=1000)
    async def fibonacci(n: int) -> int:
        if n < 2:
            return n
        one, two = fibonacci.submit(n - 1), fibonacci.submit(n - 2)
        return await one + await two

    async with asyncio.timeout(LIMIT_SECONDS):
        assert await fibonacci.submit(10) == 55


async def test_a_call_that_finds_its_own_pool_full_runs_it(app: App) -> None:
    @app.background(workers=1, queue=0, on_full="block")
    async def down(n: int) -> int:
        return 0 if n == 0 else 1 + await (await down.asubmit(n - 1))

    async with asyncio.timeout(LIMIT_SECONDS):
        assert await down.submit(20) == 20


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_what_ends_loops_elsewhere_ends_none_here(app: App, kind: type[BaseException]) -> None:
    @app.background()
    async def leave() -> None:
        raise kind

    for _ in range(2):
        assert isinstance(leave.submit().exception(LIMIT_SECONDS), kind)


async def test_a_timeout_cuts_off_in_place(app: App, facts: list[Fact]) -> None:
    ended = asyncio.Event()

    @app.background(timeout="20ms")
    async def slow() -> None:
        try:
            await asyncio.sleep(LIMIT_SECONDS)
        finally:
            ended.set()

    with pytest.raises(BackgroundTimeoutError, match="was cut off after"):
        await slow.submit()
    assert ended.is_set()
    assert [x.function for x in facts if isinstance(x, f.TaskOverdue)] == ["slow"]


async def test_its_own_timeout_error_is_its_own(app: App) -> None:
    @app.background(timeout="1m")
    async def impatient() -> None:
        raise TimeoutError("mine")

    error = await asyncio.gather(impatient.submit(), return_exceptions=True)
    assert type(error[0]) is TimeoutError


async def test_context_goes_along_and_never_leaks(app: App) -> None:
    @app.background(workers=1)
    async def look() -> str:
        before = user.get()
        user.set("changed")
        return before

    user.set("ann")
    assert await look.submit() == "ann"
    assert user.get() == "ann"
    assert await contextvars.Context().run(look.submit) == "nobody"


def test_a_failure_nobody_looks_at_is_logged(app: App, caplog: pytest.LogCaptureFixture) -> None:
    @app.background()
    async def fail() -> None:
        raise LookupError("lost")

    fail.submit()
    until(lambda: caplog.records)
    assert "background fail failed, and nobody looked (LookupError)" in caplog.text


def test_a_loop_that_ends_first_leaves_nothing_silent(
    app: App, caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio.run cancels what is left: what had begun, and what had not."""

    @app.background(workers=2)
    async def forever() -> None:
        await asyncio.sleep(LIMIT_SECONDS)

    async def leave() -> list[Any]:
        begun = [forever.submit() for _ in range(2)]
        await asyncio.sleep(0.01)
        return [*begun, forever.submit()]

    tasks = asyncio.run(leave())
    until(lambda: all(task.done() for task in tasks))
    kinds = [type(task.exception()) for task in tasks]
    assert kinds[:2] == [asyncio.CancelledError] * 2
    assert kinds[2] in (asyncio.CancelledError, BackgroundClosedError)
    (status,) = app.tasks.status()
    assert (status.running, status.waiting) == (0, 0)
    assert app.background(name="double")(double).submit(1).result(LIMIT_SECONDS) == 2


def test_a_job_cancelled_before_its_first_step_ends_its_handle(app: App) -> None:
    function = app.background()(double)

    async def leave() -> Any:
        task = function.submit(1)
        for job in list(function.pool._jobs):  # type: ignore[attr-defined]
            job.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return task

    task = asyncio.run(leave())
    assert isinstance(task.exception(LIMIT_SECONDS), asyncio.CancelledError)
    assert app.tasks.status()[0].running == 0


def test_a_drain_cancels_what_does_not_end(app: App, caplog: pytest.LogCaptureFixture) -> None:
    stubborn, begun = threading.Event(), threading.Event()

    @app.background()
    async def stay() -> None:
        begun.set()
        while not stubborn.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    @app.background()
    async def long() -> None:
        await asyncio.sleep(LIMIT_SECONDS)

    stay.submit()
    task = long.submit()
    assert begun.wait(LIMIT_SECONDS)
    assert app.tasks.drain(timeout="400ms") == (0, 0, 1)
    assert isinstance(task.exception(LIMIT_SECONDS), asyncio.CancelledError)
    assert "does not wait any longer for stay, which is here:" in caplog.text
    stubborn.set()


async def test_the_app_drains_on_its_own_loop(app: App) -> None:
    done: list[int] = []

    @app.background()
    async def work(n: int) -> None:
        await asyncio.sleep(0.02)
        done.append(n)

    async with app.running(["relay"]):
        for n in range(3):
            work.submit(n)
    assert sorted(done) == [0, 1, 2]


async def test_closing_on_the_loop_waits_for_nothing_there(app: App) -> None:
    @app.background()
    async def long() -> None:
        await asyncio.sleep(LIMIT_SECONDS)

    task = long.submit()
    await asyncio.sleep(0.01)
    app.close()
    with pytest.raises(asyncio.CancelledError):
        await task
