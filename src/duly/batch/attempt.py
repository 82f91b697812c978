"""One attempt at a run: its steps in order, each from its last checkpoint.

    begin -> [ step: load -> work -> save ]* -> end, with the job's event, in one transaction

Owns what a step is given (``StepContext``) and how an attempt ends.  The invariants: a checkpoint
is stored only under the attempt's token and only while its lease lasts by this process's own clock;
facts are stored with the checkpoint behind them; the run is marked done in the transaction that
stores its event.  An attempt has an event loop and a thread of its own, so that a step that blocks
holds up nothing but itself; keeping the lease is the runner's business, on another thread.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from duly.batch.folders import Folders
from duly.batch.instance import values_of
from duly.batch.job import Finished, Job
from duly.batch.partitions import Partitions
from duly.batch.progress import Progress
from duly.batch.runs import CHECKPOINT_BYTES_MAX, Checkpoint, Claimed, conclude, save
from duly.batch.steps import Step, StopAtCheckpoint
from duly.batch.storing import store
from duly.errors import (
    ConfigurationError,
    DulyError,
    GapError,
    OutcomeUnknownError,
    PermanentError,
    StaleLeaseError,
    error_code,
)
from duly.kernel import failpoints, runs
from duly.kernel.runs import Run
from duly.observe.facts import BatchEnded, BatchProgressed, BatchStepEnded
from duly.observe.hooks import Hooks
from duly.outbox.publish import MessageOutlet, PendingMessage
from duly.ports import Clock, Steps
from duly.runtime.connection import ConnectionThread

__all__ = ["Attempting", "Tools"]

TELL_SECONDS = 10.0
# Also an unknown outcome that a step does not resolve by itself: a person has to look.
_FOR_GOOD = (PermanentError, ConfigurationError, GapError, OutcomeUnknownError)

T = TypeVar("T")

_log = logging.getLogger("duly.batch")


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What an attempt works with. connection: where it stores; remaining_seconds: of its lease, by
    this process's clock. partitions: of the run.
    """

    connection: ConnectionThread
    outlet: MessageOutlet
    hooks: Hooks
    clock: Clock
    folders: Folders
    partitions: Partitions
    remaining_seconds: Callable[[], float]


class Attempting:
    """One attempt in the hands of this process. ``run`` is called once, in a loop of its own."""

    def __init__(self, job: Job, claimed: Claimed, tools: Tools) -> None:
        self._job, self._claimed, self._tools = job, claimed, tools
        self.row = claimed.row
        self.params: Mapping[str, object] = {}
        self.checkpoints = dict(claimed.checkpoints)
        self.progress = Progress()
        self.stopping = False
        self._cancelled = False
        self._task: asyncio.Task[Any] | None = None
        self.spool = tools.folders.path(self.row.instance, claimed.spool)

    async def run(self) -> str:
        """Do the steps; returns the status the run has now, empty where it is another's.

        Raises only what is a bug.
        """
        began = self._tools.clock.monotonic()
        code = ""
        self._task = asyncio.current_task()
        if self._cancelled:
            return ""
        try:
            self.params = values_of(self._job.params, self.row.params)
            await asyncio.to_thread(self._tools.folders.make, self.spool)
            for step in self._job.steps():
                await self._do(step)
            status = await self._finish()
        except StopAtCheckpoint:
            status = await self._conclude(runs.given_back)
        except StaleLeaseError as error:
            _log.info("%s: %s", self.row.instance, error.detail, extra={"code": error.code})
            return ""
        except Exception as error:  # noqa: BLE001  # stored, told, tried again or not
            code = error_code(error)
            status = await self._fail(error)
        seconds = self._tools.clock.monotonic() - began
        self._tools.hooks.emit(
            BatchEnded(
                job=self._job.name,
                instance=self.row.instance,
                attempt=self.row.attempt,
                status=status,
                code=code,
                seconds=seconds,
            )
        )
        return status

    def cancel(self) -> None:
        """End it where it stands, from any thread; what it has in hand is lost. Idempotent."""
        self._cancelled = True
        if self._task is not None:
            self._task.get_loop().call_soon_threadsafe(self._task.cancel)

    async def _do(self, step: Step) -> None:
        context = _Context(self, step.name, self._job, tools=self._tools)
        began = self._tools.clock.monotonic()
        known = self.checkpoints.get(step.name)
        rows, size_bytes = (known.rows, known.size_bytes) if known is not None else (0, 0)
        self.progress.begin(step.name, rows=rows, size_bytes=size_bytes, now=began)
        await step.run(context)
        await context.end()
        failpoints.hit(failpoints.BATCH_STEP_DONE)
        done = self.checkpoints[step.name]
        self._tools.hooks.emit(
            BatchStepEnded(
                job=self._job.name,
                instance=self.row.instance,
                step=step.name,
                rows=done.rows,
                size_bytes=done.size_bytes,
                seconds=self._tools.clock.monotonic() - began,
            )
        )
        if self.stopping:
            raise StopAtCheckpoint

    # --- the end ----------------------------------------------------------------------------------
    async def _finish(self) -> str:
        """Mark the run done and publish its event, in one transaction."""
        pending = [] if self._job.done is None else self._events(self._job.done(self._finished()))

        def steps() -> Steps[str]:
            row = yield from conclude(self.row, runs.ended)
            yield from self._tools.outlet.write(pending)
            return row.status

        status = await self._store(steps)
        failpoints.hit(failpoints.BATCH_DONE)
        self._tools.outlet.committed(pending)
        await asyncio.to_thread(self._tools.folders.keep_only, self.spool)
        return status

    def _events(self, made: object) -> list[PendingMessage]:
        """Events and commands that a job's ``done`` gave: one, several, or none."""
        messages = made if isinstance(made, list | tuple) else [] if made is None else [made]
        outlet = self._tools.outlet
        return [
            PendingMessage(outlet, one, kind=outlet.registry.of(type(one)).kind) for one in messages
        ]

    def _finished(self) -> Finished:
        order = [self.checkpoints[name] for name in self._job.step_names]
        at = self.row.scheduled_for
        return Finished(
            job=self._job.name,
            instance=self.row.instance,
            params=self.params,
            attempt=self.row.attempt,
            rows=next((one.rows for one in reversed(order) if one.rows), 0),
            size_bytes=next((one.size_bytes for one in reversed(order) if one.size_bytes), 0),
            facts={one.step: one.facts for one in order},
            scheduled_for=datetime.fromisoformat(at) if at else None,
        )

    async def _fail(self, error: Exception) -> str:
        code = error_code(error)
        text = f"{code}: {error.detail}" if isinstance(error, DulyError) else code
        retry, for_good = self._job.retry, isinstance(error, _FOR_GOOD)
        delay = retry.delay(max(1, self.row.tries), random.random())
        level = logging.ERROR if for_good else logging.WARNING
        trace = None if isinstance(error, DulyError) else error
        extra = {"code": code}
        _log.log(level, "%s: %s", self.row.instance, text, exc_info=trace, extra=extra)

        def change(run: Run) -> Run:
            return runs.broken(run, again=not (for_good or retry.exhausted(run.tries)))

        return await self._conclude(change, error=text, due_in_seconds=delay)

    async def _conclude(
        self, change: Callable[[Run], Run], *, error: str = "", due_in_seconds: float = 0.0
    ) -> str:
        def steps() -> Steps[str]:
            row = yield from conclude(self.row, change, error=error, due_in_seconds=due_in_seconds)
            return row.status

        try:
            return await self._store(steps)
        except StaleLeaseError as stale:
            _log.info("%s: %s", self.row.instance, stale.detail, extra={"code": stale.code})
            return ""

    async def _store(self, steps: Callable[[], Steps[T]]) -> T:
        """Run steps while the lease lasts; a database that is away is waited for as long."""
        return await store(
            self._tools.connection,
            steps,
            remaining_seconds=self._tools.remaining_seconds,
            name=self.row.instance,
        )

    async def store_checkpoint(self, checkpoint: Checkpoint, *, got_on: bool) -> None:
        """Store how far a step is. Raises StaleLeaseError."""
        await self._store(lambda: save(self.row, checkpoint, got_on=got_on))
        self.checkpoints[checkpoint.step] = checkpoint

    def spool_of(self, attempt: int) -> Path | None:
        """The folder of an earlier attempt, where this host can see it."""
        name = self._claimed.spools.get(attempt)
        return None if name is None else self._tools.folders.find(self.row.instance, name)


class _Context:
    """What a step is given; implements ``StepContext``."""

    def __init__(self, attempting: Attempting, step: str, job: Job, *, tools: Tools) -> None:
        self.job, self.instance = job.name, attempting.row.instance
        self.params = attempting.params
        self.definition = job.definition
        self.attempt, self.token = attempting.row.attempt, attempting.row.token
        self.spool = attempting.spool
        self.partitions: Partitions | None = tools.partitions
        self._attempting, self._step, self._tools = attempting, step, tools
        self._known = attempting.checkpoints.get(step)
        self._best = (self._known.rows, self._known.size_bytes) if self._known else (-1, -1)
        self._facts = dict(self._known.facts) if self._known else {}
        self._told_at = tools.clock.monotonic()
        earlier = self._known.attempt if self._known else self.attempt
        self.previous_spool: Path | None = (
            None if earlier == self.attempt else attempting.spool_of(earlier)
        )

    @property
    def stopping(self) -> bool:
        return self._attempting.stopping

    def load(self) -> bytes | None:
        return self._known.data if self._known else None

    async def save(self, checkpoint: bytes, *, rows: int = 0, size_bytes: int = 0) -> None:
        if len(checkpoint) > CHECKPOINT_BYTES_MAX:
            text = f"a checkpoint of {len(checkpoint)} bytes; at most {CHECKPOINT_BYTES_MAX}"
            raise PermanentError(text, code="BATCH_CHECKPOINT")
        self.progress(rows=rows, size_bytes=size_bytes)
        await self._put(checkpoint, "open", rows=rows, size_bytes=size_bytes)

    async def end(self) -> None:
        """The step has ended."""
        known = self._known
        if known is not None and (known.status, known.attempt) == ("done", self.attempt):
            return
        # Also where it had ended before: what it made stands in this attempt's folder now.
        rows, size_bytes = (known.rows, known.size_bytes) if known else (0, 0)
        await self._put(known.data if known else None, "done", rows=rows, size_bytes=size_bytes)

    async def _put(self, data: bytes | None, status: str, *, rows: int, size_bytes: int) -> None:
        ended_first = status == "done" and (self._known is None or self._known.status != "done")
        further = rows > self._best[0] or size_bytes > self._best[1]
        saves = self._known.saves + 1 if self._known else 1
        put = Checkpoint(
            step=self._step,
            attempt=self.attempt,
            status=status,
            data=data,
            rows=rows,
            size_bytes=size_bytes,
            facts=dict(self._facts),
            saves=saves,
            moved_at=time.time(),
        )
        await self._attempting.store_checkpoint(put, got_on=further or ended_first)
        self._known = put
        self._best = (max(rows, self._best[0]), max(size_bytes, self._best[1]))

    def progress(self, *, rows: int, size_bytes: int, total_bytes: int | None = None) -> None:
        now = self._tools.clock.monotonic()
        self._attempting.progress.told(rows, size_bytes, total_bytes=total_bytes, now=now)
        if now - self._told_at >= TELL_SECONDS:
            self._told_at = now
            self._tools.hooks.emit(
                BatchProgressed(
                    job=self.job,
                    instance=self.instance,
                    step=self._step,
                    rows=rows,
                    size_bytes=size_bytes,
                    total_bytes=total_bytes,
                )
            )

    def fact(self, name: str, value: str | float | bool) -> None:
        self._facts[name] = value
