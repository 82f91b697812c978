"""The kill loop of sinks, and that of rules which write: readers that compete, and who is killed.

Every worker reads, of each stream the one that has its lease; none carries messages, there are
none.  A kill counts where a named point says what was open, or while a copy was behind its table or
was being filled anew."""

from __future__ import annotations

from typing import Any

from tests.crash.cdc_copies import HISTORY
from tests.crash.cdc_loop import CdcLoop
from tests.crash.cdc_sinks_stage import SinksStage
from tests.crash.cdc_stage import EFFECTS
from tests.crash.loop import Child, Loop
from tests.crash.orders import SINK_POINTS, Lease

AWAY = "SINK_UNAVAILABLE"  # it is asked again by itself
RAISED = "RULE_FAILED"


class EffectsLoop(CdcLoop):
    """As ``CdcLoop``, where rules write themselves and now and then raise."""

    expected_stops = frozenset({RAISED})

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.config["rules"] = EFFECTS

    def close(self) -> None:
        """As ``CdcLoop.close``; also says how often a rule raised."""
        super().close()
        raised = sum(f.get("code") == RAISED for f in self.stage.facts("worker-*"))
        print(f"  a rule raised {raised} times", flush=True)


class SinksLoop(CdcLoop):
    """One run on one stage with copies."""

    family = "cdc_sink_"
    at_work = frozenset({"claimed"})
    expected_stops = frozenset({AWAY})
    stage: SinksStage

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.config |= {"rules": self.stage.what, "targets": self.stage.targets}

    def close(self) -> None:
        """As ``Loop.close``; also says how often the operator had copies filled anew."""
        Loop.close(self)
        asked = sum(fact["what"] == "asked" for fact in self.stage.facts("meddler"))
        print(f"  copies filled anew {asked} times", flush=True)

    # --- what a run is about --------------------------------------------------------------------
    def unfinished(self) -> dict[str, int]:
        """As ``Loop.unfinished``: rows of copies that are not as they are to be."""
        found = {**self.stage.behind(), "snapshots": self.stage.snapshots_under_way()}
        return {where: count for where, count in found.items() if count}

    def backlog(self) -> int:
        """As ``Loop.backlog``; a line of the history that is lost stays lost, and holds nobody."""
        lines = {copy.name for copy in self.stage.copies if copy.table == HISTORY}
        return sum(count for name, count in self.stage.behind().items() if name not in lines)

    # --- who lives ------------------------------------------------------------------------------
    def _spawn_worker(self, lease: Lease) -> None:
        point = self._next_point(self.orders.points)
        self._fork("worker", point=point, lease=lease, roles=["cdc"])

    def _fast_phase(self) -> None:
        Loop._fast_phase(self)

    # --- a death --------------------------------------------------------------------------------
    def _is_open(self, child: Child, journal: list[dict[str, Any]], unsettled: list[str]) -> bool:
        if not any(fact["what"] == "claimed" for fact in journal):
            return False
        if any(fact["what"] == "dying" and fact["point"] in SINK_POINTS for fact in journal):
            return True
        return bool(self.unfinished())

    def _held_by(self, dead: Child) -> dict[str, set[Any]]:
        return {stream: self._still(stream) for stream in self.stage.held_by(dead.pid)}

    def _still(self, kind: str) -> set[Any]:
        return {self.stage.positions().get(kind)}
