"""The gate before BEGIN IMMEDIATE: first come, first served; nobody starves, nobody is stuck."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy.exc

from duly.databases.sqlite.engine import sqlite_engine
from duly.databases.sqlite.gate import Gate, begin, gate_of


class Pair:
    """Two connections to a file: one that writes, one that wants to. asked: how often it has."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer, self.other = (
            sqlite3.connect(path, isolation_level=None, check_same_thread=False) for _ in range(2)
        )
        self.writer.execute("PRAGMA journal_mode=WAL")
        self.asked = 0
        self.other.set_trace_callback(self._hear)

    def _hear(self, text: str) -> None:
        self.asked += "BEGIN" in text

    def patience(self) -> int:
        found = self.other.execute("PRAGMA busy_timeout").fetchone()[0]
        assert isinstance(found, int)
        return found


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path / "a.db")
    with closing(made.writer), closing(made.other):
        yield made


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


# --- asking for the lock --------------------------------------------------------------------------
def test_it_is_asked_for_so_often_that_a_writer_in_a_loop_leaves_a_gap(pair: Pair) -> None:
    pair.writer.execute("BEGIN IMMEDIATE")
    waiting = threading.Thread(target=begin, args=(pair.other, 30.0))
    waiting.start()
    # SQLite's own handler asks some fifteen times in a second, then ten times in each.
    end = time.monotonic() + 5
    while pair.asked < 100 and time.monotonic() < end:
        time.sleep(0.01)  # until it has asked often enough
    asked = pair.asked
    pair.writer.execute("COMMIT")
    waiting.join(10)
    assert asked >= 100
    assert pair.other.in_transaction


def test_what_else_waits_for_a_lock_is_as_patient_as_before(pair: Pair) -> None:
    begin(pair.other, 7.0)
    assert pair.patience() == 7000
    pair.other.execute("COMMIT")
    pair.writer.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        begin(pair.other, 0.02)
    assert pair.patience() == 20


def test_what_is_no_lock_is_told_at_once(pair: Pair) -> None:
    pair.other.execute("BEGIN")
    with pytest.raises(sqlite3.OperationalError, match="within a transaction"):
        begin(pair.other, 30.0)


def test_an_engine_raises_its_own_error_for_a_writer_that_does_not_end(pair: Pair) -> None:
    engine = sqlite_engine(f"sqlite:///{pair.path}", busy_seconds=0.05)
    pair.writer.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlalchemy.exc.OperationalError, match="locked"), engine.begin():
        pass
    pair.writer.execute("COMMIT")
    with engine.begin() as connection:
        assert connection.connection.driver_connection.in_transaction
    engine.dispose()


async def test_an_asynchronous_engine_does_the_same(pair: Pair) -> None:
    engine = sqlite_engine(f"sqlite:///{pair.path}", busy_seconds=0.05, asynchronous=True)
    pair.writer.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlalchemy.exc.OperationalError, match="locked"):
        async with engine.begin():
            pass
    pair.writer.execute("COMMIT")
    async with engine.begin() as connection:
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            begin(pair.other, 0.01)
        assert (await connection.exec_driver_sql("PRAGMA busy_timeout")).scalar() == 50
    await engine.dispose()


def test_what_else_goes_wrong_is_sqlalchemys_error_too(pair: Pair) -> None:
    engine = sqlite_engine(f"sqlite:///{pair.path}")
    with engine.connect() as connection:
        connection.connection.driver_connection.close()
        with pytest.raises(sqlalchemy.exc.ProgrammingError, match="closed"), connection.begin():
            pass
        connection.invalidate()
    engine.dispose()
