"""The course of the demo: who is started when, and who is killed.

Owns the processes and the clock.  A first half of the flights, in which the worker is killed at a
random point; a second half, in which it dies between a gateway call and its record; then a quiet
stretch at a steady pace, to measure latencies by.  The invariant: every wait is bounded, watches
the processes it waits for, and ends in a clear error when nothing moves any more.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from duly.admin.demo.children import Child, DemoError
from duly.admin.demo.data import Flight
from duly.admin.demo.gateway import GatewayServer
from duly.admin.demo.meter import Counts, Meter
from duly.admin.demo.reconcile import Kill
from duly.admin.demo.screen import Screen
from duly.admin.demo.setup import Setup, stages

__all__ = ["Course", "Driver"]

_LOOK_EVERY_SECONDS = 0.05
_STALL_SECONDS = 60.0
_START_SECONDS = 120.0  # before the bound on the whole begins to depend on the number of flights
_FLIGHTS_PER_SECOND_LEAST = 50
_NOTHING_MORE_SECONDS = 1.0
_WRITE = "write\n"


class Course(NamedTuple):
    """What happened. undone: ids of messages that were rolled back. live_since: when the steady
    stretch began, seconds since 1970.
    """

    kills: Sequence[Kill]
    undone: Sequence[str]
    transactions: int
    rolled_back: int
    savepoints: int
    flights_per_second: float
    messages: int
    messages_per_second: float
    live_since: float


class Driver:
    """Runs the demo once; use as a context manager, which ends all children."""

    def __init__(
        self,
        setup: Setup,
        *,
        flights: Sequence[Flight],
        folder: Path,
        gateway: GatewayServer,
    ) -> None:
        self._setup, self._folder, self._gateway = setup, folder, gateway
        self._random = random.Random(setup.seed)
        self._stages = stages(len(flights))
        self._goal = Counts(
            len(flights), len(flights), len(flights), sum(f.long_delayed for f in flights)
        )
        self._late_first = sum(f.long_delayed for f in flights[: self._stages[0]])
        self._counts, self._moved = Counts(), time.monotonic()
        self._ends = time.monotonic() + _START_SECONDS + len(flights) / _FLIGHTS_PER_SECOND_LEAST
        self._children: list[Child] = []
        self._airline: Child | None = None
        self._worker: Child | None = None
        self._written, self._rate = 0, 0.0
        self._kills: list[Kill] = []
        self._stage_facts: dict[int, dict[str, float]] = {}
        self._summary: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for child in self._children:
            child.terminate()
        for child in self._children:
            child.stop()

    def run(self, meter: Meter, screen: Screen) -> Course:
        """From the first flight to the end of the last worker, or until nothing moves any more:
        then the verdict shows what is missing. Raises DemoError when a child ends by itself.
        """
        self._meter, self._screen = meter, screen
        try:
            self._both_halves()
            self._steady_stretch()
        except _StalledError as error:
            screen.say(f"stopped: {error}")
        if self._worker is not None:
            self._worker.stop()
        screen.say("worker ended; now counting against the raw data")
        return self._course()

    def _both_halves(self) -> None:
        started = time.monotonic()
        self._airline = self._start("airline")
        self._airline.tell(_WRITE)
        self._worker = self._start("worker")
        self._screen.say("an airline writes flights and events; one worker relays and handles them")
        self._kill_at_random()
        self._airline.tell(_WRITE)
        self._kill_in_effect()
        self._wait(self._backlog_is_done, "the backlog to be handled")
        self._rate = self._meter.handled() / (time.monotonic() - started)

    def _steady_stretch(self) -> None:
        assert self._airline is not None
        self._screen.say(f"backlog handled; the last {self._stages[2]:,} flights at a steady pace")
        self._airline.tell(_WRITE)
        self._wait(lambda: bool(self._summary) and self._counts == self._goal, "the last flights")
        # Something handled twice would come now.
        quiet = time.monotonic() + _NOTHING_MORE_SECONDS
        self._wait(lambda: time.monotonic() > quiet, "quiet")

    def _course(self) -> Course:
        halves = [self._stage_facts[n]["seconds"] for n in (1, 2) if n in self._stage_facts]
        flights = sum(self._stages[: len(halves)])
        return Course(
            kills=self._kills,
            undone=self._summary.get("undone", ()),
            transactions=self._summary.get("transactions", 0),
            rolled_back=self._summary.get("rolled_back", 0),
            savepoints=self._summary.get("savepoints", 0),
            flights_per_second=flights / sum(halves) if halves else 0.0,
            messages=self._meter.handled(),
            messages_per_second=self._rate,
            live_since=self._stage_facts.get(3, {}).get("started", time.time()),
        )

    # --- the two kills ----------------------------------------------------------------------------
    def _kill_at_random(self) -> None:
        after = self._random.randint(1, max(1, self._late_first // 4))
        self._wait(lambda: self._gateway.sent >= after, "the first text messages")
        time.sleep(self._random.random() * _LOOK_EVERY_SECONDS)
        assert self._worker is not None
        status = self._worker.kill()
        behind = self._meter.behind()
        self._screen.say(f"SIGKILL at a random point, {behind:,} events behind")
        self._recover("random", status, behind)

    def _kill_in_effect(self) -> None:
        assert self._worker is not None
        self._worker.tell(f"{self._random.randint(3, 10)}\n")
        dying, self._worker = self._worker, None
        self._wait(lambda: dying.status is not None, "the kill between gateway call and record")
        status = dying.status or 0
        behind = self._meter.behind()
        self._screen.say(
            "SIGKILL between a gateway call and its record: "
            f"{self._gateway.sent:,} sent, {self._meter.effects():,} recorded"
        )
        self._recover("effect", status, behind)

    def _recover(self, where: str, status: int, behind: int) -> None:
        """Start the next worker and wait until every group with open work has gone on."""
        since, before = time.monotonic(), self._look()
        doubt = self._gateway.sent - self._meter.effects()
        repeated = self._gateway.record().repeated
        self._worker = self._start("worker")

        def went_on() -> bool:
            now = self._counts
            groups = [
                (now.destinations, before.destinations, before.written),
                (now.carriers, before.carriers, before.written),
            ]
            moved = all(n > then or then >= written for n, then, written in groups)
            return moved and (not doubt or self._gateway.record().repeated > repeated)

        seconds = None
        try:
            self._wait(went_on, "the new worker")
            seconds = time.monotonic() - since
        finally:
            self._kills.append(Kill(where, -status, behind + doubt, doubt, seconds))
        again = ", the gateway was asked again under the same key" if doubt else ""
        self._screen.say(f"all groups went on after {seconds:.1f} s{again}")

    # --- watching ---------------------------------------------------------------------------------
    def _start(self, module: str) -> Child:
        child = Child(module, self._setup, log=self._folder / f"{module}.log")
        self._children.append(child)
        return child

    def _backlog_is_done(self) -> bool:
        backlog = sum(self._stages[:2])
        counts = self._counts
        return 2 in self._stage_facts and counts.destinations >= backlog <= counts.carriers

    def _wait(self, until: Callable[[], bool], what: str) -> None:
        """Watch until something is so. Raises DemoError: a child ended, nothing moves, too long."""
        self._moved = time.monotonic()
        while True:
            self._look()
            if until():
                return
            now = time.monotonic()
            if now > min(self._ends, self._moved + _STALL_SECONDS):
                log = self._folder / "worker.log"
                raise _StalledError(f"nothing moves while waiting for {what}; see {log}")
            time.sleep(_LOOK_EVERY_SECONDS)

    def _look(self) -> Counts:
        for child in (self._airline, self._worker):
            if child is not None and child.status is not None and not self._may_end(child):
                raise child.trouble()
        for fact in self._airline.news() if self._airline else []:
            self._written = fact.get("written", self._written)
            if "stage" in fact:
                self._stage_facts[fact["stage"]] = fact
            if "undone" in fact:
                self._summary = fact
        counts = self._meter.counts(self._written)
        if counts != self._counts:
            self._counts, self._moved = counts, time.monotonic()
        self._screen.progress(counts, self._goal)
        return counts

    def _may_end(self, child: Child) -> bool:
        """The airline when all is written, the worker when it was killed by us."""
        if child is self._airline:
            return child.status == 0
        return child.status == -signal.SIGKILL


class _StalledError(DemoError):
    """Nothing moves any more."""
