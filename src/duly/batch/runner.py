"""The role that takes up due runs and keeps their leases.

    look -> take the lease -> claim -> [ attempt in its own thread | keep the lease | look at what a
    person wants ] -> give the lease back

Owns which runs this process works on.  The invariants: an attempt goes on only while this process
holds the run's lease by its own clock, and is cancelled as soon as it does not, or its row says
that somebody put it out; a stop lets attempts end at their next safe point, and gives the runs back
so that another process goes on with them at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from secrets import token_hex
from typing import Any

from duly.batch.attempt import Attempting, Tools
from duly.batch.folders import Folders
from duly.batch.helping import Helping
from duly.batch.job import Job
from duly.batch.partitions import Leasing, Partitions
from duly.batch.registry import JobRegistry
from duly.batch.runs import Claimed, Refused, Waiting, claim, find, read, waiting
from duly.batch.scheduler import Scheduler
from duly.errors import DulyError, RetryableError, StaleLeaseError, WrongStatusError
from duly.kernel import failpoints
from duly.kernel.runs import FINAL
from duly.observe.facts import BatchBegan, BatchEnded
from duly.observe.hooks import Hooks
from duly.outbox.publish import MessageOutlet
from duly.ports import Clock, Database, Statement, Steps
from duly.runtime.connection import ConnectionThread
from duly.runtime.portal import Portal
from duly.runtime.role_lease import RoleLease, is_gone

__all__ = ["BatchContext", "BatchRole"]

TIDY_EVERY_SECONDS = 600.0
CANCEL_SECONDS = 10.0

_log = logging.getLogger("duly.batch")


@dataclass(frozen=True, kw_only=True)
class BatchContext:
    """What runs of an App work with. at_once: runs that this process works on at a time;
    look_seconds: between looks for due runs; keep_seconds: how long the files of ended runs are
    kept.
    """

    database: Database
    outlet: MessageOutlet
    hooks: Hooks
    clock: Clock
    jobs: JobRegistry
    folders: Folders
    ttl_seconds: float
    renew_seconds: float
    look_seconds: float
    keep_seconds: float
    at_once: int

    @property
    def leasing(self) -> Leasing:
        """How leases of partitions are taken."""
        return Leasing(
            database=self.database,
            clock=self.clock,
            ttl_seconds=self.ttl_seconds,
            renew_seconds=self.renew_seconds,
        )


class BatchRole:
    """A role for the supervisor. only: the one instance to work on, and then end; all otherwise."""

    def __init__(self, context: BatchContext, *, only: str = "") -> None:
        self._context, self._only = context, only
        self._stopping = asyncio.Event()
        self._connection = ConnectionThread(context.database, "batch")
        self._scheduler = Scheduler(context.jobs, clock=context.clock, hooks=context.hooks)
        self._turns: dict[str, asyncio.Task[None]] = {}
        self._help: asyncio.Task[bool] | None = None
        self._helped = ""
        self._no_help: set[str] = set()  # runs that this process met an error in
        self.attempts: dict[str, Attempting] = {}
        self._tidy_at = context.clock.monotonic() + TIDY_EVERY_SECONDS
        self._found_nothing = False

    def stop(self) -> None:
        """Begin no other attempt; those under way stop at their next safe point. Idempotent."""
        self._stopping.set()
        for attempt in self.attempts.values():
            attempt.stopping = True

    @property
    def idle(self) -> bool:
        """Whether nothing is under way here, and the last look found nothing to take up."""
        return self._found_nothing and not self._turns and self._help is None

    async def run(self) -> None:
        """Work until stopped. Raises what is no DulyError; those are told, and tried again."""
        try:
            while not self._stopping.is_set():
                try:
                    await self._look()
                except DulyError as error:
                    _log.warning("batch: %s", error, extra={"code": error.code})
                for name, task in list(self._turns.items()):
                    if task.done():
                        del self._turns[name]
                        task.result()
                self._helped_out()
                if self._only and await self._only_ended():
                    break
                await self._pause()
            if self._under_way:
                await asyncio.wait(self._under_way)
        finally:
            under_way = self._under_way
            for each in under_way:
                each.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
            await asyncio.to_thread(self._connection.close)

    async def _look(self) -> None:
        """Make what is due by time, then take up runs while there is room."""
        context = self._context
        names = list(context.jobs.names)
        if not self._only:
            await self._scheduler.look(self._connection)
            await self._tidy()
        found = await self._connection.run(lambda: waiting(names))
        open_to_us = [one for one in found if self._may_take(one)]
        self._found_nothing = not open_to_us
        for one in open_to_us:
            if len(self._turns) >= context.at_once:
                break
            turn = _Turn(self, context, context.jobs.get(one.job), instance=one.instance)
            task = asyncio.create_task(turn.run(), name=f"duly batch {one.instance}")
            self._turns[one.instance] = task
        if not self._only:
            self._lend_a_hand(found)

    @property
    def _under_way(self) -> set[asyncio.Task[Any]]:
        helping = set() if self._help is None else {self._help}
        return {*self._turns.values(), *helping}

    def _lend_a_hand(self, found: Sequence[Waiting]) -> None:
        """Help with one run that another process works on; it costs no place of a run."""
        for one in found:
            job = self._context.jobs.get(one.job)
            mine = one.holder is None or one.instance in self._turns
            shared = getattr(job.read, "partitions", 1) > 1 and one.status == "running"
            if self._help is None and shared and not mine and one.instance not in self._no_help:
                helping = Helping(
                    job,
                    one.instance,
                    leasing=self._context.leasing,
                    folders=self._context.folders,
                    stopped=lambda: self.stopped,
                )
                self._helped = one.instance
                self._help = asyncio.create_task(helping.run())

    def _helped_out(self) -> None:
        if self._help is not None and self._help.done():
            if not self._help.result():
                self._no_help.add(self._helped)
            self._help = None

    def _may_take(self, one: Waiting) -> bool:
        if self._only not in ("", one.instance) or one.instance in self._turns:
            return False
        return one.holder is None or is_gone(one.holder.partition("/")[0])

    async def _only_ended(self) -> bool:
        if self._only in self._turns:
            return False
        row = await self._connection.run(lambda: read(self._only))
        return row.status not in ("due", "running")

    async def _tidy(self) -> None:
        """Remove the files of runs that ended long ago."""
        now = self._context.clock.monotonic()
        if now < self._tidy_at:
            return
        self._tidy_at = now + TIDY_EVERY_SECONDS
        folders, keep = self._context.folders, self._context.keep_seconds
        for instance in await asyncio.to_thread(folders.older_than, keep):
            row = await self._connection.run(partial(find, instance))
            ended = row.ended_at if row is not None and row.status in FINAL else None
            if ended is not None and self._context.clock.time() - ended > keep:
                await asyncio.to_thread(folders.remove, instance)

    async def _pause(self) -> None:
        """Until it is time to look again, an attempt has ended, or we stop."""
        stopping = asyncio.create_task(self._stopping.wait())
        waiting_for = {stopping, *self._turns.values()}
        try:
            await asyncio.wait(
                waiting_for,
                timeout=self._context.look_seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            stopping.cancel()

    @property
    def stopped(self) -> bool:
        """Whether it was told to stop."""
        return self._stopping.is_set()


class _Turn:
    """One attempt, from taking the lease to giving it back."""

    def __init__(self, role: BatchRole, context: BatchContext, job: Job, *, instance: str) -> None:
        self._role, self._context, self._job, self._instance = role, context, job, instance
        self._lease = RoleLease(
            f"batch/{instance}",
            database=context.database,
            clock=context.clock,
            ttl_seconds=context.ttl_seconds,
        )
        self._connection = ConnectionThread(context.database, f"batch-{instance}")

    async def run(self) -> None:
        """Take, claim, work, give back. What others had before us is no error."""
        try:
            if await self._lease.take():
                claimed = await self._claim()
                if claimed is not None:
                    await self._work(claimed)
        except (StaleLeaseError, WrongStatusError) as error:
            _log.info("%s: %s", self._instance, error.detail, extra={"code": error.code})
        except DulyError as error:
            _log.warning("%s: %s", self._instance, error, extra={"code": error.code})
        finally:
            await self._leave()

    async def _claim(self) -> Claimed | None:
        job = self._job
        owner = f"{socket.gethostname()[:100]}:{os.getpid()}"

        def steps() -> Steps[Claimed | Refused]:
            return claim(
                self._instance,
                lease=self._lease.values(),
                definition=job.definition,
                on_change=job.on_change,
                owner=owner,
                spool=token_hex(8),
            )

        claimed = await self._connection.run(steps)
        if isinstance(claimed, Claimed):
            return claimed
        row = claimed.row
        level = logging.ERROR if row.status == "failed" else logging.INFO
        _log.log(level, "%s: %s", row.instance, row.last_error or row.status)
        self._context.hooks.emit(
            BatchEnded(
                job=row.job,
                instance=row.instance,
                attempt=row.attempt,
                status=row.status,
                code=claimed.code,
                seconds=0.0,
            )
        )
        return None

    async def _work(self, claimed: Claimed) -> None:
        context, row = self._context, claimed.row
        partitions = Partitions(
            row.instance,
            context.leasing,
            attempt=row.attempt,
            connection=self._connection,
            folders=context.folders,
        )
        tools = Tools(
            partitions=partitions,
            connection=self._connection,
            outlet=context.outlet,
            hooks=context.hooks,
            clock=context.clock,
            folders=context.folders,
            remaining_seconds=lambda: self._lease.remaining_seconds,
        )
        attempting = Attempting(self._job, claimed, tools)
        attempting.stopping = self._role.stopped
        self._role.attempts[self._instance] = attempting
        context.hooks.emit(BatchBegan(job=row.job, instance=row.instance, attempt=row.attempt))
        failpoints.hit(failpoints.BATCH_CLAIMED)
        portal = Portal(f"batch-{self._instance}", drain_seconds=CANCEL_SECONDS)
        working: asyncio.Future[str] = asyncio.wrap_future(portal.spawn(attempting.run()))
        keeping = asyncio.create_task(self._keep(attempting))
        try:
            both: set[asyncio.Future[Any]] = {working, keeping}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
            else:
                keeping.result()
        finally:
            keeping.cancel()
            if not working.done():
                attempting.cancel()
                await asyncio.wait({working}, timeout=CANCEL_SECONDS)
                if not working.done():
                    _log.error("%s: a step does not end; it is left behind", self._instance)
            await asyncio.gather(keeping, return_exceptions=True)
            await asyncio.to_thread(portal.close)
            await partitions.close()
            del self._role.attempts[self._instance]

    async def _keep(self, attempting: Attempting) -> None:
        """Prolong the lease and look for what a person wants. Raises StaleLeaseError."""
        token = attempting.row.token
        while True:
            await asyncio.sleep(min(self._context.renew_seconds, 1.0))
            try:
                if not await self._lease.take():
                    raise StaleLeaseError(f"the lease of {self._instance} was lost")
                row = await self._lease.connection.run(lambda: read(self._instance))
            except RetryableError as error:
                if not self._lease.remaining_seconds:
                    raise StaleLeaseError(f"the lease of {self._instance} ran out") from error
                continue
            if row.token != token:
                raise StaleLeaseError(f"attempt {attempting.row.attempt} was put out")
            if row.wanted or self._role.stopped:
                attempting.stopping = True

    async def _leave(self) -> None:
        holder = self._lease.values()["holder"]
        values = {"instance": self._instance, "holder": holder}
        with suppress(DulyError):  # it runs out by itself
            await self._lease.connection.ask(Statement("run.forget_lease", values))
        await self._lease.leave()
        await asyncio.to_thread(self._connection.close)
