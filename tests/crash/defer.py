"""The row "crash defer": calls in business transactions, killed between call, store, commit, send
and answer.

One caller and two workers run, each with a plan to die at a named place (or at a random moment),
and are replaced when they have died.  A kill counts only if something was open: the caller had
begun an operation that it had not acknowledged, or a deferred call was not answered yet.  A part of
the kills is made at the production lease beside a healthy worker, and gives the recovery figure:
until every call that was open at the death has been answered, or held.  At the end the peer is
healed, healthy workers finish, and the checker judges.
"""

from __future__ import annotations

import random
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from tests.crash import report
from tests.crash.checker import Verdict
from tests.crash.defer_checker import HELD, check_defer
from tests.crash.defer_peer import Peer
from tests.crash.nursery import Nursery
from tests.crash.orders import PRODUCTION, RANDOM, SHORT, Lease
from tests.crash.pairs import Place
from tests.crash.report import Result
from tests.crash.stage import Stage, Tail, now, read_lines

NAME = "crash defer"
CALLER = (
    "call.permitted_not_called",
    "call.answered",
    "call.deferred_not_stored",
    "outbox.before_flush",
    "outbox.flushed",
    RANDOM,
)
WORKER = (
    "relay.sent_no_confirm",
    "relay.confirmed",
    "relay.settled",
    "effect.intent_committed",
    "call.permitted_not_called",
    "call.answered",
    "effect.called_not_recorded",
    "effect.recorded",
    "consume.handled",
    "consume.committed_not_acked",
    RANDOM,
)
OPS_PER_KILL = 12
BACKLOG_MAX = 60
PATIENCE_SECONDS = 6.0
SETTLE_SECONDS = 90.0
STOP_SECONDS = 20.0
MINUTES = 60.0
SLOW_KILLS = 20
RECOVERY_SECONDS_MAX = 30.0
TABLES = """
CREATE TABLE crash_op (op integer PRIMARY KEY, deferred integer NOT NULL, message_id text NOT NULL);
CREATE TABLE crash_paid (id integer PRIMARY KEY, op integer NOT NULL, pid integer NOT NULL);
"""
OPEN = (
    "SELECT op FROM crash_op o WHERE deferred = 1 "
    "AND NOT EXISTS (SELECT 1 FROM crash_paid p WHERE p.op = o.op) "
    f"AND message_id NOT IN ({HELD})"
)


def defer_rows(
    kills: int, seed: int, place: Place, *, minutes: float = MINUTES
) -> dict[str, Callable[[], Result]]:
    """The row by its name."""
    return {NAME: partial(run_defer, kills, seed, place, minutes=minutes)}


@dataclass
class _Child:
    role: str
    point: str
    lease: Lease
    end_at: float


def run_defer(
    kills: int, seed: int, place: Place, *, minutes: float = MINUTES, slow_kills: int = SLOW_KILLS
) -> Result:
    """One run. Never raises for what the run finds. slow_kills: those at the production lease."""
    folder = place.folder / f"defer-{now():.6f}"
    folder.mkdir(parents=True)
    stage = Stage(
        folder, "sqlite", f"sqlite:///{folder}/shop.db", f"embedded:///{folder}/broker.db"
    )
    run, verdict, began = _Run(stage, place, kills=kills, seed=seed), Verdict(), now()
    run.until = began + 60 * minutes
    try:
        try:
            run.run(min(slow_kills, kills // 10))
        finally:
            run.close()
        verdict = check_defer(stage)
    except Exception as error:  # a run that broke off is a red row
        run.troubles.append(f"broke off: {type(error).__name__}: {error}"[:1500])
    named = sum(1 for point in run.kills if not point.endswith(RANDOM))
    result = report.make(
        NAME, f"SIGKILL at {named} failpoints of caller and worker, and at random", verdict,
        kills=run.kills.total(), lease=SHORT.ttl, seed=seed, recoveries=run.recoveries,
        troubles=run.troubles, seconds=now() - began,
    )  # fmt: skip
    if not result.clean:
        result.problems.append(f"the journals are in {folder}")
    elif not place.quiet:
        print(f"  kills by point: {dict(sorted(run.kills.items()))}", flush=True)
    stage.remove(keep_folder=not result.clean)
    return result


class _Run:
    def __init__(self, stage: Stage, place: Place, *, kills: int, seed: int) -> None:
        self._stage, self._wanted, self._quiet = stage, kills, place.quiet
        places = len(CALLER) + len(WORKER)
        self._share = -(-kills // (3 * places)) if kills >= places else 0
        self._chance = random.Random(seed)
        stage.journal("ops").touch()
        self._ops = Tail(stage.journal("ops"))
        self._last_op: Mapping[str, Any] = {}
        self._last_acked = 0
        self._peer = Peer(stage.journal("peer"), seed)
        self._nursery = Nursery(place.source, stage.folder / "logs")
        self._children: dict[int, _Child] = {}
        self._planned: Counter[str] = Counter()
        self.until = 0.0
        self._last_word = now()
        self._slow = True
        self.kills: Counter[str] = Counter()
        self.recoveries: list[float] = []
        self.troubles: list[str] = []

    def run(self, slow_kills: int) -> None:
        """Kill until the target is reached, then let everything settle."""
        with sqlite3.connect(self._stage.folder / "shop.db") as plain:
            plain.executescript(TABLES)
        plain.close()
        self._set_pace(0.05)
        self._once("defer_prepare")
        self._slow_phase(slow_kills)
        self._slow = False
        while not self._enough():
            self._check_time()
            self._spawn(SHORT, workers=2)
            self._tend(0.05)
        self._finish()

    def close(self) -> None:
        """End every process."""
        self._nursery.close()
        self._peer.close()

    # --- phases -----------------------------------------------------------------------------------
    def _slow_phase(self, kills: int) -> None:
        if not kills:
            return
        healthy = self._fork("defer_worker", "", PRODUCTION)
        while len(self.recoveries) < kills:
            self._check_time()
            self._spawn(PRODUCTION, workers=2)
            before = self.kills.total()
            dead = self._tend(0.05)
            if self.kills.total() > before and dead[0][0] == "defer_worker":
                self._measure(*dead[0][2:])
        self._stop(healthy)

    def _measure(self, died_at: float, pid: int) -> None:
        """Seconds until others have made progress with what was open at this death, and with what
        the dead worker had asked the peer for and not brought home.
        """
        open_now = self._open()
        asked = {f["op"] for f in read_lines(self._stage.journal("peer")) if f.get("by") == pid}
        held = [work for work in (open_now, open_now & asked) if work]
        while held and now() < died_at + RECOVERY_SECONDS_MAX:
            self._tend(0.05)
            open_now = self._open()
            held = [work for work in held if work <= open_now]
        if held:
            self.troubles.append(f"no progress {RECOVERY_SECONDS_MAX:.0f} s after {pid} died")
        self.recoveries.append(round(now() - died_at, 2))

    def _finish(self) -> None:
        for pid in list(self._children):
            self._nursery.signal(pid, signal.SIGKILL)
            self._children[pid].point = f"{self._children[pid].role} {RANDOM}"
        while self._children:
            self._check_time()
            self._tend(0.1)
        self._peer.healed = True
        healthy = [self._fork("defer_worker", "", SHORT) for _ in range(2)]
        last = self._fork("defer_caller", "", SHORT)  # what was begun is begun again
        end = now() + SETTLE_SECONDS
        while now() < end and not self._resumed():
            self._tend(0.1)
        self._stop(last)
        while now() < end and (self._open() or self._stage.number(UNFINISHED)):
            self._tend(0.1)
        if left := self._open():
            self.troubles.append(f"not answered after {SETTLE_SECONDS:.0f} s: {sorted(left)[:5]}")
        for pid in healthy:
            self._stop(pid)

    def _resumed(self) -> bool:
        self._look()
        return self._last_acked > self._first_of_last

    # --- children ---------------------------------------------------------------------------------
    def _spawn(self, lease: Lease, *, workers: int) -> None:
        """Replace who is missing, each with a plan."""
        roles = Counter(child.role for child in self._children.values())
        if roles["defer_caller"] < 1:
            self._fork("defer_caller", self._next("defer_caller", CALLER), lease)
        if roles["defer_worker"] < workers:
            self._fork("defer_worker", self._next("defer_worker", WORKER), lease)

    def _next(self, role: str, points: tuple[str, ...]) -> str:
        """The point furthest from its share."""
        count = {p: self.kills[f"{role} {p}"] + self._planned[f"{role} {p}"] for p in points}
        least = min(count.values())
        return self._chance.choice([p for p in points if count[p] == least])

    def _fork(self, role: str, point: str, lease: Lease) -> int:
        hits = self._chance.randint(1, 12 if role == "defer_caller" else 10)
        # One caller and two workers: callers, that die one at a time, must not live longer.
        slow = 1 + 3 * (role == "defer_worker" and self._is_ahead())
        config = {
            "folder": str(self._stage.folder), "database": self._stage.database,
            "broker": self._stage.broker, "peer": self._peer.port,
            "who": role.removeprefix("defer_"), "lease_ttl": lease.ttl, "renew_every": lease.renew,
            "send_timeout": lease.send, "broker_lease": lease.broker, "first": 0,
            "plan": f"{point}@{hits * slow}" if point not in ("", RANDOM) else "",
        }  # fmt: skip
        if role == "defer_caller":
            config["first"] = self._first_of_last = self._next_op()
        pid = self._nursery.fork(role, config)
        patience = self._chance.uniform(0.4, 2.5) if point == RANDOM else PATIENCE_SECONDS
        end = now() + patience * slow + lease.ttl if point else now() + 10_000
        self._children[pid] = _Child(role, f"{role} {point}", lease, end)
        self._planned[f"{role} {point}"] += 1
        return pid

    def _next_op(self) -> int:
        """The operation under way is begun again where it has a key."""
        last = self._look()
        if not last:
            return 1
        again = last["what"] == "begin" and last["keyed"] and not last["back"]
        return int(last["op"]) + (not again)

    def _tend(self, timeout_seconds: float) -> list[tuple[str, bool, float, int]]:
        """Wait for deaths, count them, end who is overdue: (role, counted, when, pid) of the
        dead.
        """
        dead = []
        for death in self._nursery.deaths(timeout_seconds):
            child = self._children.pop(death.pid, None)
            if child is None:
                continue
            self._planned[child.point] -= 1
            if not death.killed:
                log = self._stage.folder / "logs" / f"{child.role}-{death.pid}.log"
                text = log.read_text()[-700:] if log.exists() else ""
                self.troubles.append(f"{child.point} ended with {death.status}: {text}")
                continue
            is_open = self._was_open(child)
            self.kills[child.point] += is_open
            dead.append((child.role, is_open, death.at, death.pid))
        for pid, child in self._children.items():
            if now() > child.end_at:
                child.point = f"{child.role} {RANDOM}"  # its plan had not fired
                self._nursery.signal(pid, signal.SIGKILL)
                child.end_at = now() + 5
        self._keep_pace()
        return dead

    def _was_open(self, child: _Child) -> bool:
        if child.role == "defer_worker":
            return bool(self._open())
        last = self._look()
        return bool(last) and last["what"] == "begin"

    def _stop(self, pid: int) -> None:
        child = self._children.pop(pid, None)
        if child is None:
            return
        self._nursery.signal(pid, signal.SIGTERM)
        death = self._nursery.wait(pid, STOP_SECONDS)
        if death is None or death.status:
            self.troubles.append(f"{child.role} {pid} did not stop well: {death}")

    def _once(self, role: str) -> None:
        death = self._nursery.wait(self._fork(role, "", SHORT), 60)
        if death is None or death.status:
            raise RuntimeError(f"{role} failed: {death}")
        self._children.clear()

    # --- looking ----------------------------------------------------------------------------------
    def _look(self) -> Mapping[str, Any]:
        """What was said last of an operation."""
        for fact in self._ops.news():
            self._last_op = fact
            if fact["what"] != "begin":
                self._last_acked = fact["op"]
        return self._last_op

    def _open(self) -> set[int]:
        with suppress(sqlite3.OperationalError):  # no tables yet
            return {op for (op,) in self._stage.rows(OPEN)}
        return set()

    def _set_pace(self, seconds: float) -> None:
        place = self._stage.folder / "pace"
        place.with_suffix(".new").write_text(f"{seconds}")
        place.with_suffix(".new").replace(place)

    def _keep_pace(self) -> None:
        if now() - self._last_word < 0.5:
            return
        self._last_word = now()
        if not self._slow:
            ahead = self._next_op() > OPS_PER_KILL * (self.kills.total() + 30)
            self._set_pace(0.2 if len(self._open()) > BACKLOG_MAX or ahead else 0.0)

    def _is_ahead(self) -> bool:
        """There were more deaths than operations to die in: let the next ones live longer."""
        return self._next_op() < OPS_PER_KILL * self.kills.total()

    def _enough(self) -> bool:
        points = [f"defer_caller {p}" for p in CALLER] + [f"defer_worker {p}" for p in WORKER]
        kills = self.kills.total()
        done = kills >= self._wanted and self._next_op() >= OPS_PER_KILL * kills
        return done and all(self.kills[point] >= self._share for point in points)

    def _check_time(self) -> None:
        if now() > self.until:
            raise TimeoutError(f"{self.kills.total()} of {self._wanted} kills: {self.kills}")


UNFINISHED = "SELECT count(*) FROM duly_outbox WHERE status NOT IN ('sent', 'unrouted')"
