"""The role that recovers global transactions, on one node at a time.

Owns the lease ``role/twophase`` around the sweeps.  The lease spares the participants the work of
many; what protects the data is the compare-and-set of each row, and what a sweep writes into the
journal is fenced by the lease's token besides.
"""

from __future__ import annotations

import asyncio
import logging

from duly.errors import DulyError, StaleLeaseError
from duly.observe.health import Health
from duly.ports import Clock, Database
from duly.runtime.role_lease import RoleLease
from duly.twophase.recovery import Recovery

__all__ = ["RecoveryRole"]

EVERY_SECONDS = 1.0
STALL_SECONDS = 60.0
_LABEL = "global transactions"
_log = logging.getLogger("duly.twophase")


class RecoveryRole:
    """A role for the supervisor."""

    def __init__(
        self,
        recovery: Recovery,
        *,
        database: Database,
        clock: Clock,
        health: Health,
        ttl_seconds: float,
    ) -> None:
        self._recovery, self._health = recovery, health
        self._lease = RoleLease("twophase", database=database, clock=clock, ttl_seconds=ttl_seconds)
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Begin no other sweep; from the loop's thread. Idempotent."""
        self._stopping.set()

    async def run(self) -> None:
        """Sweep at once and then every second, until stopped. Raises what is no DulyError."""
        self._health.expect(_LABEL, within_seconds=STALL_SECONDS)
        try:
            while not self._stopping.is_set():
                self._health.turned(_LABEL, code=await self._turn())
                try:
                    async with asyncio.timeout(EVERY_SECONDS):
                        await self._stopping.wait()
                except TimeoutError:
                    pass  # time for the next sweep
        finally:
            await self._lease.leave()
            await asyncio.to_thread(self._recovery.close)
            self._health.stopped(_LABEL)

    async def _turn(self) -> str:
        """One sweep, where the lease is ours; the code of what stands in the way. A participant
        that is away is not: it is told by the sweep, and makes nobody unready.
        """
        try:
            if await self._lease.take():
                await asyncio.to_thread(self._recovery.sweep, self._lease.values())
        except StaleLeaseError as error:
            _log.info("%s", error, extra={"code": error.code})
        except DulyError as error:
            _log.warning("%s: %s", _LABEL, error, extra={"code": error.code})
            return error.code
        return ""
