"""A started App: its roles under one supervisor.

Owns the order of starting and stopping.  Starting: the tables are there and ours, ``check`` has
nothing against it, the broker connects, the groups' queues are declared - and only then does the
relay send and do the consumers receive. Stopping: consumers stop receiving, what is under way ends,
the leases are given back, the connections close.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from duly.background.stored import FAILURE_SOURCE as BACKGROUND
from duly.batch.runner import BatchContext, BatchRole
from duly.cdc.registry import StreamRules
from duly.cdc.runner import StreamContext, StreamRole
from duly.checks import check_broker, check_code, check_stream, refuse_unsafe
from duly.errors import ConfigurationError, DulyError, RetryableError
from duly.inbox.consume import Consumer
from duly.inbox.context import ConsumeContext
from duly.inbox.work import InboxWork
from duly.kernel.backoff import Retry
from duly.observe.facts import HistoryLost
from duly.outbox.failure_log import FailureRetrier
from duly.outbox.relay import RelayWork
from duly.outbox.retention import Keep, Retention
from duly.outbox.schema import Schema
from duly.outbox.sole import Pass, SoleRole
from duly.outbox.unstored import FAILURE_SOURCE as UNSTORED
from duly.ports import (
    Broker,
    Loss,
    ReportsLosses,
    Severity,
    Statement,
    SubscriptionSpec,
    TopicSpec,
)
from duly.runtime.connection import ConnectionThread
from duly.runtime.lanes import DEADLINE_MIN_SECONDS, LaneTiming
from duly.runtime.leases import Deadlines
from duly.runtime.node import LeaseTiming, Node
from duly.runtime.peers import Peer, PeerWatch
from duly.runtime.supervisor import Role, Supervisor
from duly.runtime.work import LaneWork

if TYPE_CHECKING:
    from duly.app import App

__all__ = ["ROLES", "Running", "batch_context", "check_roles", "run_until_signal"]

ROLES = frozenset({"batch", "cdc", "consumer", "relay", "upkeep"})
SOURCE_SECONDS = 15.0
SETTLED_SECONDS = 0.1
SETTLED_LOOKS = 3
PRUNE_EVERY_SECONDS = 300.0
RETRY_EVERY_SECONDS = 2.0
_log = logging.getLogger("duly.running")
_AGAIN = Retry(attempts=10_000, base="200ms", max="5s")


def check_roles(roles: Collection[str] | None) -> frozenset[str]:
    """The roles asked for; all where none are. Raises ConfigurationError for an unknown one."""
    wanted = ROLES if roles is None else frozenset(roles)
    if not wanted or not wanted <= ROLES:
        raise ConfigurationError(
            f"roles are {', '.join(sorted(ROLES))}, not {', '.join(sorted(wanted - ROLES))}"
        )
    return wanted


def batch_context(app: App) -> BatchContext:
    """What the batch runs of an App work with."""
    settings = app.settings
    return BatchContext(
        database=app.database,
        outlet=app.outlet,
        hooks=app.hooks,
        clock=app.clock,
        jobs=app.jobs,
        folders=app.batch_folders,
        ttl_seconds=settings.lease_ttl,
        renew_seconds=settings.renew_every,
        look_seconds=settings.poll_every,
        keep_seconds=settings.batch_keep,
        at_once=settings.batch_runs,
    )


class Running:
    """One start of an App. roles: which of them, see ``ROLES``."""

    def __init__(self, app: App, roles: Collection[str] | None = None) -> None:
        self._app = app
        self._roles = check_roles(roles)
        self._settings = app.settings
        self._broker: Broker = app.make_broker()
        self._deadlines = Deadlines(app.clock)
        self._supervisor = Supervisor(app.health, drain_seconds=self._settings.drain_timeout)
        self._node: Node | None = None
        self._consumers: dict[str, Consumer] = {}
        self._works: list[InboxWork] = []
        self._streams: dict[str, StreamRole] = {}
        self._batch: BatchRole | None = None
        self._declared = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._look = ConnectionThread(app.database, "look")
        self._inbox = ConnectionThread(app.database, "inbox")
        self._context = self._make_context()

    # --- starting and stopping --------------------------------------------------------------------
    async def start(self) -> None:
        """Prepare the tables and start the roles; returns when they run, not when the broker is
        there.

        Raises ConfigurationError, SchemaError, DatabaseUnavailableError.
        """
        await asyncio.to_thread(self._prepare)
        if isinstance(self._broker, ReportsLosses):
            self._broker.report_losses(self._lost)
        await self._broker.start()
        await self._check_broker()
        if "cdc" in self._roles:
            await self._check_streams()
        self._add_roles()
        self._task = asyncio.create_task(self._supervisor.run(), name="duly supervisor")

    async def wait(self) -> None:
        """Until the roles have ended. Raises what a role could not be restarted from."""
        assert self._task is not None, "start comes first"
        await self._task

    def stop(self) -> None:
        """Begin to drain. Idempotent; from the loop's thread."""
        self._supervisor.stop()

    async def close(self) -> None:
        """Drain, then close what was opened."""
        self.stop()
        try:
            if self._task is not None:
                await self._task
        finally:
            drain_seconds = self._settings.drain_timeout
            await asyncio.gather(*(work.stop(drain_seconds) for work in self._works))
            await self._broker.close()
            for connection in (self._look, self._inbox):
                await asyncio.to_thread(connection.close)

    # --- looking ----------------------------------------------------------------------------------
    def hint(self) -> None:
        """New rows may be there; from any thread."""
        node = self._node
        if node is not None:
            node.hint()

    @property
    def idle(self) -> bool:
        """Nothing is in memory and nothing is known to wait."""
        node_idle = self._node is None or self._node.idle
        return (
            self._declared.is_set()
            and node_idle
            and (self._batch is None or self._batch.idle)
            and all(c.idle for c in self._consumers.values())
        )

    async def settled(self) -> None:
        """Wait until nothing is left for this App to do: all sent and handled, no retry due.

        What other services have yet to read is their business. Of the sources of changes what was
        committed before this call is waited for.
        """
        quiet = 0
        ends = await self._ends()
        while quiet < SETTLED_LOOKS:
            await asyncio.sleep(SETTLED_SECONDS)
            if self._task is not None and self._task.done():
                self._task.result()
                return
            past = all(self._streams[name].is_past(end) for name, end in ends.items())
            quiet = quiet + 1 if past and self.idle and await self._nothing_left() else 0

    async def _ends(self) -> dict[str, str]:
        """How far each source is that could be asked."""
        found = {}
        declared = self._app.captures.streams if "cdc" in self._roles else []
        while len(self._streams) < len(declared) and self._task and not self._task.done():  # noqa: ASYNC110
            await asyncio.sleep(0)  # the supervisor was only asked to begin
        for name, role in list(self._streams.items()):
            with suppress(DulyError, TimeoutError):  # the role tells of it
                async with asyncio.timeout(SOURCE_SECONDS):
                    found[name] = await role.source_end()
        return found

    async def _nothing_left(self) -> bool:
        rows = (await self._look.ask(Statement("meta.unfinished"))).rows
        if any(rows[0]):
            return False
        if "consumer" not in self._roles:
            return True
        ours = self._app.handlers.groups
        found = [group for topic in await self._broker.topics() for group in topic.groups]
        return not any(group.lag for group in found if group.group in ours)

    # --- wiring -----------------------------------------------------------------------------------
    def _prepare(self) -> None:
        reasons = self._settings.allow_unsafe
        refuse_unsafe([*check_code(self._app), *self._app.database.inspect()], reasons)
        schema = Schema(self._app.database, self._app.name)
        schema.start()
        handlers = self._app.handlers
        schema.record_groups({group: handlers.order_of(group) for group in handlers.groups})

    async def _check_broker(self) -> None:
        try:
            refuse_unsafe(await check_broker(self._broker), self._settings.allow_unsafe)
        except (RetryableError, TimeoutError) as error:
            _log.warning("the broker is not there yet and could not be checked: %s", error)

    async def _check_streams(self) -> None:
        """Refuse to begin a stream that cannot deliver what its rules need. One that has begun and
        cannot go on stops by itself, loudly, and the rest of the App runs.
        """
        for rules in self._app.captures.streams:
            try:
                async with asyncio.timeout(SOURCE_SECONDS):
                    found = await check_stream(self._app, rules)
            except (RetryableError, TimeoutError) as error:
                text = "the source %s is not there yet and could not be checked: %s"
                _log.warning(text, rules.name, error)
                continue
            begun = await asyncio.to_thread(self._app.streams().offset, rules.name)
            if not begun.position:
                refuse_unsafe(found, self._settings.allow_unsafe)
            for finding in found if begun.position else ():
                if finding.severity is Severity.RED:
                    text, code = "stream %s: %s. %s", {"code": finding.code}
                    _log.error(text, rules.name, finding.message, finding.fix, extra=code)

    def _make_context(self) -> ConsumeContext:
        settings = self._settings
        return ConsumeContext(
            database=self._app.database,
            registry=self._app.registry,
            handlers=self._app.handlers,
            outlet=self._app.outlet,
            hooks=self._app.hooks,
            deadlines=self._deadlines,
            holder=lambda: self._node.holder if self._node is not None else "",
            wake=self.hint,
            handler_timeout_seconds=settings.handler_timeout,
            dedupe_window_seconds=settings.dedupe_window,
            workers=settings.workers,
            turn=self._app.database.turn,
        )

    def _add_roles(self) -> None:
        groups = self._app.handlers.groups if "consumer" in self._roles else []
        self._works = [InboxWork(self._context, group, connection=self._inbox) for group in groups]
        works: list[LaneWork] = [*self._works]
        if "relay" in self._roles:
            works.insert(0, self._relay())
        if works:
            self._supervisor.add("lanes", lambda: self._make_node(works))
        specs = [self._subscription(group) for group in self._app.handlers.groups]
        declare = _Declare(self._broker, self._topics(), specs, done=self._declared)
        self._supervisor.add("declare", lambda: declare)
        for group in groups:
            self._supervisor.add(f"consume {group}", partial(self._make_consumer, group))
        for rules in self._app.captures.streams if "cdc" in self._roles else ():
            self._supervisor.add(f"cdc {rules.name}", partial(self._make_stream, rules))
        if "batch" in self._roles and self._app.jobs.names:
            self._supervisor.add("batch", self._make_batch)
        self._supervisor.add("peers", self._make_peers)
        if "upkeep" in self._roles:
            if self._app.global_transactions.wanted:
                self._supervisor.add("global transactions", self._make_recovery)
            self._supervisor.add("retention", self._make_retention)
            sources = {"failures": UNSTORED}
            if self._app.logs_calls:
                sources["background-failures"] = BACKGROUND
            for name, source in sources.items():
                self._supervisor.add(name, partial(self._make_failure_retrier, name, source))

    def _lost(self, loss: Loss) -> None:
        fact = HistoryLost(place=loss.place, group=loss.group, messages=loss.messages)
        self._app.hooks.emit(fact)

    def _relay(self) -> LaneWork:
        return RelayWork(
            self._broker,
            self._app.routes,
            hooks=self._app.hooks,
            batch_max=self._settings.batch_size,
            in_flight_max=self._settings.relay_in_flight,
            ready=self._declared.is_set,
        )

    def _subscription(self, group: str) -> SubscriptionSpec:
        return self._app.handlers.subscription(group, prefetch=self._settings.batch_size)

    def _topics(self) -> list[TopicSpec]:
        return sorted(
            {TopicSpec(spec.topic, spec.kind) for spec in self._app.registry.names()}, key=str
        )

    def _make_consumer(self, group: str) -> Role:
        consumer = Consumer(self._context, group, connection=self._inbox)
        self._consumers[group] = consumer
        return _Consume(
            consumer,
            self._broker,
            self._subscription(group),
            declared=self._declared,
            drain_seconds=self._settings.drain_timeout,
        )

    def _make_stream(self, rules: StreamRules) -> Role:
        context = StreamContext(
            database=self._app.database,
            outlet=self._app.outlet,
            hooks=self._app.hooks,
            health=self._app.health,
            clock=self._app.clock,
            make_source=self._app.make_change_source,
            ttl_seconds=self._settings.lease_ttl,
            renew_seconds=self._settings.renew_every,
            limit_seconds=self._settings.handler_timeout,
            deadlines=self._deadlines,
        )
        role = self._streams[rules.name] = StreamRole(rules, context)
        return role

    def _make_batch(self) -> Role:
        self._batch = BatchRole(batch_context(self._app))
        return self._batch

    def _make_peers(self) -> Role:
        shown = self._app.peers
        peers = [
            Peer("database", shown["database"], lambda: self._look.ask(Statement("meta.all"))),
            Peer("broker", shown["broker"], lambda: check_broker(self._broker)),
        ]
        return PeerWatch(peers, hooks=self._app.hooks)

    def _make_retention(self) -> Role:
        window = self._settings.dedupe_window
        retention = Retention(self._app.database.connect, Keep(dedupe_window=window, inbox=window))

        async def work(turn: Pass) -> bool:
            return await retention.work(turn, self._app.clock.monotonic)

        return self._sole("retention", work, PRUNE_EVERY_SECONDS)

    def _make_recovery(self) -> Role:
        from duly.twophase.role import RecoveryRole

        app = self._app
        return RecoveryRole(
            app.global_transactions.recovery(),
            database=app.database,
            clock=app.clock,
            health=app.health,
            ttl_seconds=self._settings.lease_ttl,
        )

    def _make_failure_retrier(self, name: str, source: str) -> Role:
        retrier = FailureRetrier(
            source,
            self._broker.publish,
            clock=self._app.clock,
            send_timeout_seconds=self._settings.send_timeout,
        )
        return self._sole(name, retrier.work, RETRY_EVERY_SECONDS)

    def _sole(
        self, name: str, work: Callable[[Pass], Awaitable[bool]], every_seconds: float
    ) -> Role:
        clock, database = self._app.clock, self._app.database
        return SoleRole(name, work, database=database, clock=clock, every_seconds=every_seconds)

    def _make_node(self, works: Sequence[LaneWork]) -> Node:
        settings = self._settings
        self._node = Node(
            self._app.database,
            works,
            clock=self._app.clock,
            hooks=self._app.hooks,
            deadlines=self._deadlines,
            lease=LeaseTiming(settings.lease_ttl, settings.renew_every),
            lanes=LaneTiming(
                send_timeout=settings.send_timeout,
                deadline_min=min(DEADLINE_MIN_SECONDS, settings.lease_ttl / 10),
                poll_every=settings.poll_every,
                batch=settings.batch_size,
            ),
            keep=settings.keep_sent,
        )
        return self._node


class _Declare:
    """The role that declares topics and groups' queues, as often as it takes."""

    def __init__(
        self,
        broker: Broker,
        topics: Sequence[TopicSpec],
        subscriptions: Sequence[SubscriptionSpec],
        *,
        done: asyncio.Event,
    ) -> None:
        self._broker, self._topics, self._subscriptions = broker, topics, subscriptions
        self._done = done
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Give up, if it is not done yet."""
        self._stopping.set()

    async def run(self) -> None:
        """Until it is done. Raises ConfigurationError: an existing queue has other arguments."""
        failures = 0
        while not self._stopping.is_set():
            try:
                await self._broker.declare(self._topics, self._subscriptions)
            except RetryableError as error:
                failures += 1
                delay = _AGAIN.delay(failures, random.random())
                # Once: that it is still so is what ``PeerWatch`` and the next success tell.
                level = logging.WARNING if failures == 1 else logging.DEBUG
                text, code = "declare: %s; again in %.1f s", {"code": error.code}
                _log.log(level, text, error, delay, extra=code)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), delay)
            else:
                self._done.set()
                return


class _Consume:
    """The role of one group's receiving side."""

    def __init__(
        self,
        consumer: Consumer,
        broker: Broker,
        spec: SubscriptionSpec,
        *,
        declared: asyncio.Event,
        drain_seconds: float,
    ) -> None:
        self._consumer, self._broker, self._spec = consumer, broker, spec
        self._declared, self._drain_seconds = declared, drain_seconds
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Receive nothing more."""
        self._stopping.set()
        self._consumer.stop()

    async def run(self) -> None:
        """Receive until stopped, then give everything back that was not begun."""
        if not await self._until_declared():
            return
        subscription = await self._broker.subscribe(self._spec)
        receiving = asyncio.create_task(self._consumer.run(subscription))
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait([receiving, stopping], return_when=asyncio.FIRST_COMPLETED)
            await self._consumer.drain(self._drain_seconds)
        finally:
            stopping.cancel()
            await subscription.close()
            receiving.cancel()
            results = await asyncio.gather(receiving, return_exceptions=True)
        if isinstance(results[0], Exception):
            raise results[0]

    async def _until_declared(self) -> bool:
        waiting = {asyncio.create_task(event.wait()) for event in (self._declared, self._stopping)}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        return not self._stopping.is_set()


async def run_until_signal(app: App, roles: Collection[str] | None = None) -> None:
    """Run an App until SIGTERM or SIGINT; a second signal ends the process at once."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()

    def on_signal() -> None:
        if stopped.is_set():
            _log.warning("second signal: ending at once; what is under way is found again")
            os._exit(130)
        stopped.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    async with app.running(roles) as running:
        ended = asyncio.create_task(running.wait())
        waiting = asyncio.create_task(stopped.wait())
        await asyncio.wait([ended, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        running.stop()
        await ended
