"""Who reads which partition of a run, and how far each one is.

    a checkpoint, step extract/MARK/NUMBER        a lease, role/batch/INSTANCE/MARK/NUMBER

A partition is read by whoever holds its lease, in any process, and goes on behind what the last
holder stored.  The invariants: what is stored names the token of that lease, so that of several
that think they hold a partition only the newest can store anything; and MARK is drawn when the plan
is made, so that what somebody stores late for an earlier plan is never taken for this one's.
"""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from duly.batch.folders import Folders
from duly.batch.plan import Part, Plan
from duly.batch.runs import checkpoints
from duly.batch.storing import store
from duly.errors import DulyError, OutcomeUnknownError, RetryableError, StaleLeaseError
from duly.kernel import failpoints
from duly.ports import Clock, Database, Statement, Steps
from duly.runtime.connection import ConnectionThread
from duly.runtime.role_lease import RoleLease

__all__ = ["Leasing", "Partition", "Partitions", "Stored", "step_of"]


class Stored(msgspec.Struct):
    """What is known of a partition. spool: the name of the folder its chunks lie in. error: what
    its last reader met; only the run's own attempt goes on then, and so meets it itself.
    """

    part: Part
    spool: str
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Leasing:
    """How leases are taken. renew_seconds: between renewals."""

    database: Database
    clock: Clock
    ttl_seconds: float
    renew_seconds: float


def step_of(name: str) -> str:
    """The step that a checkpoint is of: ``extract`` for one of its partitions."""
    return name.partition("/")[0]


class Partitions:
    """The partitions of one run, as one process sees them. attempt: that the plan is of.
    connection: where it stores; used by others, too. folders: of the App's runs.
    """

    def __init__(
        self,
        instance: str,
        leasing: Leasing,
        *,
        attempt: int,
        connection: ConnectionThread,
        folders: Folders,
    ) -> None:
        self.instance, self.leasing, self.attempt = instance, leasing, attempt
        self.connection, self.folders = connection, folders
        self.leases = ConnectionThread(leasing.database, f"leases-{instance}")

    async def stored(self, mark: str) -> dict[int, Stored]:
        """What is stored of a plan's partitions, by number. Raises StaleLeaseError when the plan is
        not in force any more: what was stored of it is dropped then, and must not be read again.
        """
        known = await self.connection.run(lambda: checkpoints(self.instance))
        step = known.get("extract")
        plan = None if step is None else msgspec.json.decode(step.data or b"", type=Plan)
        if plan is None or plan.mark != mark or plan.done:
            raise StaleLeaseError(f"the plan {mark} of {self.instance} is over")
        return {
            int(name.rpartition("/")[2]): msgspec.json.decode(one.data, type=Stored)
            for name, one in known.items()
            if name.startswith(f"extract/{mark}/") and one.data is not None
        }

    async def claim(self, mark: str, number: int) -> Partition | None:
        """Take a partition; None while it is another's."""
        leasing = self.leasing
        lease = RoleLease(
            f"batch/{self.instance}/{mark}/{number}",
            database=leasing.database,
            clock=leasing.clock,
            ttl_seconds=leasing.ttl_seconds,
            connection=self.leases,
        )
        if not await lease.take():
            return None
        try:  # under the lease: nobody else can store anything of it any more
            known = (await self.stored(mark)).get(number)
        except DulyError:
            await lease.leave()
            raise
        failpoints.hit(failpoints.BATCH_PARTITION_CLAIMED)
        return Partition(self, lease, mark=mark, number=number, known=known)

    async def forget(self, *, but: str = "") -> None:
        """Drop what is stored of all plans, or of all but one."""

        def steps() -> Steps[None]:
            known = yield from checkpoints(self.instance)
            names = [name for name in known if "/" in name and name.split("/")[1] != but]
            if names:
                yield Statement("checkpoint.drop", {"instance": self.instance, "steps": names})

        await self.connection.run(steps)

    async def close(self) -> None:
        """Close the connection of its own."""
        await asyncio.to_thread(self.leases.close)


class Partition:
    """A partition in the hands of this process. known: what was stored of it, None for nothing."""

    def __init__(
        self,
        partitions: Partitions,
        lease: RoleLease,
        *,
        mark: str,
        number: int,
        known: Stored | None,
    ) -> None:
        self.number, self.known = number, known
        self._partitions, self._lease = partitions, lease
        self._name = f"{partitions.instance}/{mark}/{number}"
        self._step = f"extract/{mark}/{number:03}"
        self._keeping = asyncio.create_task(self._keep())

    async def save(self, stored: Stored) -> None:
        """Store how far it is, durable when this returns. Raises StaleLeaseError: it is another's
        by now.
        """
        put = Statement("checkpoint.put", self._columns(stored))
        await store(
            self._partitions.connection,
            lambda: self._put(put),
            remaining_seconds=lambda: self._lease.remaining_seconds,
            name=self._name,
        )
        self.known = stored

    async def leave(self) -> None:
        """Give it back; what cannot be given back runs out."""
        self._keeping.cancel()
        await asyncio.gather(self._keeping, return_exceptions=True)
        values = {"instance": self._name, "holder": self._lease.values()["holder"]}
        with suppress(DulyError):  # it runs out by itself
            await self._partitions.leases.ask(Statement("run.forget_lease", values))
        await self._lease.leave()

    async def _keep(self) -> None:
        """Prolong the lease until it is lost."""
        while True:
            await asyncio.sleep(min(self._partitions.leasing.renew_seconds, 1.0))
            try:
                if not await self._lease.take():
                    return
            except (RetryableError, OutcomeUnknownError):
                if not self._lease.remaining_seconds:
                    return

    def _put(self, put: Statement) -> Steps[None]:
        if not (yield Statement("lease.guard", self._lease.values())).rows:
            raise StaleLeaseError(f"the partition {self._name} was taken over")
        yield put

    def _columns(self, stored: Stored) -> dict[str, Any]:
        part = stored.part
        owner = f"{socket.gethostname()[:100]}:{os.getpid()}"
        return {
            "instance": self._partitions.instance,
            "step": self._step,
            "attempt": self._partitions.attempt,
            "status": "done" if part.done else "open",
            "data": msgspec.json.encode(stored),
            "row_count": part.rows,
            "size_bytes": part.size_bytes,
            "facts": msgspec.json.encode({"reader": owner}).decode(),
        }
