"""Threads: bounded, reused, honest about timeouts, nothing silent, nothing leaked."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import gc
import logging
import os
import threading
import time
import weakref
from typing import Any

import pytest
from sqlalchemy import Engine, text

from duly import App
from duly.background.task import Task
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


class Gate:
    """A function that waits until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.inside = 0

    def __call__(self) -> str:
        self.inside += 1
        assert self.opened.wait(LIMIT_SECONDS)
        return "out"


@pytest.fixture
def gate() -> Any:
    gate = Gate()
    yield gate
    gate.opened.set()


def occupied(app: App, gate: Gate, **options: Any) -> Any:
    """A function of a pool whose one worker is at the gate and whose queue is full."""
    function = app.background(
        pool="one", workers=1, queue=1, name="wait", **{"on_full": "raise", **options}
    )(gate)
    function.submit()
    until(lambda: gate.inside == 1)
    function.submit()
    return function


def test_result_and_direct_call(app: App) -> None:
    @app.background()
    def add(a: int, b: int = 1) -> int:
        "Adds."
        return a + b

    assert (add(1), add.__doc__, add.__name__) == (2, "Adds.", "add")
    task = add.submit(1, b=5)
    assert task.result(LIMIT_SECONDS) == 6
    assert (
        concurrent.futures.wait([add.submit(n) for n in range(9)], LIMIT_SECONDS).not_done == set()
    )


def test_threads_are_reused_and_bounded(app: App, gate: Gate) -> None:
    @app.background(workers=3, queue=100)
    def where() -> int:
        return threading.get_ident()

    assert len({where.submit().result(LIMIT_SECONDS) for _ in range(20)}) == 1
    at_gate = app.background(name="gate")(gate)
    tasks = [at_gate.submit() for _ in range(10)]
    until(lambda: gate.inside == 3)
    (status,) = app.tasks.status()
    assert (status.threads, status.running, status.waiting, status.workers) == (3, 3, 7, 3)
    gate.opened.set()
    assert [task.result(LIMIT_SECONDS) for task in tasks] == ["out"] * 10


async def test_awaited_from_a_loop(app: App) -> None:
    @app.background()
    def double(n: int) -> int:
        return 2 * n

    assert await asyncio.gather(*(double.submit(n) for n in range(5))) == [0, 2, 4, 6, 8]
    gate = threading.Event()
    waits = app.background(name="waits")(gate.wait).submit(LIMIT_SECONDS)
    with pytest.raises(ConfigurationError) as error:
        waits.result()
    assert error.value.code == "INSIDE_EVENT_LOOP"
    gate.set()
    assert await waits


# --- no place -------------------------------------------------------------------------------------
def test_full_raises(app: App, gate: Gate, facts: list[Fact]) -> None:
    function = occupied(app, gate)
    with pytest.raises(BackgroundFullError):
        function.submit()
    assert [x.outcome for x in facts if isinstance(x, f.TaskNotQueued)] == ["raised"]


def test_full_discards_and_counts(app: App, gate: Gate, facts: list[Fact]) -> None:
    function = occupied(app, gate, on_full="discard")
    assert function.submit().cancelled()
    dropped = [x for x in facts if isinstance(x, f.DroppedByPolicy)]
    assert [(x.topic, x.code, x.count) for x in dropped] == [("wait", "BACKGROUND_FULL", 1)]


def test_full_runs_in_the_caller(app: App, gate: Gate) -> None:
    occupied(app, gate)
    here = app.background(pool="one", on_full="caller_runs", name="here")(threading.get_ident)
    assert here.submit().result() == threading.get_ident()


def test_full_blocks_until_there_is_a_place_or_time_is_up(app: App, gate: Gate) -> None:
    occupied(app, gate)
    patient = app.background(pool="one", on_full="block", name="patient")(lambda: "done")
    hasty = app.background(pool="one", on_full="block", full_timeout="50ms", name="hasty")(print)
    with pytest.raises(BackgroundFullError):
        hasty.submit()
    threading.Timer(0.05, gate.opened.set).start()
    assert patient.submit().result(LIMIT_SECONDS) == "done"


@pytest.mark.parametrize("policy", ["block", "caller_runs", "defer"])
async def test_nothing_blocks_an_event_loop(app: App, gate: Gate, policy: Any) -> None:
    occupied(app, gate)
    ran: list[int] = []
    function = app.background(pool="one", on_full=policy, name="f")(
        lambda: ran.append(threading.get_ident())
    )
    with pytest.raises(BackgroundFullError, match="asubmit"):
        function.submit()
    asyncio.get_running_loop().call_later(0.05, gate.opened.set)
    task = await function.asubmit()
    if policy == "defer":
        assert task.cancelled()  # stored instead
    else:
        await task
        assert ran != [threading.get_ident()]


async def test_a_place_told_to_one_who_left_is_passed_on(app: App, gate: Gate) -> None:
    function = occupied(app, gate, on_full="block")
    quick = app.background(pool="one", on_full="block", name="quick")(lambda: None)
    first = asyncio.ensure_future(quick.asubmit())
    second = asyncio.ensure_future(quick.asubmit())
    await asyncio.sleep(0.05)  # both wait for a place
    first.cancel()
    pool = function.pool
    (left, _) = pool._wanting
    pool._wanting.popleft()
    left()  # told of a place in the moment in which it leaves
    await asyncio.sleep(0)
    gate.opened.set()
    async with asyncio.timeout(LIMIT_SECONDS):
        assert await (await second) is None
    assert first.cancelled()


def test_every_blocked_submit_gets_its_turn(app: App) -> None:
    """Many wait for places at once; a place told of and not taken would leave one for ever."""
    quick = app.background(workers=2, queue=0, on_full="block", name="quick")(lambda: None)
    done: list[int] = []

    def submit_many() -> None:
        for _ in range(50):
            quick.submit().result(LIMIT_SECONDS)
        done.append(1)

    callers = [threading.Thread(target=submit_many) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(LIMIT_SECONDS)
    assert len(done) == 8


def test_full_is_deferred(app: App, engine: Engine, gate: Gate, facts: list[Fact]) -> None:
    app.upgrade_tables()
    function = occupied(app, gate, on_full="defer")
    assert function.submit().cancelled()
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT message_type, topic FROM duly_outbox")).all()
    assert rows == [("shop.background.wait", "shop.background")]
    assert [x.outcome for x in facts if isinstance(x, f.TaskNotQueued)] == ["deferred"]


# --- waiting for each other -----------------------------------------------------------------------
def test_nested_submits_do_not_deadlock(app: App) -> None:
    @app.background(workers=2, queue=1000)
    def fibonacci(n: int) -> int:
        if n < 2:
            return n
        one, two = fibonacci.submit(n - 1), fibonacci.submit(n - 2)
        return one.result() + two.result()

    assert fibonacci.submit(12).result(LIMIT_SECONDS) == 144


def test_a_worker_that_finds_its_own_pool_full_runs_it(app: App) -> None:
    @app.background(workers=1, queue=0, on_full="block")
    def down(n: int) -> int:
        return 0 if n == 0 else 1 + down.submit(n - 1).result()

    assert down.submit(20).result(LIMIT_SECONDS) == 20


def test_a_circle_of_pools_is_refused(app: App) -> None:
    @app.background(pool="a", workers=1)
    def first(deep: bool) -> str:
        return second.submit().result() if deep else "end"

    @app.background(pool="b", workers=1)
    def second() -> str:
        return first.submit(False).result()

    error = first.submit(True).exception(LIMIT_SECONDS)
    assert isinstance(error, ConfigurationError)
    assert error.code == "WAIT_CYCLE"


# --- nothing silent -------------------------------------------------------------------------------
def fail() -> None:
    raise LookupError("lost")


def test_a_failure_nobody_looks_at_is_logged(
    app: App, facts: list[Fact], caplog: pytest.LogCaptureFixture
) -> None:
    app.background(name="fail")(fail).submit()
    until(lambda: "background fail failed, and nobody looked (LookupError)" in caplog.text)
    assert "Traceback" in caplog.text
    assert [(x.function, x.code) for x in facts if isinstance(x, f.TaskFailed)] == [
        ("fail", "LookupError")
    ]


def test_a_failure_that_is_looked_at_is_not(app: App, caplog: pytest.LogCaptureFixture) -> None:
    task = app.background(name="fail")(fail).submit()
    with pytest.raises(LookupError):
        task.result(LIMIT_SECONDS)
    del task
    gc.collect()
    assert "nobody looked" not in caplog.text


def test_a_kept_handle_is_told_at_the_drain(app: App, caplog: pytest.LogCaptureFixture) -> None:
    task = app.background(name="fail")(fail).submit()
    until(task.done)
    assert "nobody looked" not in caplog.text
    app.tasks.drain()
    assert caplog.text.count("nobody looked") == 1


def test_on_error_gets_it_and_may_fail_itself(app: App, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[tuple[str, str]] = []

    def hear(name: str, error: BaseException) -> None:
        heard.append((name, str(error)))
        if len(heard) == 2:
            raise RuntimeError("the handler, too")

    function = app.background(name="fail", on_error=hear)(fail)
    function.submit()
    until(lambda: heard == [("fail", "lost")])
    assert "nobody looked" not in caplog.text
    function.submit()
    until(lambda: "nobody looked" in caplog.text)
    assert "on_error of fail failed itself" in caplog.text


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_what_ends_threads_elsewhere_ends_no_worker(app: App, kind: type[BaseException]) -> None:
    def leave() -> None:
        raise kind

    function = app.background(name="leave", workers=1)(leave)
    assert isinstance(function.submit().exception(LIMIT_SECONDS), kind)
    assert isinstance(function.submit().exception(LIMIT_SECONDS), kind)


def test_ctrl_c_in_the_caller_is_the_callers(app: App, gate: Gate) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    occupied(app, gate)
    function = app.background(pool="one", on_full="caller_runs", name="f")(interrupt)
    with pytest.raises(KeyboardInterrupt):
        function.submit()


def test_a_failed_call_keeps_nothing_alive(app: App) -> None:
    class Big:
        pass

    def fail_with(big: Big) -> None:
        raise LookupError

    big = Big()
    gone = weakref.ref(big)
    gc.disable()
    try:
        told: list[str] = []
        on_error = lambda name, _error: told.append(name)  # noqa: E731
        app.background(name="fail_with", on_error=on_error)(fail_with).submit(big)
        del big
        until(lambda: gone() is None)
        assert told == ["fail_with"]
    finally:
        gc.enable()


# --- context --------------------------------------------------------------------------------------
def test_context_goes_along_and_never_leaks(app: App) -> None:
    seen: list[tuple[str, str]] = []

    @app.background(workers=1)
    def look(mine: str) -> str:
        seen.append((mine, user.get()))
        user.set(f"changed by {mine}")
        return user.get()

    def one(name: str) -> None:
        user.set(name)
        look.submit(name).result(LIMIT_SECONDS)
        assert user.get() == name

    for name in ("ann", "bob"):
        contextvars.copy_context().run(one, name)
    contextvars.Context().run(lambda: look.submit("nobody").result(LIMIT_SECONDS))
    assert seen == [("ann", "ann"), ("bob", "bob"), ("nobody", "nobody")]


def test_left_out_variables_stay_here(app: App) -> None:
    @app.background(without=[user])
    def look() -> str:
        return user.get()

    user.set("ann")
    assert look.submit().result(LIMIT_SECONDS) == "nobody"


# --- timeouts -------------------------------------------------------------------------------------
def test_a_timeout_tells_the_truth(
    app: App, gate: Gate, facts: list[Fact], caplog: pytest.LogCaptureFixture
) -> None:
    function = app.background(workers=1, timeout="50ms", name="slow")(gate)
    task = function.submit()
    with pytest.raises(BackgroundTimeoutError, match="slow has not ended"):
        task.result(LIMIT_SECONDS)
    until(lambda: "it runs on and keeps its place, here:" in caplog.text)
    assert "self.opened.wait(LIMIT_SECONDS)" in caplog.text  # where it is
    (status,) = app.tasks.status()
    assert (status.running, status.overdue) == (1, 1)
    behind = app.background(name="behind")(lambda: 1).submit()
    assert not behind.done()  # the place is taken until the thread really ends
    gate.opened.set()
    assert behind.result(LIMIT_SECONDS) == 1
    until(lambda: app.tasks.status()[0].overdue == 0)
    assert "nobody has its result" in caplog.text
    assert [x.function for x in facts if isinstance(x, f.TaskOverdue)] == ["slow"]


def test_a_late_failure_is_told(app: App, caplog: pytest.LogCaptureFixture) -> None:
    opened = threading.Event()

    def slow() -> None:
        opened.wait(LIMIT_SECONDS)
        raise LookupError("late")

    task = app.background(timeout="20ms")(slow).submit()
    assert isinstance(task.exception(LIMIT_SECONDS), BackgroundTimeoutError)
    opened.set()
    until(lambda: "slow failed, and nobody looked (LookupError)" in caplog.text)


def test_remaining_seconds(app: App) -> None:
    @app.background(timeout="1m")
    def look() -> float | None:
        return look.remaining_seconds()

    left = look.submit().result(LIMIT_SECONDS)
    assert left is not None
    assert 0 < left <= 60
    assert look.remaining_seconds() is None


# --- ending ---------------------------------------------------------------------------------------
def test_a_drain_lets_work_end_and_may_begin_again(app: App) -> None:
    done: list[int] = []

    @app.background(workers=2)
    def work(n: int) -> None:
        time.sleep(0.01)  # so that some wait when the drain begins
        done.append(n)

    for n in range(10):
        work.submit(n)
    assert app.tasks.drain() == (0, 0, 0)
    assert sorted(done) == list(range(10))
    assert app.tasks.status()[0].threads == 0
    work.submit(10).result(LIMIT_SECONDS)


def test_a_drain_ends_by_its_deadline(
    app: App, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    function = occupied(app, gate)
    waiting: list[BaseException] = []

    def submit_meanwhile() -> None:
        until(lambda: app.tasks._pools["one"]._closing)
        try:
            function.submit()
        except BackgroundClosedError as error:
            waiting.append(error)

    late = threading.Thread(target=submit_meanwhile)
    late.start()
    began = time.monotonic()
    drained = app.tasks.drain(timeout="400ms")
    assert time.monotonic() - began < 5
    late.join(LIMIT_SECONDS)
    assert (drained, len(waiting)) == ((1, 0, 1), 1)
    assert "does not wait any longer for wait, which is here:" in caplog.text
    assert "self.opened.wait(LIMIT_SECONDS)" in caplog.text


def test_a_drain_stores_what_is_to_be_deferred(app: App, gate: Gate) -> None:
    app.upgrade_tables()
    occupied(app, gate, on_full="defer")
    assert app.tasks.drain(timeout="200ms") == (0, 1, 1)


def test_a_cancelled_call_is_not_run(app: App, gate: Gate) -> None:
    ran: list[int] = []
    app.background(workers=1, name="gate")(gate).submit()
    until(lambda: gate.inside == 1)
    task: Task[Any] = app.background(name="never")(lambda: ran.append(1)).submit()
    assert task.cancel()
    gate.opened.set()
    app.tasks.drain()
    assert ran == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a platform without fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_begins_anew(app: App, gate: Gate) -> None:
    """As gunicorn --preload does: the parent has used the pool; the child must be able to."""
    function = occupied(app, gate)
    add = app.background(pool="one", name="add")(lambda a, b: a + b)
    pool = app.tasks._pools["one"]
    held = pool._mutex
    held.acquire()  # in the moment of the fork another thread may hold any lock
    child = os.fork()
    if child == 0:
        fine = pool.status()[4:6] == (0, 0) and add.submit(2, 3).result(LIMIT_SECONDS) == 5
        os._exit(0 if fine else 1)
    held.release()
    assert os.waitpid(child, 0)[1] == 0
    assert app.tasks.status()[0].running == 1
    assert function.pool is pool


def test_no_thread_to_be_had(
    app: App, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    function = app.background(workers=2, name="f")(lambda: 1)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", _no_thread)
        with pytest.raises(BackgroundFullError, match="gets no thread"):
            function.submit()
    assert function.submit().result(LIMIT_SECONDS) == 1


def _no_thread(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_loggers_are_dulys(caplog: pytest.LogCaptureFixture, app: App) -> None:
    with caplog.at_level(logging.ERROR, logger="duly.background"):
        app.background(name="fail")(fail).submit()
        until(lambda: caplog.records)
    assert {record.name for record in caplog.records} == {"duly.background"}
