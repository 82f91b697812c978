"""The role that keeps one stream going, on one node at a time.

Owns the lease around a reading and what becomes of its errors: a server that is away is waited for,
a reader that was put out lets go, and what needs a person stops this stream - in its row, in
health, in the log - while the rest of the App goes on.  The invariant: a stopped stream never
starts again by itself; it does when a person has decided (its row has another token) or when the
program is started anew.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from msgspec import structs

from duly.cdc.effects import Effects
from duly.cdc.feeding import Feeding
from duly.cdc.follower import Follower, Pace
from duly.cdc.offsets import Offset, Request, Trouble, claim, move, read, requests
from duly.cdc.registry import StreamRules
from duly.errors import (
    ConfigurationError,
    DulyError,
    GapError,
    OutcomeUnknownError,
    PermanentError,
    RetryableError,
    StaleLeaseError,
)
from duly.kernel import failpoints
from duly.kernel.backoff import Retry
from duly.observe.facts import CaptureLagged, CaptureStopped
from duly.observe.health import Health
from duly.observe.hooks import Hooks
from duly.outbox.publish import MessageOutlet
from duly.ports import Clock, Database, Steps
from duly.runtime.clock import SystemClock
from duly.runtime.connection import ConnectionThread
from duly.runtime.desk import Desk
from duly.runtime.leases import Deadlines
from duly.runtime.role_lease import RoleLease
from duly.sources import ChangeSource

__all__ = ["StreamContext", "StreamRole"]

LAG_SECONDS = 10.0
STALL_SECONDS = 60.0
_LOOK_SECONDS = 0.05

_log = logging.getLogger("duly.cdc")
_AGAIN = Retry(attempts=10_000, base="200ms", max="10s")
_STOPS = (GapError, ConfigurationError, PermanentError)


@dataclass(frozen=True, kw_only=True)
class StreamContext:
    """What every stream of an App works with. limit_seconds: how long one call of a rule with a
    ``tx`` may take; past it ``deadlines`` end the process.
    """

    database: Database
    outlet: MessageOutlet
    hooks: Hooks
    health: Health
    clock: Clock
    make_source: Callable[[StreamRules], ChangeSource]
    ttl_seconds: float
    renew_seconds: float
    pace: Pace = field(default_factory=Pace)
    limit_seconds: float = 300.0
    deadlines: Deadlines = field(default_factory=lambda: Deadlines(SystemClock()))


class StreamRole:
    """A role for the supervisor, one for each stream."""

    def __init__(self, rules: StreamRules, context: StreamContext) -> None:
        self._rules, self._context = rules, context
        self._stopping = asyncio.Event()
        self._label = f"stream {rules.name}"
        self._lease = RoleLease(
            f"cdc/{rules.name}",
            database=context.database,
            clock=context.clock,
            ttl_seconds=context.ttl_seconds,
        )
        self._connection = ConnectionThread(context.database, f"cdc-{rules.name}")
        self._effects = _effects(rules, context) if rules.writes else None
        self._feeding: Feeding | None = None
        if rules.sink is not None:
            self._feeding = Feeding(rules, rules.sink, lazy=context.pace.lazy)
        self._follower: Follower | None = None
        self._code = ""
        self._waits = False  # for another process, or for a person

    @property
    def name(self) -> str:
        """Of the stream."""
        return self._rules.name

    def stop(self) -> None:
        """End after the write that is under way; from the loop's thread. Idempotent."""
        self._stopping.set()

    def is_past(self, position: str) -> bool:
        """Whether everything up to a position is done with, or is not this process's to do: another
        one reads the stream, or a person must decide.
        """
        if self._waits:
            return True
        return self._follower is not None and self._follower.reached(position)

    async def source_end(self) -> str:
        """Where the source is now, as soon as this stream has begun; empty where it is not read
        here. Raises what the source raises.
        """
        while not self._waits and not self._stopping.is_set():
            follower = self._follower
            if follower is not None and (here := follower.offset.position):
                return (await self._context.make_source(self._rules).status(here)).end
            await asyncio.sleep(_LOOK_SECONDS)
        return ""

    async def run(self) -> None:
        """Read whenever the lease is ours, until stopped. Raises what is no DulyError."""
        self._context.health.expect(self._label, within_seconds=STALL_SECONDS)
        telling = asyncio.create_task(self._keep_telling())
        failures, began = 0, 0.0
        try:
            while not self._stopping.is_set():
                if self._context.clock.monotonic() - began > STALL_SECONDS:
                    failures = 0  # the last one held long enough
                began = self._context.clock.monotonic()
                try:
                    held = await self._turn()
                except StaleLeaseError as error:
                    _log.info("%s: %s", self._label, error.detail, extra={"code": error.code})
                    held = False
                except (RetryableError, OutcomeUnknownError) as error:
                    failures += 1
                    self._tell(error.code)
                    delay = _AGAIN.delay(failures, random.random())
                    text, code = "%s: %s; again in %.1f s", {"code": error.code}
                    _log.warning(text, self._label, error, delay, extra=code)
                    await self._pause(delay)
                else:
                    if not held:
                        self._tell("")
                        self._waits = True
                        await self._pause(self._context.renew_seconds)
        finally:
            telling.cancel()
            await self._lease.leave()
            if (effects := self._effects) is not None:
                self._connection.submit(lambda _: effects.close())
            if self._feeding is not None:
                self._feeding.close()
            await asyncio.to_thread(self._connection.close)
            self._context.health.stopped(self._label)

    async def _turn(self) -> bool:
        """Read as long as the lease lasts; False when it is another node's."""
        if not await self._lease.take():
            return False
        self._waits = False
        offset = await self._connection.run(self._claim)
        failpoints.hit(failpoints.CDC_CLAIMED)
        source = self._context.make_source(self._rules)
        follower = self._follower = Follower(
            self._rules,
            source,
            outlet=self._context.outlet,
            connection=self._connection,
            clock=self._context.clock,
            hooks=self._context.hooks,
            tell=self._tell,
            pace=self._context.pace,
            effects=self._effects,
            feeding=self._feeding,
        )
        tasks = [
            asyncio.create_task(self._follow(follower, offset), name=f"duly {self._label}"),
            asyncio.create_task(self._keep(follower, offset.token)),
            asyncio.create_task(self._look_at_lag(follower, source)),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            return True
        finally:
            self._follower = None
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _claim(self) -> Steps[Offset]:
        return claim(self._rules.name, self._lease.values())

    # --- while it is ours -------------------------------------------------------------------------
    async def _follow(self, follower: Follower, offset: Offset) -> None:
        try:
            await follower.run(offset, self._stopping)
        except _STOPS as error:
            known = follower.offset if follower.offset.token else offset
            await self._halt(error, known)

    async def _halt(self, error: DulyError, offset: Offset) -> None:
        """Say so everywhere and wait for a person; the lease is kept, so that no other node runs
        into the same.
        """
        now, code = self._context.clock.time(), error.code
        known = offset.state.trouble
        if known is not None and known.code == error.code and known.position > offset.position:
            trouble = structs.replace(known, stopped=True)  # it says where, and how often tried
        else:
            trouble = Trouble(code, error.detail, offset.position, now, stopped=True)
        halted = offset._replace(state=offset.state.with_trouble(trouble))
        await self._connection.run(lambda: move(self._rules.name, halted))
        _log.error("%s stopped: %s", self._label, error, extra={"code": code})
        self._tell(code)
        self._context.hooks.emit(CaptureStopped(stream=self._rules.name, code=code, tries=0))
        self._waits = True
        await self._stopping.wait()

    async def _keep(self, follower: Follower, token: int) -> None:
        """Prolong the lease and look for what a person asks. Raises StaleLeaseError."""
        context = self._context
        while True:
            context.deadlines.enforce()  # no member of the lanes runs where this is the only role
            try:
                if not await self._lease.take():
                    raise StaleLeaseError(f"the lease of {self._label} was lost")
                now, follower.asked = await self._lease.connection.run(self._seen)
                if now.token != token:
                    raise StaleLeaseError(f"{self._label} was put out")
            except RetryableError as error:
                # A large write of ours may hold the only writer's lock longer than the lease; what
                # it stores is fenced by the token all the same.
                if not (follower.writing or self._lease.remaining_seconds):
                    raise
                _log.debug("%s: the lease: %s", self._label, error)
            await context.clock.sleep(min(context.renew_seconds, 1.0))

    def _seen(self) -> Steps[tuple[Offset, list[Request]]]:
        offset = yield from read(self._rules.name)
        return offset, (yield from requests(self._rules.name))

    async def _look_at_lag(self, follower: Follower, source: ChangeSource) -> None:
        while True:
            await self._context.clock.sleep(LAG_SECONDS)
            with suppress(DulyError, TimeoutError):  # told by the reading itself
                async with asyncio.timeout(LAG_SECONDS):
                    status = await source.status(follower.offset.position)
                self._context.hooks.emit(
                    CaptureLagged(
                        stream=self._rules.name,
                        lag_bytes=status.lag_bytes,
                        lag_transactions=status.lag_transactions,
                        kept_bytes=status.kept_bytes,
                    )
                )

    # --- health -----------------------------------------------------------------------------------
    def _tell(self, code: str) -> None:
        self._code = code
        self._context.health.turned(self._label, code=code)

    async def _keep_telling(self) -> None:
        while True:
            self._context.health.turned(self._label, code=self._code)
            await asyncio.sleep(1.0)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()


def _effects(rules: StreamRules, context: StreamContext) -> Effects:
    database, limit_seconds = context.database, context.limit_seconds
    return Effects(
        rules,
        context.outlet,
        desk=Desk(database, limit_seconds=limit_seconds, turn=database.turn),
        deadlines=context.deadlines,
        limit_seconds=limit_seconds,
        clock=context.clock,
    )
