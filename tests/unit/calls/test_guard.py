from __future__ import annotations

import asyncio
import os
import threading
import time

import pytest

from duly.calls.guard import Guard
from duly.errors import CallRefusedError
from duly.kernel.breaker import Breaker, State
from duly.kernel.budget import Budget
from duly.kernel.bulkhead import Bulkhead


def guard(breaker=None, bulkhead=None, **more):
    return Guard("peer", breaker, bulkhead, budget=Budget(), **more)


@pytest.mark.parametrize("probes", [1, 7])
def test_a_thousand_threads_at_a_half_open_breaker(probes):
    """Exactly as many as there are probes are admitted, and no lock is held while they are out."""
    moved = []
    peer = guard(Breaker(failures=1, open_for="10ms", probes=probes), moved=moved.append)
    peer.failed(peer.enter(True))
    time.sleep(0.02)  # until the breaker is half-open
    start, permits, refused = threading.Barrier(1000), [], []

    def caller():
        start.wait(30)
        try:
            permits.append(peer.enter(True))
        except CallRefusedError as error:
            refused.append(error.code)

    threads = [threading.Thread(target=caller, daemon=True) for _ in range(1000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (len(permits), len(refused)) == (probes, 1000 - probes)
    assert set(refused) == {"BREAKER_OPEN"}
    for permit in permits:
        peer.succeeded(permit)
    assert moved == [State.OPEN, State.HALF_OPEN, State.CLOSED]


def test_a_returned_probe_is_somebody_elses():
    peer = guard(Breaker(failures=1, open_for="1ms"))
    peer.failed(peer.enter(True))
    time.sleep(0.005)  # until it is half-open
    first = peer.enter(True)
    with pytest.raises(CallRefusedError):
        peer.enter(True)
    peer.returned(first)
    peer.succeeded(peer.enter(True))
    assert peer.state is State.CLOSED


def test_places_are_never_more_than_the_limit():
    peer = guard(bulkhead=Bulkhead(3))
    assert [peer.take() for _ in range(4)] == [True, True, True, False]
    with pytest.raises(CallRefusedError, match="all 3 places") as refused:
        peer.take_waiting(10)
    assert refused.value.code == "BULKHEAD_FULL"
    peer.leave()
    assert peer.take()


def test_threads_take_turns_in_the_order_in_which_they_came():
    peer, came = guard(bulkhead=Bulkhead(1, "10s")), []
    assert peer.take()

    def caller(number):
        peer.take_waiting(10)
        came.append(number)
        peer.leave()

    threads = []
    for number in range(5):
        threads.append(threading.Thread(target=caller, args=(number,), daemon=True))
        threads[-1].start()
        while len(peer._waiting) <= number:
            time.sleep(0.001)  # until it has queued
    peer.leave()
    for thread in threads:
        thread.join(10)
    assert came == [0, 1, 2, 3, 4]
    assert peer.in_use == 0


def test_whoever_waits_too_long_is_refused_and_leaves_no_trace():
    peer = guard(bulkhead=Bulkhead(1, "10ms"))
    assert peer.take()
    with pytest.raises(CallRefusedError):
        peer.take_waiting(10)
    peer.leave()
    assert (peer.in_use, len(peer._waiting)) == (0, 0)


async def test_a_cancelled_waiter_hands_its_place_on():
    peer = guard(bulkhead=Bulkhead(1, "10s"))
    assert peer.take()
    first, second = (asyncio.create_task(peer.take_waiting_async(10)) for _ in range(2))
    await asyncio.sleep(0)
    peer.leave()  # goes to the first, which is cancelled before it has heard of it
    first.cancel()
    await asyncio.wait_for(second, 10)
    assert first.cancelled() or first.done()
    assert peer.in_use == 1
    peer.leave()
    assert peer.in_use == 0


async def test_an_async_waiter_is_refused_in_time():
    peer = guard(bulkhead=Bulkhead(1, "10ms"))
    assert peer.take()
    with pytest.raises(CallRefusedError):
        await peer.take_waiting_async(10)
    assert len(peer._waiting) == 0


def test_a_waiter_whose_loop_is_closed_is_passed_over():
    peer = guard(bulkhead=Bulkhead(1, "10s"))
    assert peer.take()
    gone, living = peer._queue(_closed), peer._queue(lambda: None)
    peer.leave()
    assert (gone.granted, living.granted, peer.in_use) == (True, True, 1)


def _closed():
    raise RuntimeError("Event loop is closed")


def test_retries_are_bounded_by_the_budget():
    peer = Guard("peer", None, None, budget=Budget(share=0.5, reserve=1))
    assert [peer.may_retry(), peer.may_retry()] == [True, False]
    peer.enter(True)
    peer.enter(False)  # a retry puts nothing in
    assert not peer.may_retry()
    peer.enter(True)
    assert peer.may_retry()


def test_a_forked_child_has_no_place_taken_and_no_lock_held():
    peer = guard(Breaker(), Bulkhead(1))
    assert peer.take()
    with peer._lock:  # as a thread of the parent might, at that moment
        child = os.fork()
        if child == 0:
            os._exit(0 if peer.take() and peer.enter(True) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
