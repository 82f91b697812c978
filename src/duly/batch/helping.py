"""Helping with a run that another process works on: reading partitions of its extraction.

Owns when this process helps, and when it stops.  The invariants: a helper sees the folder of the
run's attempt, so that what it reads can be seen from there; it has the very definition that the run
has; and it goes on only while that attempt's plan is in force.  It stores nothing but its
partitions, and what it meets there is left to the run's own attempt.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from secrets import token_hex
from typing import NamedTuple

import msgspec

from duly.batch.folders import Folders
from duly.batch.instance import values_of
from duly.batch.job import Job
from duly.batch.partitions import Leasing, Partitions
from duly.batch.parts import PartReading, Recipe
from duly.batch.plan import Plan
from duly.batch.runs import RunRow, attempts, checkpoints, find
from duly.batch.sharing import Sharing
from duly.batch.steps import StopAtCheckpoint
from duly.errors import DulyError, StaleLeaseError, error_code
from duly.ports import Steps
from duly.runtime.connection import ConnectionThread
from duly.runtime.portal import Portal

__all__ = ["Helping"]

CANCEL_SECONDS = 10.0

_log = logging.getLogger("duly.batch")


class _Found(NamedTuple):
    """What there is to help with. spool: the name of the folder of the run's attempt."""

    row: RunRow
    plan: Plan
    spool: str


class Helping:
    """One turn of help with a run. stopped: whether this process is to stop."""

    def __init__(
        self,
        job: Job,
        instance: str,
        *,
        leasing: Leasing,
        folders: Folders,
        stopped: Callable[[], bool],
    ) -> None:
        self._job, self._instance, self._leasing = job, instance, leasing
        self._folders, self._stopped = folders, stopped
        self._over = False
        self._connection = ConnectionThread(leasing.database, f"help-{instance}")

    async def run(self) -> bool:
        """Read what is free; whether this process may help with this run again. Never raises but
        for a bug of its own.
        """
        try:
            found = await self._connection.run(self._look)
            if found is None or self._folders.find(self._instance, found.spool) is None:
                return True
            await self._help(found)
        except (StopAtCheckpoint, StaleLeaseError):  # there is nothing to help with any more
            return True
        except Exception as error:  # noqa: BLE001  # the run's own attempt will meet it, and tell it
            code, detail = error_code(error), str(error) if isinstance(error, DulyError) else ""
            _log.warning("help with %s: %s %s", self._instance, code, detail, extra={"code": code})
            return False
        finally:
            await asyncio.to_thread(self._connection.close)
        return True

    def _look(self) -> Steps[_Found | None]:
        row = yield from find(self._instance)
        if row is None or row.status != "running" or row.wanted:
            return None
        if row.definition != self._job.definition:
            return None
        step = (yield from checkpoints(self._instance)).get("extract")
        if step is None or step.status == "done" or step.data is None:
            return None
        plan = msgspec.json.decode(step.data, type=Plan)
        if not plan.mark or plan.done:
            return None
        (last,) = yield from attempts(self._instance, limit=1)
        return _Found(row, plan, last.spool)

    async def _help(self, found: _Found) -> None:
        portal = Portal(f"help-{self._instance}", drain_seconds=CANCEL_SECONDS)
        working = asyncio.wrap_future(portal.spawn(self._work(found)))
        watching = asyncio.create_task(self._watch(found.plan.mark))
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
            await working  # what watches ends only by telling it to stop
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await asyncio.to_thread(portal.close)

    async def _work(self, found: _Found) -> None:
        partitions = Partitions(
            self._instance,
            self._leasing,
            attempt=found.row.attempt,
            connection=self._connection,
            folders=self._folders,
        )
        try:
            recipe = Recipe.of(self._job, values_of(self._job.params, found.row.params))
            sharing = Sharing(found.plan, partitions, leads=False)
            reading = PartReading(
                recipe,
                found.plan,
                spool=self._folders.path(self._instance, token_hex(8)),
                stopping=self._stopping,
                skipped=lambda: sharing.skipped,
            )
            await sharing.work(reading, stopping=self._stopping)
        finally:
            await partitions.close()

    def _stopping(self) -> bool:
        return self._over or self._stopped()

    async def _watch(self, mark: str) -> None:
        """Stop at the next safe point when there is nothing to help with any more."""
        while not self._over:
            await asyncio.sleep(min(self._leasing.renew_seconds, 1.0))
            with suppress(DulyError):  # the leases run out where the database stays away
                found = await self._connection.run(self._look)
                self._over = found is None or found.plan.mark != mark
