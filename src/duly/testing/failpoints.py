"""Arms the named failpoints of ``duly.kernel.failpoints``: at the n-th hit, something happens.

In a process of its own: ``arm_from_environment()`` before anything else, with for example
``DULY_TEST_FAILPOINTS="relay.confirmed@3=kill, consume.acked=hang:30"``.  In a test's own process:
``with armed(Plan("relay.confirmed", action="raise")):``.  Invariant: a plan fires exactly once, at
its n-th hit counted over all threads, and a name that is no failpoint is an error, never a plan
that cannot fire.  Leaves out what a run makes of it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from duly.kernel import failpoints

__all__ = [
    "ACTIONS",
    "ENVIRONMENT",
    "FailpointError",
    "Plan",
    "arm",
    "arm_from_environment",
    "armed",
    "disarm",
    "parse",
]

ENVIRONMENT = "DULY_TEST_FAILPOINTS"
ACTIONS = ("kill", "stop", "raise", "hang", "exit")
EXIT_CODE = 70
HANG_SECONDS = 30.0


class FailpointError(Exception):
    """Raised where a plan with the action ``raise`` fires. args: the failpoint's name."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What happens at a failpoint. name: of ``kernel.failpoints``. hit: at which one, from 1.

    action: ``kill`` (SIGKILL to this process), ``stop`` (freeze it until a SIGCONT), ``raise``
    (FailpointError), ``hang`` (block the thread for ``hang_seconds``), ``exit`` (end the process
    without cleaning up). Raises ValueError.
    """

    name: str
    hit: int = 1
    action: str = "kill"
    hang_seconds: float = HANG_SECONDS

    def __post_init__(self) -> None:
        if self.name not in failpoints.ALL:
            raise ValueError(f"no failpoint {self.name!r}; there are {sorted(failpoints.ALL)}")
        if self.action not in ACTIONS:
            raise ValueError(f"no action {self.action!r}; there are {', '.join(ACTIONS)}")
        if self.hit < 1 or self.hang_seconds <= 0:
            raise ValueError("hit is at least 1 and hang_seconds above 0")


def parse(text: str) -> list[Plan]:
    """The plans of ``name[@hit][=action[:seconds]]``, separated by commas. Raises ValueError."""
    plans = []
    for part in (piece.strip() for piece in text.split(",")):
        if part:
            place, _, what = part.partition("=")
            name, _, hit = place.partition("@")
            action, _, seconds = what.partition(":")
            patience = float(seconds) if seconds else HANG_SECONDS
            plans.append(Plan(name, int(hit or 1), action or "kill", patience))
    return plans


def arm(
    *plans: Plan,
    before: Callable[[str], None] | None = None,
    every: Callable[[str], None] | None = None,
) -> None:
    """Arm these plans and no others, in the whole process.

    before: called with the failpoint's name right before a plan fires, to record it; what it raises
    replaces the action. every: called with the name at each hit, whether or not a plan fires.
    """
    failpoints.arm(_Armed(plans, before, every).hit if plans or every else None)


def disarm() -> None:
    """Turn every failpoint off."""
    failpoints.arm(None)


@contextmanager
def armed(*plans: Plan, before: Callable[[str], None] | None = None) -> Iterator[None]:
    """Armed inside the block, off after it."""
    arm(*plans, before=before)
    try:
        yield
    finally:
        disarm()


def arm_from_environment(
    environ: Mapping[str, str] | None = None, *, before: Callable[[str], None] | None = None
) -> list[Plan]:
    """Arm what ``DULY_TEST_FAILPOINTS`` says; returns the plans. Raises ValueError."""
    plans = parse((os.environ if environ is None else environ).get(ENVIRONMENT, ""))
    arm(*plans, before=before)
    return plans


class _Armed:
    """The plans in force and how often each failpoint was hit."""

    def __init__(
        self,
        plans: tuple[Plan, ...],
        before: Callable[[str], None] | None,
        every: Callable[[str], None] | None,
    ) -> None:
        self._plans = {(plan.name, plan.hit): plan for plan in plans}
        self._before, self._every = before, every
        self._hits: Counter[str] = Counter()
        self._lock = threading.Lock()

    def hit(self, name: str) -> None:
        """Count, and fire the plan for this hit if there is one."""
        if self._every is not None:
            self._every(name)
        with self._lock:
            self._hits[name] += 1
            plan = self._plans.get((name, self._hits[name]))
        if plan is not None:
            if self._before is not None:
                self._before(name)
            _fire(plan)


def _fire(plan: Plan) -> None:
    if plan.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(HANG_SECONDS)  # the signal may take a moment to arrive; nothing more may happen
    elif plan.action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif plan.action == "exit":
        os._exit(EXIT_CODE)
    elif plan.action == "hang":
        time.sleep(plan.hang_seconds)
    else:
        raise FailpointError(plan.name)
