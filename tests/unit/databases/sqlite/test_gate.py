"""The gate before BEGIN IMMEDIATE: first come, first served; nobody starves, nobody is stuck."""

from __future__ import annotations

import threading
import time

from duly.databases.sqlite.gate import Gate, gate_of


def test_turns_come_in_the_order_of_asking() -> None:
    gate, order, threads = Gate(), [], []
    with gate.turn(5):
        for n in range(10):

            def work(n: int = n) -> None:
                with gate.turn(5):
                    order.append(n)

            threads.append(threading.Thread(target=work))
            threads[-1].start()
            while len(gate._queue) < n + 2:
                time.sleep(0.001)  # until the thread stands in the queue
        assert order == []
    for thread in threads:
        thread.join(5)
    assert order == list(range(10))
    assert not gate._queue


def test_a_thread_in_a_loop_cannot_starve_the_others() -> None:
    gate, counts = Gate(), [0] * 4
    start = threading.Barrier(4, timeout=10)

    def loop(who: int) -> None:
        start.wait()
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            with gate.turn(5):
                time.sleep(0.0005)  # as long as a BEGIN takes
            counts[who] += 1

    threads = [threading.Thread(target=loop, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert min(counts) > 10, counts
    assert max(counts) <= 2 * min(counts), counts


def test_only_one_has_its_turn() -> None:
    gate, inside, most = Gate(), 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        with gate.turn(5):
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.002)  # long enough for another to slip in
            with lock:
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert most == 1


def test_whoever_waited_long_enough_goes_on_out_of_turn() -> None:
    gate = Gate()
    with gate.turn(5):
        began = time.monotonic()
        passed: list[float] = []

        def impatient() -> None:
            with gate.turn(0.2):
                passed.append(time.monotonic() - began)

        thread = threading.Thread(target=impatient)
        thread.start()
        thread.join(5)
        assert 0.15 < passed[0] < 2
    with gate.turn(0.01):  # the queue is whole again
        assert len(gate._queue) == 1


def test_an_error_inside_gives_the_turn_on() -> None:
    gate = Gate()
    try:
        with gate.turn(1):
            raise ValueError
    except ValueError:
        pass
    began = time.monotonic()
    with gate.turn(5):
        assert time.monotonic() - began < 1


def test_a_file_has_one_gate() -> None:
    assert gate_of("/a") is gate_of("/a")
    assert gate_of("/a") is not gate_of("/b")
