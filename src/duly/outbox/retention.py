"""Forgetting what is finished, in small batches.

Owns which rows may go and when: inbox rows that are done, with their effects, past the dedupe
window; outbox rows that were sent, unrouted, skipped or dropped (kept only as history); settled
entries of the failure log; old lines of the audit.  The invariant: nothing that is undelivered,
unhandled or waits for a person is ever deleted - the statements themselves name the statuses that
may go, so no caller can widen them - and an inbox row outlives the dedupe window, because it is
what a late duplicate is recognised by.  Effects go with their inbox row and never alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

from duly.errors import ConfigurationError
from duly.kernel.durations import Duration, seconds
from duly.kernel.lease import may_act
from duly.outbox.sole import Pass
from duly.ports import Connection, Result, Statement, Steps

__all__ = ["Keep", "Pruned", "Retention"]

_BATCH = 500  # rows of one transaction
_SLICE_SECONDS = 2.0  # a batch must be over by then, or it is not begun under a lease


@dataclass(frozen=True, kw_only=True)
class Keep:
    """How long what is kept. dedupe_window: of the App. outbox: sent rows, where history is kept.
    inbox: handled rows, at least the dedupe window. Raises ConfigurationError.
    """

    dedupe_window: Duration = "7d"
    outbox: Duration = "7d"
    inbox: Duration = "7d"
    failures: Duration = "30d"
    audit: Duration = "365d"

    def __post_init__(self) -> None:
        window = seconds(self.dedupe_window, "dedupe_window")
        if seconds(self.inbox, "inbox") < window:
            text = "handled rows must be kept for the whole dedupe_window: duplicates are told"
            raise ConfigurationError(f"{text} by them")
        for name in ("outbox", "failures", "audit"):
            seconds(getattr(self, name), name)


class Pruned(NamedTuple):
    """How many rows went, or would go, by kind."""

    outbox: int = 0
    inbox: int = 0
    effects: int = 0
    failures: int = 0
    audit: int = 0


class Retention:
    """Prunes the tables of one App."""

    def __init__(self, connection_factory: Callable[[], Connection], keep: Keep) -> None:
        self._connect = connection_factory
        self._seconds = {
            name: seconds(getattr(keep, name), name)
            for name in ("outbox", "inbox", "failures", "audit")
        }

    def count(self) -> Pruned:
        """How much ``prune`` would delete now; reads the tables whole."""
        wanted = self._seconds
        values = {
            "outbox_seconds": wanted["outbox"],
            "inbox_seconds": wanted["inbox"],
            "failure_seconds": wanted["failures"],
            "audit_seconds": wanted["audit"],
        }
        with closing(self._connect()) as connection:
            row = connection.ask(Statement("retention.count", values)).rows[0]
        return Pruned(*(int(number) for number in row))

    def prune(self) -> Pruned:
        """Delete what may go, in transactions of a few hundred rows; returns how much went.

        Guarantee: nothing undelivered goes. On failure: what was committed is gone, the rest stays.
        Idempotence: safe to repeat and to run in many processes at once.
        """
        totals = dict.fromkeys(Pruned._fields, 0)
        with closing(self._connect()) as connection:
            for steps in self._batches():
                while True:
                    gone, more = connection.run(steps())
                    for name, number in zip(Pruned._fields, gone, strict=True):
                        totals[name] += number
                    if not more:
                        break
        return Pruned(**totals)

    async def work(self, turn: Pass, monotonic: Callable[[], float]) -> bool:
        """The same as one pass of a ``SoleRole`` named ``retention``, as long as the lease lasts;
        True when it was too short.
        """
        for steps in self._batches():
            more = True
            while more:
                if not may_act(turn.term, monotonic(), _SLICE_SECONDS):
                    return True
                _, more = await turn.connection.run(steps)
        return False

    def _batches(self) -> list[Callable[[], Steps[tuple[Pruned, bool]]]]:
        """One function per table; each call makes the steps of its next batch."""
        outbox = _OutboxPages(self._seconds["outbox"])
        inbox, failures = self._seconds["inbox"], self._seconds["failures"]
        audit = self._seconds["audit"]
        return [
            outbox.steps,
            lambda: _inbox(inbox),
            lambda: _failures(failures),
            lambda: _audit(audit),
        ]


class _OutboxPages:
    """Walks the outbox by id and stops at the first page with nothing old enough: rows are settled
    after they were made, and ids follow the time closely. So it needs no index of its own.
    """

    def __init__(self, keep_seconds: float) -> None:
        self._keep_seconds = keep_seconds
        self._after = 0

    def steps(self) -> Steps[tuple[Pruned, bool]]:
        """The steps of the next page; the place is moved on before they are committed, which a
        repeat only loses until the next pass.
        """
        after = self._after
        values = {"after": after, "limit": _BATCH, "keep_seconds": self._keep_seconds}
        page: Result = yield Statement("retention.outbox_page", values)
        upto, rows, old = page.rows[0]
        if not old:
            return Pruned(), False
        bounds = {"after": after, "upto": upto, "keep_seconds": self._keep_seconds}
        gone = yield Statement("retention.outbox", bounds)
        self._after = upto
        return Pruned(outbox=gone.count), rows == _BATCH


def _inbox(keep_seconds: float) -> Steps[tuple[Pruned, bool]]:
    values = {"keep_seconds": keep_seconds}
    old: Result = yield Statement("retention.inbox_old", values | {"limit": _BATCH})
    if not old.rows:
        return Pruned(), False
    ids = [row[0] for row in old.rows]
    effects = yield Statement("retention.effects", values | {"ids": ids})
    gone = yield Statement("retention.inbox", values | {"ids": ids})
    return Pruned(inbox=gone.count, effects=effects.count), len(ids) == _BATCH


def _failures(keep_seconds: float) -> Steps[tuple[Pruned, bool]]:
    gone: Result = yield Statement(
        "retention.failures", {"keep_seconds": keep_seconds, "limit": _BATCH}
    )
    return Pruned(failures=gone.count), gone.count == _BATCH


def _audit(keep_seconds: float) -> Steps[tuple[Pruned, bool]]:
    gone: Result = yield Statement(
        "retention.audit", {"keep_seconds": keep_seconds, "limit": _BATCH}
    )
    return Pruned(audit=gone.count), gone.count == _BATCH
