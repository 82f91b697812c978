"""The kill loop: workers and a producer that die at named places, a producer that never does.

Theory of operation.  Two or more workers run; each is born with a plan (a failpoint and at which
hit, a random moment, or a stop in which it dies) and replaced when it has died.  At every death the
driver writes down, with fsync, what was open in the dead process, before anybody else can have
taken over; a kill where nothing was open does not count.  When every point has its share and the
target is reached, healthy workers finish what is left, and the checker judges.

    phase 1  at the production lease, one kill at a time: how long until somebody else has made
             progress with each kind of work that the dead process held (the recovery figure)
    phase 2  at a short lease, as fast as processes die

Invariant: everything is bounded: a worker that does not die of its plan is killed, a run that does
not reach its target in time is red, and no process outlives the nursery."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.crash.nursery import Death, Nursery
from tests.crash.orders import (
    PRODUCER_POINTS,
    PRODUCTION,
    RANDOM,
    RARE,
    WORKER_POINTS,
    Lease,
    Orders,
    Tally,
)
from tests.crash.stage import QUEUE, Stage, now, read_lines, unfinished

PATIENCE_SECONDS = 5.0  # for a plan to fire, beyond the lease, once the worker is at work
START_SECONDS = 20.0  # until it is: it holds lanes or has received something
BACKLOG_MAX = 1200
BACKLOG_MAX_SLOW = 300  # the time of a recovery is not that of a queue
MESSAGES_PER_KILL = 14
MESSAGES_AHEAD = 600
STOP_SECONDS = 20.0
RECOVERY_SECONDS_MAX = 30.0
LINGER_SECONDS = 4.0  # healthy workers stay this long after the last message: late commits show now


@dataclass
class Child:
    """A process of a run."""

    pid: int
    role: str
    point: str
    born: float
    lease: Lease
    end_at: float  # when the driver ends it if nothing else has
    patience: float = 0.0  # until then, from the moment when it is at work; 0: it is
    signalled: bool = False
    died_at: float = 0.0


class Loop:
    """One run on one stage. source: where ``duly`` is imported from."""

    family = ""  # before the names of the nursery's roles
    at_work = frozenset({"taken", "recv"})  # what a worker's journal says when its plan may fire

    def __init__(self, stage: Stage, orders: Orders, *, source: Path, quiet: bool = False) -> None:
        from duly.testing.journal import Journal

        self.stage, self.orders, self.tally, self.quiet = stage, orders, Tally(), quiet
        self._chance = random.Random(orders.seed)
        self._children: dict[int, Child] = {}
        self._planned: Counter[str] = Counter()
        self._faults = Journal(stage.journal("faults"))
        self._mortal = Journal(stage.journal("acks-mortal"))
        self._pipe = stage.folder / "mortal.pipe"
        self._said: dict[int, str] = {}
        self.nursery = Nursery(source, stage.folder / "logs")
        self._began = now()
        self._last_pace = self._last_word = 0.0
        self._meddler: Child | None = None
        self._backlog_max = BACKLOG_MAX
        self.config = {
            "folder": str(stage.folder),
            "database": stage.through.get("database", stage.database),
            "broker": stage.through.get("broker", stage.broker),
            "seed": orders.seed,
        }

    # --- the whole ------------------------------------------------------------------------------
    def run(self) -> Tally:
        """Kill until the target is reached, let the rest settle. Troubles are in the tally, never
        raised silently."""
        try:
            with self.prepared():
                self._slow_phase()
                self._fast_phase()
                self.finish()
        finally:
            self.close()
        return self.tally

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Tables, queues, the pipe of the mortal producers and the steady producer."""
        self.run_once("prepare")
        os.mkfifo(self._pipe)
        end = os.open(self._pipe, os.O_RDWR)  # both ends: it never sees end of file
        reader = threading.Thread(target=self._listen, args=(end,), daemon=True)
        reader.start()
        self.set_pace(0.0)
        if self.orders.meddle:
            self._meddler = self._fork("meddler", point="", lease=self.orders.lease)
        self.steady = self._fork(
            "producer", point="", lease=self.orders.lease, writers=self.orders.writers
        )
        try:
            yield
        finally:
            os.write(end, b"\n")  # an empty line ends the reader
            reader.join(10)
            os.close(end)

    def close(self) -> None:
        """End every process."""
        self.tally.seconds = now() - self._began
        self.nursery.close()

    def run_once(self, role: str, **more: Any) -> None:
        """Run a child to its end. Raises RuntimeError when it fails."""
        settings = {**self.config, **self.orders.lease.settings, **more}
        pid = self.nursery.fork(self.family + role, settings)
        death = self.nursery.wait(pid, 90)
        if death is None or death.status:
            raise RuntimeError(f"{role} failed: {self._log(role, pid)}")

    def _words(self, child: Child) -> str:
        """The end of what a child said."""
        return self._log(child.role, child.pid)[-700:]

    def _log(self, role: str, pid: int) -> str:
        path = self.stage.folder / "logs" / f"{self.family}{role}-{pid}.log"
        return path.read_text()[-2000:] if path.exists() else "no log"

    # --- the mortal producers' reports ----------------------------------------------------------
    def _listen(self, end: int) -> None:
        rest = b""
        while True:
            *lines, rest = (rest + os.read(end, 65_536)).split(b"\n")
            for line in lines:
                if not line:
                    return
                fact = json.loads(line)
                self._said[fact["pid"]] = fact["what"]
                self._mortal.append(**{**fact, "producer": fact.pop("pid")})

    # --- children -------------------------------------------------------------------------------
    def _fork(self, role: str, *, point: str, lease: Lease, **more: Any) -> Child:
        patience = lease.ttl + PATIENCE_SECONDS
        plan = ""
        if point == RANDOM:
            patience = 0.3 + lease.ttl + self._chance.random() * 1.2
        elif point:
            most = 2 if point in RARE else 12
            plan = f"{point}@{self._chance.randint(1, most)}"
        if point == "drain.started":
            plan = f"{point}@1"
            patience = 0.3 + lease.ttl + self._chance.random()
        settings = {**self.config, **lease.settings, "plan": plan, **more}
        pid = self.nursery.fork(self.family + role, settings)
        child = Child(pid, role, point, now(), lease, now() + patience)
        if role == "worker" and point:
            child.patience, child.end_at = patience, now() + START_SECONDS
        if point:
            self._children[pid] = child
            self._planned[point] += 1
        return child

    def _spawn_worker(self, lease: Lease) -> None:
        self._fork("worker", point=self._next_point(WORKER_POINTS), lease=lease)

    def _spawn_mortal(self, lease: Lease) -> None:
        points = [point for point in PRODUCER_POINTS if point in self.orders.points]
        if points:
            point = self._next_point(points)
            self._fork("producer", point=point, lease=lease, pipe=str(self._pipe), writers=1)

    def _next_point(self, points: Sequence[str]) -> str:
        """The one furthest from its share, plans under way counted; chance among equals."""
        mine = [point for point in points if point in self.orders.points]
        least = min(self.tally.kills[p] + self._planned[p] for p in mine)
        return self._chance.choice(
            [p for p in mine if self.tally.kills[p] + self._planned[p] == least]
        )

    def _tend(self, timeout_seconds: float, *, pace: bool = True) -> list[Child]:
        """Wait for deaths, record them, end who is overdue; returns the dead."""
        dead = []
        for death in self.nursery.deaths(timeout_seconds):
            child = self._children.pop(death.pid, None)
            if child is None:
                self.tally.troubles.append(f"{death.pid} ended by itself with {death.status}")
                continue
            self._planned[child.point] -= 1
            child.died_at = death.at
            self._record(child, death)
            dead.append(child)
        for child in self._children.values():
            if child.patience and self._is_at_work(child):
                child.end_at, child.patience = now() + child.patience, 0.0
            if now() > child.end_at:
                first_try = child.point == "drain.started" and not child.signalled
                self.nursery.signal(child.pid, signal.SIGTERM if first_try else signal.SIGKILL)
                child.signalled = True
                child.end_at = now() + 5.0
        if pace:
            self._keep_pace()
        return dead

    def _is_at_work(self, child: Child) -> bool:
        return any(fact["what"] in self.at_work for fact in self._journal_of(child))

    # --- a death --------------------------------------------------------------------------------
    def _record(self, child: Child, death: Death) -> None:
        """Write down what was open in the dead process; count the kill if anything was."""
        seen = self._positions()
        if not death.killed:
            self._faults.append("ended", role=child.role, at=death.at, pid=child.pid, **seen)
            if child.point != "drain.started":  # that one may have had nothing to drain
                self.tally.troubles.append(
                    f"{child.role} {child.pid} ended with {death.status}: {self._words(child)}"
                )
            return
        point, journal = child.point, self._journal_of(child)
        dying = [fact for fact in journal if fact["what"] == "dying"]
        if child.role == "worker" and not dying:
            point = RANDOM  # its plan had not fired
        unsettled = self._unsettled(journal)
        is_open = self._is_open(child, journal, unsettled)
        self.tally.kills[point] += is_open
        self.tally.uncounted += not is_open
        self._faults.append(
            "fault", n=self.tally.kills.total(), point=point, unsettled=unsettled, counted=is_open,
            lease=child.lease.ttl, role=child.role, at=death.at, pid=child.pid, **seen,
        )  # fmt: skip

    def _positions(self) -> dict[str, Any]:
        """How far the groups are, and when that was known: too late, it says nothing of a death."""
        return {"done": self.stage.broker_positions(), "looked": now()}

    def _journal_of(self, child: Child) -> list[dict[str, Any]]:
        path = self.stage.journal(f"worker-{child.pid}")
        return list(read_lines(path)) if path.exists() else []

    def _unsettled(self, journal: list[dict[str, Any]]) -> list[str]:
        """What the dead process had sent and not settled, by its own journal and the outbox at this
        moment."""
        sent = {m for fact in journal if fact["what"] == "send" for m in fact["ids"]}
        if not sent:
            return []
        return sorted(
            sent & {row[0] for row in self.stage.rows("SELECT message_id FROM duly_outbox")}
        )

    def _is_open(self, child: Child, journal: list[dict[str, Any]], unsettled: list[str]) -> bool:
        if child.role == "producer":
            return self._said.get(child.pid) in ("begin", "try")
        received = {
            (f["group"], line[0]) for f in journal if f["what"] == "recv" for line in f["got"]
        }
        acked = {
            (f["group"], m) for f in journal if f["what"] in ("ack", "release") for m in f["ids"]
        }
        if unsettled or received - acked:
            return True
        lanes = "SELECT count(*) FROM duly_lease l WHERE l.kind = 'lane' AND l.holder LIKE ? AND ("
        outbox = "EXISTS (SELECT 1 FROM duly_outbox b WHERE b.lane = l.lane AND l.scope = 'outbox')"
        inbox = (
            "EXISTS (SELECT 1 FROM duly_inbox b WHERE b.lane = l.lane "
            "AND l.scope = 'inbox:' || b.group_name AND b.status IN ('ready', 'retry', 'held'))"
        )
        return bool(self.stage.number(f"{lanes}{outbox} OR {inbox})", (f"{child.pid}-%",)))

    # --- for scenes -----------------------------------------------------------------------------
    def worker(self, **more: Any) -> Child:
        """A healthy worker that runs."""
        child = self.start_worker(**more)
        self._wait_ready(child)
        return child

    def start_worker(self, **more: Any) -> Child:
        """A worker that has just begun. more: of its config."""
        return self._fork("worker", point="", lease=self.orders.lease, **more)

    def hold(self, seconds: float, *, pace: bool = True) -> None:
        """Let things run for a while."""
        end = now() + seconds
        while now() < end:
            self._tend(0.05, pace=pace)

    def note(self, what: str, **values: Any) -> None:
        """A line in the journal of faults."""
        self._faults.append(what, **values)

    def stop(self, child: Child) -> None:
        """End a healthy child as an operator would."""
        self._stop(child)

    # --- what a run is about --------------------------------------------------------------------
    def committed(self) -> int:
        """How many messages the transactions have published."""
        return self.stage.number("SELECT count(*) FROM crash_sent")

    def unfinished(self) -> dict[str, int]:
        """What is still to be done, by where it lies; empty when everything has settled."""
        return unfinished(self.stage)

    def backlog(self) -> int:
        """How much the consumers have before them."""
        return max(self.unfinished().get("effects", 0), 0)

    # --- phases ---------------------------------------------------------------------------------
    def _slow_phase(self) -> None:
        """At the production lease, one victim at a time beside a healthy worker: how long until its
        work is done."""
        if not self.orders.slow_kills:
            return
        self._backlog_max = BACKLOG_MAX_SLOW
        healthy = self._fork("worker", point="", lease=PRODUCTION)
        self._wait_ready(healthy)
        while self.tally.kills.total() < self.orders.slow_kills:
            self._check_time()
            if not self._children:
                self._spawn_worker(PRODUCTION)
            before = self.tally.kills.total()
            dead = self._tend(0.05)
            if self.tally.kills.total() > before:
                self._measure_recovery(dead[0])
        self._stop(healthy)
        self._backlog_max = BACKLOG_MAX

    def _wait_ready(self, child: Child) -> None:
        end = now() + STOP_SECONDS
        while not any(fact["what"] == "ready" for fact in self._journal_of(child)) and now() < end:
            self._tend(0.05)

    def _measure_recovery(self, dead: Child) -> None:
        """Seconds from the death until each kind of work that the dead process held has moved
        on."""
        held = self._held_by(dead)
        waiting = {kind for kind, work in held.items() if work}
        moved: dict[str, float] = {}
        end = dead.died_at + RECOVERY_SECONDS_MAX
        while waiting and now() < end:
            self._tend(0.05)
            on = {kind for kind in waiting if held[kind] - self._still(kind)}
            moved |= dict.fromkeys(on, round(now() - dead.died_at, 2))
            waiting -= on
        if waiting:
            self.tally.troubles.append(
                f"no progress {RECOVERY_SECONDS_MAX:.0f} s after {dead.pid} died at {dead.point}: "
                f"{sorted(waiting)}"
            )
        self.note("recovered", moved=moved)
        self.tally.recoveries.append(max(moved.values(), default=0.0))
        for kind, seconds in moved.items():
            self.tally.worst[kind] = max(seconds, self.tally.worst.get(kind, 0.0))

    def _held_by(self, dead: Child) -> dict[str, set[Any]]:
        """The rows in its lanes by scope, and what it had received and not acked by group."""
        lanes = "SELECT scope, lane FROM duly_lease WHERE kind = 'lane' AND holder LIKE ?"
        mine = set(self.stage.rows(lanes, (f"{dead.pid}-%",)))
        held: dict[str, set[Any]] = {
            kind: {row for row in self._still(kind) if row[:2] in mine}
            for kind in ("outbox", "inbox")
        }
        journal = self._journal_of(dead)
        acked = {
            (f["group"], m) for f in journal if f["what"] in ("ack", "release") for m in f["ids"]
        }
        received: dict[str, set[Any]] = {}
        for fact in (f for f in journal if f["what"] == "recv"):
            received.setdefault(fact["group"], set()).update(
                (m, fact["group"]) for m, *_ in fact["got"] if (fact["group"], m) not in acked
            )
        # One question for each group: the clock is running.
        held |= {group: left & self._still(group) for group, left in received.items() if left}
        return held

    def _still(self, kind: str) -> set[Any]:
        """Work of a kind that is waiting now: rows of a box, or (message, group) without its
        effect."""
        if kind == "outbox":
            return set(
                self.stage.rows("SELECT 'outbox', lane, id FROM duly_outbox WHERE status = 'ready'")
            )
        if kind == "inbox":
            sql = "SELECT 'inbox:' || group_name, lane, id FROM duly_inbox WHERE status = 'ready'"
            return set(self.stage.rows(sql))
        sql = (
            "SELECT s.message_id, CAST(? AS varchar(40)) FROM crash_sent s "
            "WHERE (s.kind = 'command') = (? = ?) AND NOT EXISTS "
            "(SELECT 1 FROM crash_effect e WHERE e.message_id = s.message_id AND e.grp = ?)"
        )
        return set(self.stage.rows(sql, (kind, kind, QUEUE, kind)))

    def _fast_phase(self) -> None:
        lease = self.orders.lease
        while not self._enough():
            self._check_time()
            living = Counter(child.role for child in self._children.values())
            if living["worker"] < self.orders.workers:
                self._spawn_worker(lease)
            if not living["producer"]:
                self._spawn_mortal(lease)
            self._tend(0.05)
        for child in self._children.values():
            child.point = RANDOM
            self.nursery.signal(child.pid, signal.SIGKILL)
        end = now() + 10
        while self._children and now() < end:
            self._tend(0.1)

    def _enough(self) -> bool:
        kills = self.tally.kills
        done = kills.total() >= self.orders.kills
        if not done or any(kills[point] < self.orders.share for point in self.orders.points):
            return False
        return self.committed() >= self.orders.least_messages

    def _check_time(self) -> None:
        if now() - self._began > self.orders.minutes * 60:
            short = {
                p: self.tally.kills[p]
                for p in self.orders.points
                if self.tally.kills[p] < self.orders.share
            }
            raise TimeoutError(
                f"{self.tally.kills.total()} of {self.orders.kills} kills in "
                f"{self.orders.minutes:g} minutes; short: {short}"
            )

    # --- the end --------------------------------------------------------------------------------
    def finish(self, workers: int = 2) -> None:
        """Healthy workers take over, the producer makes its last commits and stops, everything
        settles."""
        healthy = [self._fork("worker", point="", lease=self.orders.lease) for _ in range(workers)]
        end = now() + self.orders.settle_seconds
        while now() < end and sum(self.unfinished().values()) > 200:
            self.set_pace(9.0)
            self._tend(0.2)
        self._stop(self.steady)
        if self._meddler is not None:
            self._stop(self._meddler)
        linger = now() + LINGER_SECONDS
        end = max(end, now() + self.orders.settle_seconds / 2)
        left = self.unfinished()
        while now() < linger or (left and now() < end):
            self._tend(0.2)
            left = self.unfinished()
        if left:
            self.tally.troubles.append(
                f"not settled after {self.orders.settle_seconds:.0f} s: {left}"
            )
        for child in healthy:
            self._stop(child)

    def _stop(self, child: Child) -> None:
        """SIGTERM, and a clean exit in time."""
        if not self.nursery.signal(child.pid, signal.SIGTERM):
            self.tally.troubles.append(
                f"{child.role} {child.pid} was gone too early: {self._words(child)}"
            )
            return
        death = self.nursery.wait(child.pid, STOP_SECONDS)
        if death is None:
            self.nursery.signal(child.pid, signal.SIGKILL)
            self.nursery.wait(
                child.pid, 10
            )  # its journal says nothing of an end: what it had open counts as lost time
            self.tally.troubles.append(
                f"{child.role} {child.pid} did not stop in time: {self._words(child)}"
            )
            return
        seen = self._positions()
        self._faults.append("ended", role=child.role, at=death.at, pid=child.pid, **seen)
        if death.status:
            self.tally.troubles.append(
                f"{child.role} {child.pid} ended with {death.status}: {self._words(child)}"
            )

    # --- pace -----------------------------------------------------------------------------------
    def set_pace(self, seconds: float) -> None:
        """How long the producers wait between transactions; from 1 on, they hold."""
        place = self.stage.folder / "pace"
        place.with_suffix(".new").write_text(f"{seconds}")
        place.with_suffix(".new").replace(place)

    def _keep_pace(self) -> None:
        """Enough work to be open at every death, not more than can be done and checked."""
        if now() - self._last_pace < 0.25:
            return
        self._last_pace = now()
        backlog = self.backlog()
        sent = self.committed()
        ahead = sent - max(self.tally.kills.total() * MESSAGES_PER_KILL, self.orders.least_messages)
        most = self._backlog_max
        self.set_pace(9.0 if backlog > most else 0.15 if ahead > MESSAGES_AHEAD else 0.004)
        if not self.quiet and now() - self._last_word > 10:
            self._last_word = now()
            print(
                f"  {now() - self._began:5.0f} s  {self.tally.kills.total():5} kills  "
                f"{sent:6} messages  backlog {backlog}",
                flush=True,
            )
