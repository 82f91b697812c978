"""The kill loop of change data capture: readers that compete for one stream, and who carries on.

Two readers are always there; the one that holds the stream dies of its plan, the other takes over
and dies of its own.  Beside them carriers relay and consume, and die as in every pair; some of them
read, too.  The source's writer is never killed, and an operator has tables read anew all the time.
A kill counts where something was open: changes committed and not told, a snapshot under way, or
what ``Loop`` counts."""

from __future__ import annotations

import signal
from statistics import median
from typing import Any

from tests.crash.cdc_stage import STREAM, CdcStage
from tests.crash.loop import Child, Loop
from tests.crash.nursery import Death
from tests.crash.orders import CDC_POINTS, PRODUCTION, RANDOM, Lease
from tests.crash.stage import now

READERS = 2
BACKLOG_MAX = 400  # rows of snapshots, too: one after the other must be done in time
BACKLOG_MAX_SLOW = 100  # the time of a recovery is not that of a queue
CARRIES = ["relay", "consumer"]
CLAIMED = "cdc.claimed"  # passed by whoever holds the stream already
ARM_SECONDS = 20.0


class CdcLoop(Loop):
    """One run on one stage of a source."""

    family = "cdc_"
    at_work = frozenset({"taken", "recv", "claimed"})
    stage: CdcStage
    expected_stops: frozenset[str] = frozenset()

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self._backlog_max = BACKLOG_MAX

    # --- what a run is about --------------------------------------------------------------------
    def committed(self) -> int:
        """As ``Loop.committed``: how many changes are to be told."""
        return self.stage.told()

    def unfinished(self) -> dict[str, int]:
        """As ``Loop.unfinished``."""
        questions = {
            "outbox": "SELECT count(*) FROM duly_outbox WHERE status NOT IN ('sent', 'unrouted')",
            "inbox": "SELECT count(*) FROM duly_inbox WHERE status NOT IN ('done', 'skipped')",
            "holds": "SELECT count(*) FROM duly_key_hold",
        }
        found = {where: self.stage.number(sql) for where, sql in questions.items()}
        arrived = 'SELECT count(*) FROM cdc_effect WHERE body NOT LIKE \'%"op": "read"%\''
        found["effects"] = self.stage.told() - self.stage.number(arrived)
        found["snapshots"] = self.stage.snapshots_under_way()
        return {where: count for where, count in found.items() if count}

    def backlog(self) -> int:
        """As ``Loop.backlog``; rows of snapshots wait there, too."""
        found = self.unfinished()
        return sum(found.get(where, 0) for where in ("outbox", "inbox", "effects"))

    # --- who lives ------------------------------------------------------------------------------
    def _spawn_worker(self, lease: Lease) -> None:
        readers = sum(child.point in CDC_POINTS for child in self._children.values())
        mine = [p for p in self.orders.points if (p in CDC_POINTS) == (readers < READERS)]
        point = self._next_point(mine or self.orders.points)
        roles = ["cdc"] if point in CDC_POINTS else CARRIES
        self._fork("worker", point=point, lease=lease, roles=None if point == RANDOM else roles)

    def _fast_phase(self) -> None:
        """As ``Loop._fast_phase``; one carrier lives, so that readers do not wait for a backlog."""
        carrier = self._fork("worker", point="", lease=self.orders.lease, roles=CARRIES)
        super()._fast_phase()
        self._stop(carrier)

    # --- a death --------------------------------------------------------------------------------
    def _unsettled(self, journal: list[dict[str, Any]]) -> list[str]:
        sent = {m for fact in journal if fact["what"] == "send" for m in fact["ids"]}
        if not sent:
            return []
        sql = "SELECT message_id FROM duly_outbox WHERE status NOT IN ('sent', 'unrouted')"
        return sorted(sent & {row[0] for row in self.stage.rows(sql)})

    def _is_open(self, child: Child, journal: list[dict[str, Any]], unsettled: list[str]) -> bool:
        if any(fact["what"] == "claimed" for fact in journal):
            untold = self.stage.told() - self.stage.number("SELECT count(*) FROM cdc_effect")
            died = [fact["point"] for fact in journal if fact["what"] == "dying"]
            if died[-1:] and died[-1] in CDC_POINTS:
                return True  # what the point's name says was open
            if untold > 0 or self.stage.snapshots_under_way():
                return True
        return super()._is_open(child, journal, unsettled)

    def _record(self, child: Child, death: Death) -> None:
        super()._record(child, death)
        self._blame_stops(child)

    def _stop(self, child: Child) -> None:
        super()._stop(child)
        self._blame_stops(child)

    def _blame_stops(self, child: Child) -> None:
        """A stream that stops for a person has lost something; where it must, the scene says so."""
        codes = {f["code"] for f in self._journal_of(child) if f["what"] == "stopped"}
        for code in sorted(codes - self.expected_stops):
            self.tally.troubles.append(f"lost: {child.pid} stopped the stream with {code}")

    # --- recovery -------------------------------------------------------------------------------
    def _slow_phase(self) -> None:
        """At the production lease; the other one has started when who holds the stream dies."""
        points = [p for p in self.orders.points if p in CDC_POINTS and p != CLAIMED] or [RANDOM]
        self._backlog_max = BACKLOG_MAX_SLOW
        for number in range(self.orders.slow_kills):
            self._check_time()
            place = self.stage.folder / f"armed-{number}"
            victim = self._fork(
                "worker", point=points[number % len(points)], lease=PRODUCTION, arm_at=str(place)
            )
            victim.end_at = now() + 3 * ARM_SECONDS
            victim.patience = 0.0
            self._await(victim, "claimed")
            heir = self._fork("worker", point="", lease=PRODUCTION)
            self._await(heir, "ready")
            place.touch()
            end = now() + ARM_SECONDS
            while victim.pid in self._children and now() < end:
                self._tend(0.02)
            if victim.pid in self._children:
                self.nursery.signal(victim.pid, signal.SIGKILL)
                while victim.pid in self._children:
                    self._tend(0.02)
            self._measure_recovery(victim)
            self._stop(heir)
        self._backlog_max = BACKLOG_MAX

    def _await(self, child: Child, what: str) -> None:
        end = now() + ARM_SECONDS
        while not any(fact["what"] == what for fact in self._journal_of(child)):
            if now() > end:
                raise TimeoutError(f"no {what} of {child.pid} in {ARM_SECONDS:g} s")
            self._tend(0.05)

    def close(self) -> None:
        """As ``Loop.close``; also says how soon a reader's first event was committed."""
        super().close()
        firsts = [f["seconds"] for f in self.stage.facts("worker-*") if f["what"] == "first"]
        if firsts:
            text = f"median {median(firsts):.2f} s, worst {max(firsts):.2f} s of {len(firsts)}"
            print(f"  first event after the claim of the stream: {text}", flush=True)

    def _held_by(self, dead: Child) -> dict[str, set[Any]]:
        held = super()._held_by(dead)
        if any(fact["what"] == "claimed" for fact in self._journal_of(dead)):
            held["stream"] = self._still("stream")
        return held

    def _still(self, kind: str) -> set[Any]:
        if kind == "stream":
            return {(STREAM, self.stage.offset()[0])}
        if kind in ("outbox", "inbox"):
            return super()._still(kind)
        sql = (
            "SELECT b.message_id, CAST(? AS varchar(40)) FROM duly_outbox b WHERE NOT EXISTS "
            "(SELECT 1 FROM cdc_effect e WHERE e.message_id = b.message_id)"
        )
        return set(self.stage.rows(sql, (kind,)))
