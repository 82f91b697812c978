"""A role that one node at a time plays: pass after pass, under a lease of its own.

Owns the lease ``role/NAME`` and the loop.  The invariant: a pass begins only while this node holds
the lease, and gets a term by which it must stop and with which it can fence what it writes.  A node
that dies leaves the role to the others when its lease runs out; passes must bear being broken off
at any statement.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from duly.errors import DulyError
from duly.kernel.lease import LeaseTerm, margin_seconds, safe_until
from duly.message import new_id
from duly.ports import Clock, Database, Statement
from duly.runtime.connection import ConnectionThread

__all__ = ["Pass", "SoleRole"]

TTL_SECONDS = 15.0

_log = logging.getLogger("duly.role")


class Pass(NamedTuple):
    """What one pass works with: the connection, the term of the lease and under whose name it is
    held.
    """

    connection: ConnectionThread
    term: LeaseTerm
    holder: str


class SoleRole:
    """A role for the supervisor. work: one pass; returns True when there is more to do at once.

    every_seconds: between passes that found no more to do.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[Pass], Awaitable[bool]],
        *,
        database: Database,
        clock: Clock,
        every_seconds: float,
    ) -> None:
        self._lease, self._work, self._database = f"role/{name}", work, database
        self._clock, self._every_seconds = clock, every_seconds
        self._holder = new_id()
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Begin no other pass; from the loop's thread. Idempotent."""
        self._stopping.set()

    async def run(self) -> None:
        """Make passes until stopped. Raises what is no DulyError; those are logged and tried again
        later.
        """
        connection = ConnectionThread(self._database, self._lease)
        try:
            while not self._stopping.is_set():
                more = False
                try:
                    more = await self._turn(connection)
                except DulyError as error:
                    _log.warning("%s: %s", self._lease, error, extra={"code": error.code})
                if not more:
                    await self._pause()
            await self._leave(connection)
        finally:
            await asyncio.to_thread(connection.close)

    async def _turn(self, connection: ConnectionThread) -> bool:
        asked_at = self._clock.monotonic()
        values = {"name": self._lease, "holder": self._holder, "ttl_seconds": TTL_SECONDS}
        taken = (await connection.ask(Statement("role.take", values))).rows
        if not taken:
            return False
        until = safe_until(asked_at, TTL_SECONDS, margin_seconds(TTL_SECONDS))
        term = LeaseTerm(self._lease, taken[0][0], until)
        return await self._work(Pass(connection, term, self._holder))

    async def _leave(self, connection: ConnectionThread) -> None:
        try:
            values = {"name": self._lease, "holder": self._holder}
            await connection.ask(Statement("role.leave", values))
        except DulyError as error:  # the lease runs out by itself
            _log.info("%s: not given back: %s", self._lease, error, extra={"code": error.code})

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(self._every_seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass  # time for the next pass
