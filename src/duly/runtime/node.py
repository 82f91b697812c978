"""One node: a member with its lanes, as one role of the supervisor.

Owns the threads and connections behind the lane readers - the lease keeper, the watcher, a reading
and a writing connection - and passes on what they learn: a beat to the ownership of each scope, a
wake-up to the readers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import NamedTuple

from duly.errors import DulyError
from duly.observe.hooks import Hooks
from duly.ports import Clock, Connection, Database, Statement
from duly.runtime.box import Box
from duly.runtime.connection import ConnectionThread
from duly.runtime.lanes import LaneReader, LaneTiming
from duly.runtime.leases import Beat, Deadlines, LeaseKeeper
from duly.runtime.ownership import LaneOwnership
from duly.runtime.work import LaneWork

__all__ = ["LeaseTiming", "Node"]

_log = logging.getLogger("duly.node")
WATCH_SECONDS = 1.0


class LeaseTiming(NamedTuple):
    """ttl_seconds: how long a crashed node keeps others out. renew_seconds: how often it is
    renewed.
    """

    ttl_seconds: float = 5.0
    renew_seconds: float = 1.5


class _Scope(NamedTuple):
    reader: LaneReader
    ownership: LaneOwnership
    box: Box


class Node:
    """The lanes of this process. works: one per scope. keep: settle to ``sent`` instead of
    deleting.
    """

    def __init__(
        self,
        database: Database,
        works: Sequence[LaneWork],
        *,
        clock: Clock,
        hooks: Hooks,
        deadlines: Deadlines,
        lease: LeaseTiming,
        lanes: LaneTiming,
        keep: bool = False,
    ) -> None:
        self._database, self._clock, self._hooks = database, clock, hooks
        self._reading = ConnectionThread(database, "read")
        self._writing = ConnectionThread(database, "write")
        self._watching = ConnectionThread(database, "watch")
        self._leasing = ConnectionThread(database, "lanes")
        self._keeper = LeaseKeeper(
            database,
            [work.scope for work in works],
            clock=clock,
            hooks=hooks,
            deadlines=deadlines,
            on_beat=self._on_beat,
            on_lost=self._on_lost,
            ttl_seconds=lease.ttl_seconds,
            renew_seconds=lease.renew_seconds,
        )
        self._scopes = [self._scope(work, lanes, keep=keep) for work in works]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._beats: asyncio.Queue[Beat | None] = asyncio.Queue()
        self._watched: Connection | None = None
        self._stopping = False

    def _scope(self, work: LaneWork, timing: LaneTiming, *, keep: bool) -> _Scope:
        box = Box(work.box, work.scope, group=work.group, keep=keep and work.box == "outbox")
        ownership = LaneOwnership(
            work.scope, keeper=self._keeper, connection=self._leasing, hooks=self._hooks
        )
        sleepy = work.box == "outbox" and self._database.notifies
        reader = LaneReader(
            work,
            box,
            ownership,
            reader=self._reading,
            writer=self._writing,
            clock=self._clock,
            hooks=self._hooks,
            timing=timing,
            on_idle=self._fall_asleep if sleepy else None,
        )
        return _Scope(reader, ownership, box)

    # --- what others tell -------------------------------------------------------------------------
    def hint(self) -> None:
        """New rows may be there; from any thread."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._hint_all)

    @property
    def holder(self) -> str:
        """The name under which this node holds its leases now; empty while it has none."""
        return self._keeper.holder

    @property
    def idle(self) -> bool:
        """Every reader has nothing in memory and knows of nothing in the table."""
        return all(scope.reader.idle for scope in self._scopes)

    def stop(self) -> None:
        """Hand nothing more over and let ``run`` end when what is under way is stored; from the
        loop's thread.
        """
        self._stopping = True
        for scope in self._scopes:
            scope.reader.stop()
        self._beats.put_nowait(None)
        if self._watched is not None:
            self._watched.wake()

    # --- the role ---------------------------------------------------------------------------------
    async def run(self) -> None:
        """Be a member until stopped. Raises what a lane reader raised."""
        self._loop = asyncio.get_running_loop()
        self._keeper.start()
        tasks = [asyncio.create_task(scope.reader.run()) for scope in self._scopes]
        listening = [asyncio.create_task(self._watch()), asyncio.create_task(self._follow_beats())]
        try:
            done, _ = await asyncio.wait([*tasks, *listening], return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            for task in (*tasks, *listening):
                task.cancel()
            await asyncio.gather(*tasks, *listening, return_exceptions=True)
            await asyncio.to_thread(self._close)

    def _close(self) -> None:
        if self._watched is not None:
            self._watched.wake()
        self._keeper.stop()
        for thread in (self._reading, self._writing, self._watching, self._leasing):
            thread.close()

    async def _watch(self) -> None:
        while not self._stopping:
            try:
                woken = await asyncio.wrap_future(self._watching.submit(self._wait))
            except DulyError as error:
                _log.warning("watching for new rows: %s", error, extra={"code": error.code})
                await asyncio.sleep(WATCH_SECONDS)
            else:
                if woken:
                    self._hint_all()

    def _wait(self, connection: Connection) -> bool:
        self._watched = connection
        return False if self._stopping else connection.wait(WATCH_SECONDS)

    async def _follow_beats(self) -> None:
        while (beat := await self._beats.get()) is not None:
            while beat is not None and not self._beats.empty():
                beat = self._beats.get_nowait()  # only the newest says who is alive
            if beat is None or self._stopping:
                return
            await asyncio.gather(*(self._rebalance(scope, beat) for scope in self._scopes))
            if not all(scope.reader.idle for scope in self._scopes if scope.box.name == "outbox"):
                self._keeper.asleep = False

    async def _rebalance(self, scope: _Scope, beat: Beat) -> None:
        try:
            await scope.ownership.rebalance(beat)
        except DulyError as error:
            _log.warning("%s: lanes: %s", scope.ownership.scope, error, extra={"code": error.code})
        scope.reader.lanes_moved()
        self._pass_on(scope, beat)

    def _pass_on(self, scope: _Scope, beat: Beat) -> None:
        prefix = f"pause/{scope.box.name}/"
        paused = {name.removeprefix(prefix) for name in beat.pauses if name.startswith(prefix)}
        if scope.box.group in paused:
            scope.reader.pause(None)
        else:
            scope.reader.pause(frozenset(paused) if scope.box.name == "outbox" else frozenset())
        if scope.box.name in beat.due:
            scope.reader.hint_due()
        if scope.box.name in beat.ready:
            scope.reader.hint()

    def _on_beat(self, beat: Beat) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._beats.put_nowait, beat)

    def _on_lost(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._lose_all)

    def _lose_all(self) -> None:
        for scope in self._scopes:
            scope.ownership.drop_all()
            scope.reader.lanes_lost()

    def _hint_all(self) -> None:
        for scope in self._scopes:
            scope.reader.hint()

    async def _fall_asleep(self) -> bool:
        """Ask the flushes for a wake-up; True when that was news, so one more look is needed."""
        if self._keeper.asleep or not self._keeper.holder:
            return False
        self._keeper.asleep = True
        await self._writing.ask(Statement("lease.sleep", {"name": f"member/{self._keeper.holder}"}))
        return True
