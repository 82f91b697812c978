"""The App: what a user holds, and the one place where everything is joined.

Owns the wiring only.  Each feature room brings its own registrar and roles; the App creates them
with the settings in force, lazily: nothing is read, imported or connected before it is needed, and
nothing is global.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack

from duly.adapters import make_broker, make_database
from duly.config import Settings, load
from duly.errors import ConfigurationError
from duly.features import Features
from duly.frameworks import join_of
from duly.inbox.handlers import HandlerOptions, HandlerRegistry
from duly.kernel.backoff import Retry
from duly.kernel.durations import Duration, seconds
from duly.kernel.names import check_name
from duly.message import Message, Registry
from duly.observe import tracing
from duly.observe.facts import AfterCommitFailed
from duly.observe.health import Health
from duly.observe.hooks import Hooks
from duly.outbox.after_commit import Policy
from duly.outbox.publish import UNKEYED, MessageOutlet
from duly.outbox.publisher import Publisher
from duly.outbox.routes import Route, Routes
from duly.ports import Broker, Clock, Database, Finding
from duly.runtime.clock import SystemClock
from duly.wire.urls import redact

if TYPE_CHECKING:
    from duly.outbox.operator import Operator
    from duly.outbox.unstored import UnstoredSender
    from duly.running import Running

__all__ = ["App"]

C = TypeVar("C", bound=type)
F = TypeVar("F", bound=Callable[..., Any])
_log = logging.getLogger("duly.app")


@dataclass
class _Wiring:
    """What was made from the settings; made anew inside ``override``."""

    settings: Settings
    database: Database
    outlet: MessageOutlet
    publisher: Publisher


class App(Features):
    """One application: its messages, handlers, database and broker.

    name: of the application; its tables are claimed under it. database: a URL, a SQLAlchemy Engine
    or AsyncEngine, a ``DjangoDatabase``, or a Database of your own; by default ``DULY_DATABASE``,
    ``duly.toml`` or ``sqlite:///duly.db``. broker: a URL, or a Broker of your own; by default
    ``DULY_BROKER``, ``duly.toml`` or the embedded one. allow_unsafe: findings of ``check`` that are
    accepted, code -> reason. settings: any other key of ``duly.config.Settings``. All of them are
    read when first needed, not here.

    Raises InvalidNameError.
    """

    def __init__(
        self,
        name: str,
        *,
        database: Any = None,
        broker: Any = None,
        allow_unsafe: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        self.name = check_name(name, "app")
        self.hooks = Hooks()
        self.clock: Clock = SystemClock()
        self.health = Health(lambda: self.clock.monotonic())  # noqa: PLW0108  # `override` changes it
        self.routes = Routes()
        self.registry = Registry()
        self.handlers = HandlerRegistry(self.registry)
        self._given: dict[str, Any] = {
            "database": database,
            "broker": broker,
            "allow_unsafe": allow_unsafe,
            **settings,
        }
        self._wiring: _Wiring | None = None
        self._running: Running | None = None
        self._sender: UnstoredSender | None = None

    # --- wiring -----------------------------------------------------------------------------------
    @property
    def settings(self) -> Settings:
        """The settings in force. Raises ConfigurationError that lists everything wrong."""
        return self._wired().settings

    @property
    def database(self) -> Database:
        """The database of this App."""
        return self._wired().database

    @property
    def outlet(self) -> MessageOutlet:
        """Where published messages of this App go."""
        return self._wired().outlet

    @property
    def peers(self) -> dict[str, str]:
        """The ``database`` and the ``broker`` that this App stands on, fit to be shown."""
        return {
            name: _shown(self._given[name], getattr(self.settings, name))
            for name in ("database", "broker")
        }

    @property
    def given_database(self) -> Any:
        """The database as it was given; None where the settings name it."""
        return self._given["database"]

    def make_broker(self) -> Broker:
        """A new connection to the broker of this App; whoever makes it starts and closes it."""
        return make_broker(self.settings, self._given["broker"])

    @contextmanager
    def override(
        self,
        *,
        database: Any = None,
        broker: Any = None,
        clock: Clock | None = None,
        **settings: Any,
    ) -> Iterator[App]:
        """Use another database, broker or clock (or other settings) inside the block; for tests.

        clock: also tells the time in a SQLite database; servers have a clock of their own.
        """
        outside = self._given, self._wiring, self._sender, self.clock
        given = {"database": database, "broker": broker, **settings}
        self._given = {
            **self._given,
            **{name: value for name, value in given.items() if value is not None},
        }
        self._wiring, self._sender = None, None
        self.clock = self.clock if clock is None else clock
        try:
            yield self
        finally:
            self.close()
            self._given, self._wiring, self._sender, self.clock = outside

    def _wired(self) -> _Wiring:
        if self._wiring is None:
            self._wiring = self._wire()
        return self._wiring

    def _wire(self) -> _Wiring:
        plain = {
            k: v if isinstance(v, str) or k not in ("database", "broker") else None
            for k, v in self._given.items()
        }
        settings = load(plain)
        self.registry.payload_bytes_max = settings.payload_bytes_max
        database = make_database(settings, self._given["database"], clock=self.clock)
        outlet = MessageOutlet(
            self.name,
            self.registry,
            database,
            wake=self._wake,
            ambient=tracing.create,
            hooks=self.hooks,
        )
        publisher = Publisher(outlet, join_of=join_of, deliver=self._deliver, report=self._report)
        return _Wiring(settings, database, outlet, publisher)

    # --- messages ---------------------------------------------------------------------------------
    def event(self, name: str, *, topic: str, version: int = 1) -> Callable[[C], C]:
        """Declare a class of your own (pydantic, dataclass, attrs, msgspec) as an event:
        ``@app.event("order.placed", ...)``.
        """
        return self._declare(name, "event", topic=topic, version=version)

    def command(self, name: str, *, queue: str, version: int = 1) -> Callable[[C], C]:
        """Declare a class of your own as a command."""
        return self._declare(name, "command", topic=queue, version=version)

    def _declare(self, name: str, kind: str, *, topic: str, version: int) -> Callable[[C], C]:
        def declare(cls: C) -> C:
            self.registry.declare(cls, name, kind=kind, topic=topic, version=version)
            return cls

        return declare

    def route(
        self,
        topic: str,
        *,
        retry: Retry | None = None,
        on_exhausted: Literal["skip", "block"] = "skip",
        order: Literal["key", "pipelined"] = "key",
        require_groups: Collection[str] = (),
    ) -> None:
        """Declare how messages of a topic or queue are relayed; see ``Route``."""
        route = Route(
            retry=retry or Retry(),
            on_exhausted=on_exhausted,
            order=order,
            require_groups=tuple(require_groups),
        )
        self.routes.add(topic, route)

    def publish(
        self,
        target: Any,
        message: Any,
        *,
        key: Any = UNKEYED,
        headers: Mapping[str, str] | None = None,
        outbox: bool = True,
        policy: Policy | None = None,
    ) -> str:
        """Publish an event with the transaction of ``target``; returns the message id at once.

        target: a Session, AsyncSession, scoped_session, Connection, a raw sqlite3, psycopg or
        PyMySQL connection, or one of Django's. message: an event, or a callable that gives one just
        before the commit. key: what order is kept by. outbox=False: send after the commit with
        ``policy`` instead of storing. Guarantee: committed together, or not at all; relayed at
        least once. On failure: the commit raises and nothing is stored. Idempotence: none; each
        call is a message of its own.
        """
        return self._emit(
            target, message, "event", key=key, headers=headers, outbox=outbox, policy=policy
        )

    def send(
        self,
        target: Any,
        message: Any,
        *,
        key: Any = UNKEYED,
        headers: Mapping[str, str] | None = None,
        outbox: bool = True,
        policy: Policy | None = None,
    ) -> str:
        """Send a command with the transaction of ``target``; as ``publish``, for exactly one
        receiver.
        """
        return self._emit(
            target, message, "command", key=key, headers=headers, outbox=outbox, policy=policy
        )

    def after_commit(self, target: Any, run: Callable[[], object]) -> None:
        """Run a plain function after the outermost commit of the transaction of ``target``."""
        self._wired().publisher.after_commit(target, run)

    def flush(self, target: Any) -> None:
        """Store what was published so far in the open transaction of ``target``, without a commit.

        For tests whose transaction never commits; the commit does it otherwise. On failure: the
        transaction may not be committed any more. Idempotence: each message is stored once. Raises
        as the commit would; NotInTransactionError where nothing is open.
        """
        join_of(target).flush(target)

    def _emit(
        self,
        target: Any,
        message: Any,
        kind: str,
        *,
        outbox: bool,
        policy: Policy | None,
        **rest: Any,
    ) -> str:
        publisher = self._wired().publisher
        if rest["key"] is not UNKEYED and "global_transactions" in vars(self):
            self.global_transactions.refuse_keyed(target)
        if outbox:
            if policy is not None:
                raise ConfigurationError(
                    "policy= goes with outbox=False; the outbox retries by its route"
                )
            return publisher.publish(target, message, kind=kind, **rest)
        if policy is None:
            raise ConfigurationError(
                "outbox=False needs policy=Ignore(), Retry(...) or FailureLog()"
            )
        return publisher.unstored(target, message, kind=kind, policy=policy, **rest)

    # --- handlers ---
    def on(
        self, event_type: type, *, group: str, **options: Unpack[HandlerOptions]
    ) -> Callable[[F], F]:
        """Register a handler of an event for a group; options as in ``HandlerOptions``.

        Guarantee: its database work takes effect once per message. On failure: rolled back and
        tried again by ``retry``. Idempotence: by the message's id, or by ``dedupe``.
        """
        return self.handlers.on(event_type, group=group, **options)

    def handle(self, command_type: type, **options: Unpack[HandlerOptions]) -> Callable[[F], F]:
        """Register the one handler of a command; options and promises as ``on``."""
        return self.handlers.handle(command_type, **options)

    # --- running ---
    @asynccontextmanager
    async def running(self, roles: Collection[str] | None = None) -> AsyncIterator[Running]:
        """Run roles (relay, consumer, cdc, batch, upkeep; all by default) inside the block.

        Guarantee: what was under way at the end is finished or found again. Raises
        ConfigurationError, UnsafeSettingError (from ``check``), SchemaError.
        """
        from duly.running import Running

        if self._running is not None:
            raise ConfigurationError(f"app {self.name!r} is running already in this process")
        running = Running(self, roles)
        self._running = running
        try:
            await running.start()
            yield running
        finally:
            try:
                await self._end_tasks()
                await running.close()
            finally:
                self._running = None

    @asynccontextmanager
    async def lifespan(self, _: Any = None) -> AsyncIterator[None]:
        """``running`` in the form that ASGI frameworks take: ``FastAPI(lifespan=app.lifespan)``."""
        async with self.running():
            yield

    async def run_once(
        self, roles: Collection[str] | None = None, *, timeout: Duration = "60s"
    ) -> None:
        """Run until nothing is left to do, then stop; for cron and tests. Raises TimeoutError."""
        import asyncio

        async with asyncio.timeout(seconds(timeout, "timeout")), self.running(roles) as running:
            await running.settled()

    def run(self, roles: Collection[str] | None = None) -> None:
        """Run in the foreground until SIGTERM or SIGINT; a second signal ends at once. Raises
        ConfigurationError (INSIDE_EVENT_LOOP), and as ``running``.
        """
        import asyncio

        from duly.checks import refuse_event_loop
        from duly.running import run_until_signal

        refuse_event_loop("app.run()", "async with app.running()")
        asyncio.run(run_until_signal(self, roles))

    @contextmanager
    def running_in_thread(self, roles: Collection[str] | None = None) -> Iterator[None]:
        """``running`` for programs without an event loop: the roles run in a thread."""
        from duly.runtime.portal import Portal

        portal = Portal("app", drain_seconds=self.settings.drain_timeout)
        context = self.running(roles)
        try:
            portal.call(context.__aenter__())
            try:
                yield
            finally:
                portal.call(context.__aexit__(None, None, None))
        finally:
            portal.close()

    def check(self) -> list[Finding]:
        """Everything that stands against running this App, worst first; nothing is changed.

        Looks at handlers, message types, database and broker. A finding accepted by
        ``allow_unsafe`` is listed as weak with its reason. Raises ConfigurationError
        (INSIDE_EVENT_LOOP).
        """
        from duly.checks import check_all

        return check_all(self)

    def operator(self) -> Operator:
        """The operator's verbs on this App's outbox and inbox."""
        from duly.outbox.operator import Operator

        cap = self.settings.payload_bytes_max
        return Operator(
            self.database.connect, hooks=self.hooks, registry=self.registry, payload_bytes_max=cap
        )

    def upgrade_tables(self) -> tuple[str, ...]:
        """Run the pending migrations of this App's tables, as ``duly db upgrade`` does; returns
        their names.

        Idempotence: safe to repeat and to run in many processes at once. Raises SchemaError and
        what the database raises.
        """
        from duly.outbox.schema import Schema

        return Schema(self.database, self.name).upgrade()

    def close(self) -> None:
        """Drain the background, then close what this object opened: engines of its own and the
        sender of unstored messages.
        """
        if "tasks" in vars(self):
            self.tasks.drain()
        if self._sender is not None:
            self._sender.close()
            self._sender = None
        if "global_transactions" in vars(self):
            self.global_transactions.close()
        if self._wiring is not None:
            self._wiring.database.close()
            self._wiring = None

    def _deliver(self, message: Message, policy: Policy) -> None:
        if self._sender is None:
            from duly.outbox.unstored import UnstoredSender

            self._sender = UnstoredSender(
                self.make_broker,
                self.database,
                hooks=self.hooks,
                send_timeout_seconds=self.settings.send_timeout,
            )
        self._sender.deliver(message, policy)

    def _report(self, name: str, error: Exception) -> None:
        _log.error("after-commit work failed: %s", name, exc_info=error)
        self.hooks.emit(
            AfterCommitFailed(hook=name, code=getattr(error, "code", type(error).__name__))
        )

    def _wake(self) -> None:
        running = self._running
        if running is not None:
            running.hint()


def _shown(given: Any, url: str) -> str:
    """A URL, an engine of the user's or an adapter of their own; without secrets."""
    if given is None or isinstance(given, str):
        return redact(given or url)
    engine_url = getattr(given, "url", None)
    return type(given).__qualname__ if engine_url is None else redact(str(engine_url))
