from __future__ import annotations

import asyncio
import threading
import time

import pytest

from duly import App
from duly.calls import Breaker, Budget, Bulkhead, Retry, time_left
from duly.errors import CallDeadlineError, CallRefusedError, OutcomeUnknownError


class PeerDownError(Exception):
    pass


class NotYetError(Exception):
    retry_after_seconds = 0.05


AGAIN = Retry(attempts=3, base="1ms", max="1s", on=(PeerDownError, NotYetError))


@pytest.fixture
def app():
    return App("calls")


class Peer:
    """Answers from a list: exceptions are raised, the rest is returned."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), 0

    def __call__(self):
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer


def both(app, peer, **options):
    """The same call in both colours, each as a plain function."""

    @app.call(name=f"plain-{id(peer)}", **options)
    def plain():
        return peer()

    @app.call(name=f"async-{id(peer)}", **options)
    async def coloured():
        return peer()

    return {"plain": plain, "async": lambda: asyncio.run(coloured())}


COLOURS = pytest.mark.parametrize("colour", ["plain", "async"])


@COLOURS
def test_what_the_user_names_is_made_again(app, colour):
    peer = Peer(PeerDownError(), PeerDownError(), 7)
    assert both(app, peer, retry=AGAIN, deadline="5s")[colour]() == 7
    assert peer.asked == 3


@COLOURS
def test_nothing_else_is(app, colour):
    peer = Peer(ValueError("ours"), 7)
    with pytest.raises(ValueError, match="ours"):
        both(app, peer, retry=AGAIN)[colour]()
    assert peer.asked == 1


@COLOURS
def test_the_last_error_is_raised_as_it_was(app, colour):
    last = PeerDownError("the third")
    peer = Peer(PeerDownError(), PeerDownError(), last)
    with pytest.raises(PeerDownError) as raised:
        both(app, peer, retry=AGAIN)[colour]()
    assert raised.value is last


@COLOURS
def test_an_unknown_outcome_is_repeated_only_where_that_is_harmless(app, colour):
    peer = Peer(OutcomeUnknownError("sent"), 7)
    with pytest.raises(OutcomeUnknownError):
        both(app, peer, retry=AGAIN)[colour]()
    assert peer.asked == 1
    peer = Peer(TimeoutError(), 7)
    assert both(app, peer, retry=AGAIN, unknown=(TimeoutError,), repeatable=True)[colour]() == 7
    assert peer.asked == 2


@COLOURS
def test_retry_after_is_obeyed_within_limits(app, colour):
    peer, began = Peer(NotYetError(), 7), time.monotonic()
    assert both(app, peer, retry=AGAIN)[colour]() == 7
    assert time.monotonic() - began >= 0.05
    later = NotYetError()
    later.retry_after_seconds = 1.01  # past the policy's own max
    peer = Peer(later, 7)
    with pytest.raises(NotYetError):
        both(app, peer, retry=AGAIN)[colour]()
    assert peer.asked == 1


@COLOURS
def test_nobody_waits_for_an_attempt_past_the_deadline(app, colour):
    peer, began = Peer(PeerDownError("known")), time.monotonic()
    slow = Retry(attempts=3, base="20s", max="20s", on=(PeerDownError,))
    with pytest.raises(PeerDownError, match="known"):
        both(app, peer, retry=slow, deadline="10s")[colour]()
    assert time.monotonic() - began < 5


@COLOURS
def test_retries_are_held_to_their_budget(app, colour):
    peer = Peer(PeerDownError())
    call = both(app, peer, retry=AGAIN, budget=Budget(share=0.1, reserve=4))[colour]
    for _ in range(50):
        with pytest.raises(PeerDownError):
            call()
    assert (
        peer.asked == 50 + 4 + 4
    )  # the reserve, and a tenth of the calls since (5, not all whole)


@COLOURS
def test_the_breaker_counts_the_peers_faults_and_nothing_else(app, colour):
    peer = Peer(ValueError("404"))
    guarded = {"retry": Retry(attempts=1, on=(PeerDownError,)), "deadline": "5s"}
    calls = both(app, peer, breaker=Breaker(failures=2, open_for="1h"), **guarded)
    for _ in range(5):
        with pytest.raises(ValueError, match="404"):
            calls[colour]()
    peer.answers = [PeerDownError()]
    for _ in range(2):
        with pytest.raises(PeerDownError):
            calls[colour]()
    asked = peer.asked
    with pytest.raises(CallRefusedError) as refused:
        calls[colour]()
    assert (refused.value.code, peer.asked) == ("BREAKER_OPEN", asked)


async def test_a_cancelled_probe_gives_its_place_back(app):
    gate, healthy = asyncio.Event(), [False]

    @app.call(deadline="20s", breaker=Breaker(failures=1, open_for="5ms"))
    async def peer():
        if not healthy[0]:
            raise PeerDownError
        await gate.wait()

    with pytest.raises(PeerDownError):
        await peer()
    healthy[0] = True
    await asyncio.sleep(0.01)
    probe = asyncio.create_task(peer())
    await asyncio.sleep(0.01)
    with pytest.raises(CallRefusedError):
        await peer()
    probe.cancel()
    await asyncio.wait([probe])
    gate.set()
    await peer()
    assert app.health.report().calls[0].breaker == "closed"


async def test_a_thousand_tasks_at_a_half_open_breaker(app):
    asked, healthy = [], [False]

    @app.call(deadline="20s", breaker=Breaker(failures=1, open_for="5ms", probes=3))
    async def peer(number):
        if not healthy[0]:
            raise PeerDownError
        asked.append(number)
        await asyncio.sleep(0.05)

    with pytest.raises(PeerDownError):
        await peer(0)
    healthy[0] = True
    await asyncio.sleep(0.01)
    came = await asyncio.gather(*(peer(n) for n in range(1000)), return_exceptions=True)
    assert len(asked) == 3
    assert sum(isinstance(one, CallRefusedError) for one in came) == 997


def test_a_plain_function_keeps_its_place_until_it_really_ends(app):
    gate = threading.Event()

    @app.call(deadline="50ms", bulkhead=Bulkhead(2))
    def stuck():
        gate.wait(30)

    for _ in range(2):
        with pytest.raises(CallDeadlineError):
            stuck()
    with pytest.raises(CallRefusedError) as refused:
        stuck()
    assert refused.value.code == "BULKHEAD_FULL"
    health = app.health.report().calls[0]
    assert (health.in_use, health.overrunning) == (2, 2)
    gate.set()
    end = time.monotonic() + 10
    while app.health.report().calls[0].in_use and time.monotonic() < end:
        time.sleep(0.005)  # stands for the peer's work
    health = app.health.report().calls[0]
    assert (health.in_use, health.overrunning) == (0, 0)


async def test_a_call_inside_a_call_has_no_more_time_than_the_outer_one(app):
    seen = []

    @app.call(deadline="10s")
    async def inner():
        seen.append(time_left())
        await asyncio.sleep(10)

    @app.call(deadline="100ms", name="outer")
    async def outer():
        await inner()

    began = time.monotonic()
    with pytest.raises(CallDeadlineError):
        await outer()
    assert time.monotonic() - began < 5
    assert seen[0] <= 0.1
    assert time_left() == float("inf")


def test_no_time_left_is_a_refusal_and_no_doubt(app):
    asked = []

    @app.call(deadline="10s")
    def inner():
        asked.append(1)

    @app.call(deadline="20s", name="outer")
    def outer():
        from duly.calls.deadline import deadline

        deadline.set(time.monotonic() - 1)
        inner()

    with pytest.raises(CallRefusedError) as refused:
        outer()
    assert (refused.value.code, asked) == ("NO_TIME_LEFT", [])


async def test_a_timeout_of_the_functions_own_is_not_ours(app):
    @app.call(deadline="10s")
    async def own():
        raise TimeoutError("of the driver")

    with pytest.raises(TimeoutError, match="of the driver"):
        await own()


def test_a_thread_that_cannot_be_started_leaves_no_place_taken(app, monkeypatch):
    @app.call(deadline="1s")
    def plain():
        return 1

    def fail(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(plain.core.threads, "start", fail)
    with pytest.raises(RuntimeError, match="new thread"):
        plain()
    assert plain.core.guard.in_use == 0


def test_a_slow_peer_cannot_eat_all_workers(app):
    """Threads of the caller are free again at the deadline, and the others are refused at once."""

    @app.call(deadline="200ms", bulkhead=Bulkhead(4))
    def slow():
        time.sleep(1)  # stands for a slow peer

    took = []

    def worker():
        began = time.monotonic()
        with pytest.raises((CallDeadlineError, CallRefusedError)):
            slow()
        took.append(time.monotonic() - began)

    threads = [threading.Thread(target=worker, daemon=True) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sum(seconds < 0.15 for seconds in took) >= 30
    assert slow.core.guard.in_use <= 4
