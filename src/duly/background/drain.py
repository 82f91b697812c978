"""Ending pools together, by one deadline.

Owns the order: nothing new is taken; what is there may end; what has not begun by three quarters of
the time is cancelled, or stored where its function says ``defer``; what can be cancelled while it
runs is; and what is left at the deadline is told, with the place where it is.  The invariant: it
returns by its deadline, whatever a call does, and no failure is left untold.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from duly.background.pool import Pool
from duly.background.task import Call

__all__ = ["Drained", "drain"]

BEGIN_PART = 0.75  # of the time: for what waits to begin
CANCEL_PART = 0.9  # then what runs and can be cancelled is
LOOK_SECONDS = 0.005
_log = logging.getLogger("duly.background")


class Drained(NamedTuple):
    """How a drain ended. cancelled: had not begun; deferred: stored to run later; left: still run,
    and where is in the log.
    """

    cancelled: int
    deferred: int
    left: int


def drain(
    pools: Sequence[Pool], seconds: float, *, store: Callable[[Call], bool], last: bool
) -> Drained:
    """Drain pools. seconds: for all of it. store: keeps a call that will not run here; False where
    it cannot. last: they stay closed.
    """
    began = time.monotonic()
    for pool in pools:
        pool.close()
    _until_idle(pools, began + seconds * BEGIN_PART)
    waiting = [pool.give_up(store) for pool in pools]
    _until_idle(pools, began + seconds * CANCEL_PART)
    for pool in pools:
        pool.cancel()
    _until_idle(pools, began + seconds)
    left = [pool.stop() for pool in pools]
    for pool, (cancelled, _), running in zip(pools, waiting, left, strict=True):
        pool.tell_all()
        if cancelled or running:
            text = "pool %s drained: %d calls had not begun and were cancelled, %d still run"
            _log.warning(text, pool.name, cancelled, running)
        if not last:
            pool.open()
    cancelled, deferred = (sum(column) for column in zip(*waiting, strict=True))
    return Drained(cancelled, deferred, sum(left))


def _until_idle(pools: Sequence[Pool], until: float) -> None:
    """Wait for those that can still get there."""
    while time.monotonic() < until and not all(pool.idle or pool.hopeless for pool in pools):
        time.sleep(LOOK_SECONDS)
