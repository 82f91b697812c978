"""The partitions of a plan are read beside each other, by this process and by others.

    claim -> copy what the last reader stored -> read on -> ... -> give back
    all done -> gather: copy what others read, chunk by chunk as their digests say

Owns which partitions this process takes, and the merge.  The invariants: nothing is merged before
every partition is done, and nothing that is not as its digest says; a partition that cannot be seen
or is damaged is read again; and what a helper meets is met by the run's own attempt before it fails
the run.  Who holds a partition, and what may be stored of it, is the business of ``partitions``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path

from duly.batch.partitions import Partition, Partitions, Stored
from duly.batch.parts import WORKERS, PartReading, taken_up, to_its_end
from duly.batch.plan import TAIL_MAX, Part, Plan, list_path
from duly.batch.steps import StopAtCheckpoint
from duly.errors import DulyError, StaleLeaseError, error_code

__all__ = ["Sharing"]

LOOK_SECONDS = 0.5
TAIL = TAIL_MAX // WORKERS

_log = logging.getLogger("duly.batch")


class Sharing:
    """This process's share of a plan. leads: whether it is the run's own attempt, which waits for
    all of them.
    """

    def __init__(self, plan: Plan, partitions: Partitions, *, leads: bool) -> None:
        self._plan, self._partitions, self._leads = plan, partitions, leads
        self._known: dict[int, Part] = {}
        self._mine: dict[int, asyncio.Task[None]] = {}

    @property
    def skipped(self) -> int:
        """Rows of the run that were left out, as far as it is known here."""
        return sum(part.skipped for part in self._known.values())

    async def work(
        self,
        reading: PartReading,
        *,
        stopping: Callable[[], bool],
        told: Callable[[Mapping[int, Part]], Awaitable[None]] | None = None,
    ) -> dict[int, Stored]:
        """Take what is free until all are done, or nothing is left for a helper. told: awaited with
        what is known of all, again and again. Raises StopAtCheckpoint, and what reading raises.
        """
        try:
            while True:
                stored = await self._partitions.stored(self._plan.mark)
                others = {n: one.part for n, one in stored.items() if n not in self._mine}
                self._known.update(others)
                if told is not None:
                    await told(self._known)
                if stopping() and not self._mine:
                    raise StopAtCheckpoint
                if not stopping():
                    await self._take(reading, stored)
                if not self._mine and (not self._leads or self._all_done(stored)):
                    return stored
                await self._wait()
        finally:
            for task in self._mine.values():
                task.cancel()
            await asyncio.gather(*self._mine.values(), return_exceptions=True)

    async def gather(self, stored: Mapping[int, Stored], own: Path) -> bool:
        """Bring all partitions into this folder and the plan; False where some must be read again,
        because they cannot be seen here or are not as they were written.
        """
        whole = True
        for number in range(len(self._plan.parts)):
            one = stored[number]
            found: Part | None = one.part  # its digests are compared when the file is sealed
            if one.spool != own.name:
                found = await to_its_end(self._brought, one, number, own)
            if found is None or not found.done:
                whole = False
                await self._undo(number, found, own)
            else:
                self._plan.parts[number] = found
        return whole

    async def _undo(self, number: int, found: Part | None, own: Path) -> None:
        """What was told of a partition does not hold; the next reader goes on from what does."""
        _log.warning("partition %s is read again: its chunks cannot be had here", number)
        partition = await self._partitions.claim(self._plan.mark, number)
        if partition is not None:
            try:
                part = found or self._plan.parts[number].rebuilt(())
                await partition.save(Stored(part, own.name))
            finally:
                await partition.leave()

    # --- one partition ----------------------------------------------------------------------------
    def _all_done(self, stored: Mapping[int, Stored]) -> bool:
        count = len(self._plan.parts)
        return sum(one.part.done for one in stored.values()) == count

    async def _take(self, reading: PartReading, stored: Mapping[int, Stored]) -> None:
        """Claim what is free while there is room."""
        for number in range(len(self._plan.parts)):
            one = stored.get(number)
            if len(self._mine) >= WORKERS:
                return
            if number in self._mine or (one is not None and one.part.done):
                continue
            if one is not None and one.error and not self._leads:
                continue
            partition = await self._partitions.claim(self._plan.mark, number)
            if partition is not None:
                turn = self._read(partition, reading)
                self._mine[number] = asyncio.create_task(turn)

    async def _wait(self) -> None:
        """Until one of ours has ended, or it is time to look at the others'."""
        if self._mine:
            tasks = self._mine.values()
            await asyncio.wait(tasks, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(LOOK_SECONDS)
        for number, task in list(self._mine.items()):
            if task.done():
                del self._mine[number]
                task.result()

    async def _read(self, partition: Partition, reading: PartReading) -> None:
        """Read a partition on from what is stored of it."""
        number, spool = partition.number, reading.spool
        try:
            if partition.known is not None and partition.known.part.done:
                return  # it was done between the look and the claim
            part = await to_its_end(self._begun, partition.known, number, spool)
            self._known[number] = part

            async def save() -> None:
                if len(part.tail) >= TAIL or any(chunk.skipped for chunk in part.tail):
                    await to_its_end(part.spill, list_path(spool, number))
                await partition.save(Stored(part, spool.name))

            await save()
            await reading.run(number, part, save=save)
        except StopAtCheckpoint:
            pass  # told by the caller's own look
        except StaleLeaseError as error:
            _log.info("%s", error.detail, extra={"code": error.code})
        except Exception as error:
            if not self._leads:
                await self._note(partition, error)
            raise
        finally:
            await partition.leave()

    async def _note(self, partition: Partition, error: Exception) -> None:
        """Leave a partition to the run's own attempt, which will meet the error itself."""
        known, code = partition.known, error_code(error)
        if known is not None:
            with suppress(DulyError):  # then the attempt finds it when all others are done
                await partition.save(Stored(known.part, known.spool, error=code))

    def _begun(self, known: Stored | None, number: int, own: Path) -> Part:
        """The partition as far as it can be had here, in files of this folder."""
        if not own.is_dir():
            self._partitions.folders.make(own, shared=True)  # for another partition
        found = None if known is None else self._brought(known, number, own)
        return found or self._plan.parts[number].rebuilt(())

    def _brought(self, known: Stored, number: int, own: Path) -> Part | None:
        source = self._partitions.folders.find(self._partitions.instance, known.spool)
        if source is None:
            return None
        found = taken_up(known.part, number, source=source, own=own)
        if found is not None:
            found.spill(list_path(own, number))
        return found
