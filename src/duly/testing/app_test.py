"""An App under test: on a fresh database, with a broker in memory and a clock that stands still.

``AppTest`` is what the pytest fixture ``app_test`` gives.  Nothing runs in the background: messages
move when ``drain`` (``await adrain``) is called and stand still between two calls, no thread stays
behind, and a retry is due when the test moves the clock there.  Works alike where the code under
test commits, and inside a transaction of the test's that never does (``join``).

Invariant: what a test sees is what production code decided; only threads, leases and the network
are missing.  For those run the App itself: ``app.override(...)`` and ``app.running()``.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from duly.cdc.effects import Effects, Frame
from duly.checks import check_code, refuse_unsafe
from duly.errors import ConfigurationError
from duly.kernel.changes import Change, Intent
from duly.kernel.durations import Duration, seconds
from duly.message import Message
from duly.observe.facts import Fact, Failed, HandlerFailed, Held
from duly.outbox.relay import message_of
from duly.outbox.schema import Schema
from duly.ports import Steps
from duly.runtime.desk import Desk
from duly.runtime.leases import Deadlines
from duly.runtime.work import Row
from duly.testing.changes import transaction_of
from duly.testing.clock import FakeClock
from duly.testing.drain import CommittedPlace, Drain, OpenPlace, Place, all_ready, consume_context
from duly.testing.faults import Faults, RecordingBroker

if TYPE_CHECKING:
    from types import TracebackType

    from sqlalchemy.engine import Connection as CoreConnection
    from sqlalchemy.orm import Session

    from duly.app import App

__all__ = ["AppTest", "Drained"]

SHOWN_MAX = 20
READY_MAX = 10_000


class Drained(NamedTuple):
    """What a drain has done. relayed: messages that reached the broker. failures: of handlers, as
    ``group/handler: CODE``; their messages wait for a retry (move the clock) or for a person.
    """

    relayed: int
    failures: tuple[str, ...]


class AppTest:
    """An App in a test; a context manager.

    folder: where the database file goes, as pytest's ``tmp_path``. database: instead of that file,
    a URL or engine of your own; its duly tables are made where they may be. clock: moves the due
    times of a SQLite database. Raises UnsafeSettingError for what is wrong with the handlers.
    """

    def __init__(
        self,
        app: App,
        folder: Path | str,
        *,
        database: Any = None,
        clock: FakeClock | None = None,
    ) -> None:
        self.app = app
        self.clock = clock or FakeClock()
        self._database = database or f"sqlite:///{Path(folder).absolute() / 'app_test.db'}"
        self._faults = Faults({h.name for g in app.handlers.groups for h in _handlers(app, g)})
        self._broker = RecordingBroker(self._faults)
        self._delivered: dict[str, int] = {}
        self._failures: list[str] = []
        self._target: Any = None
        self._session: Session | None = None
        self._stack = ExitStack()
        self._fed = 0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            override = self.app.override(
                database=self._database, broker=self._broker, clock=self.clock
            )
            stack.enter_context(override)
            refuse_unsafe(check_code(self.app), self.app.settings.allow_unsafe)
            schema = Schema(self.app.database, self.app.name)
            schema.start()
            handlers = self.app.handlers
            schema.record_groups({group: handlers.order_of(group) for group in handlers.groups})
            stack.callback(self.app.hooks.add(self._hear))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session is not None:
            self._session.close()
        self._stack.close()
        if kind is None and (left := self._faults.left):
            shown = ", ".join(f"{name} ({times} left)" for name, times in left.items())
            raise AssertionError(f"these faults were ordered and never happened: {shown}")

    # --- the transaction of the test --------------------------------------------------------------
    @property
    def engine(self) -> Any:
        """The engine of the App's database, for tables of your own."""
        return self.app.database.engine()

    @property
    def session(self) -> Session:
        """A Session on the App's database; while it has an open transaction, ``drain`` works in it.

        On SQLite an open transaction keeps every other writer out, so commit or close it before the
        code under test opens one of its own.
        """
        from sqlalchemy.orm import Session

        if self._session is None:
            self._session = Session(self.engine)
        return self._session

    def join(self, target: Any) -> None:
        """Work in the transaction of this Session, AsyncSession or connection from now on.

        ``drain`` then stores what was published there without a commit, and relays and handles it
        on that same connection, each handler in a savepoint. So a test whose outer transaction is
        rolled back at its end leaves nothing. What is not open when ``drain`` is called is no
        obstacle: then everything is committed as usual.
        """
        self._target = target

    # --- moving messages --------------------------------------------------------------------------
    def drain(self, *, timeout: Duration = "10s") -> Drained:
        """Relay and handle until nothing moves any more.

        What handlers publish is relayed and handled too; retries that are not due by ``clock`` stay
        where they are. Raises TimeoutError (the messages never end), RuntimeError where an event
        loop runs: use ``await adrain()`` there.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self.adrain(timeout=timeout))
        raise RuntimeError("an event loop runs here: use `await app_test.adrain()`")

    async def adrain(self, *, timeout: Duration = "10s") -> Drained:
        """``drain`` for tests with an event loop, and for an AsyncSession that was joined."""
        relayed, failed = len(self._broker.arrived), len(self._failures)
        context = consume_context(self.app)
        place = await self._place(context)
        drain = Drain(
            self.app,
            place,
            context=context,
            broker=self._broker,
            faults=self._faults,
            delivered=self._delivered,
        )
        try:
            async with asyncio.timeout(seconds(timeout, "timeout")):
                await drain.until_quiet()
        except TimeoutError:
            raise TimeoutError(f"still not quiet after {timeout}; {self._shown()}") from None
        finally:
            await place.close()
        return Drained(len(self._broker.arrived) - relayed, tuple(self._failures[failed:]))

    def feed(self, *changes: Change, intents: Sequence[Intent] = (), stream: str = "") -> list[Any]:
        """Let the rules see one transaction of these changes, and store what they make of it as a
        running App would, what they write in it, too; returns their messages, as objects of their
        classes.

        changes: as ``duly.testing.changes`` makes them. intents: what the service said of its
        transaction. stream: where the App has several. Raises RuleFailedError.
        """
        self._fed += 1
        transaction = transaction_of(changes, position=f"{self._fed:016d}", intents=intents)
        database, limit_seconds = self.app.database, self.app.settings.handler_timeout
        effects = Effects(
            self.app.captures.stream(stream),
            self.app.outlet,
            desk=Desk(database, limit_seconds=limit_seconds, turn=database.turn),
            deadlines=Deadlines(self.app.clock),
            limit_seconds=limit_seconds,
            clock=self.app.clock,
            piece=sys.maxsize,
        )
        try:
            applied = effects.apply([transaction], Frame(_nothing, lambda _: _nothing()))
        finally:
            effects.close()
        if applied.failed is not None:
            raise applied.failed
        return [self._object(one.message) for one in applied.messages]

    def fail_next(self, name: str, *, times: int = 1) -> None:
        """Let something fail the next times it is asked for; see ``duly.testing.faults``.

        name: ``broker.publish``, ``broker.publish_unknown``, ``handler:NAME`` or ``commit``. Raises
        ConfigurationError for another name. A fault that never happens fails the test at its end.
        """
        self._faults.order(name, times)

    # --- looking ----------------------------------------------------------------------------------
    def published(self, kind: type | None = None) -> list[Any]:
        """The events and commands published so far, in order, as objects of their classes.

        kind: only of this class. What a transaction holds that is not joined is not seen, nor what
        an AsyncSession holds before ``adrain``.
        """
        found = [self._object(message) for message in self._messages()]
        return found if kind is None else [one for one in found if type(one) is kind]

    def assert_published(self, kind: type, **fields: Any) -> Any:
        """Return the one message of this class with these values of fields; more than one is wrong,
        too. Raises AssertionError.
        """
        candidates = self.published(kind)
        for name in fields:
            if candidates and not hasattr(candidates[0], name):
                raise AssertionError(f"{kind.__qualname__} has no field {name!r}")
        found = [one for one in candidates if all(getattr(one, n) == v for n, v in fields.items())]
        if len(found) == 1:
            return found[0]
        wanted = ", ".join(f"{name}={value!r}" for name, value in fields.items())
        count = "was not published" if not found else f"was published {len(found)} times"
        raise AssertionError(f"{kind.__qualname__}({wanted}) {count}; {self._shown()}")

    def assert_nothing_published(self, kind: type | None = None) -> None:
        """Nothing was published so far, or nothing of this class. Raises AssertionError."""
        if self.published(kind):
            what = "nothing" if kind is None else f"no {kind.__qualname__}"
            raise AssertionError(f"{what} should have been published; {self._shown()}")

    # --- details ----------------------------------------------------------------------------------
    async def _place(self, context: Any) -> Place:
        target = self._target if self._target is not None else self._session
        shell = await _async_connection(target)
        core = _open_connection(target) if shell is None else shell.sync_connection
        if core is None:
            return CommittedPlace(context, self._faults)
        place = OpenPlace(context, self._faults, core, shell=shell)
        await place.call(lambda: self._flush(target, core))
        return place

    def _flush(self, target: Any, core: CoreConnection) -> None:
        if getattr(target, "in_transaction", lambda: False)():
            self.app.flush(target)
        self.app.flush(core)

    def _messages(self) -> Iterator[Message]:
        seen = set()
        for message in (*self._broker.arrived, *self._waiting()):
            if message.id not in seen:
                seen.add(message.id)
                yield message

    def _waiting(self) -> list[Message]:
        """What is stored and not relayed, in the joined transaction or else committed."""
        target = self._target if self._target is not None else self._session
        core = _open_connection(target)
        context = consume_context(self.app)
        if core is None:
            connection = self.app.database.connect()
            try:
                rows = connection.ask(all_ready(READY_MAX)).rows
            finally:
                connection.close()
        else:
            self._flush(target, core)
            rows = OpenPlace(context, self._faults, core).ask(all_ready(READY_MAX)).rows
        return [message_of(Row(*values)) for values in rows]

    def _object(self, message: Message) -> Any:
        spec = self.app.registry.find(message.type, message.version)
        if spec is None:
            raise ConfigurationError(f"{message.type} is in the outbox and unknown to this App")
        return self.app.registry.decode(spec, message.payload)

    def _shown(self) -> str:
        """What there is instead, for a message about what is missing."""
        messages = self.published()
        lines = [f"  {one!r}"[:300] for one in messages[:SHOWN_MAX]]
        if len(messages) > SHOWN_MAX:
            lines.append(f"  and {len(messages) - SHOWN_MAX} more")
        text = "\n".join(["published so far:", *lines]) if lines else "nothing was published"
        if self._failures:
            text = "\n".join([text, "handlers failed:", *(f"  {f}" for f in self._failures)])
        return text

    def _hear(self, fact: Fact) -> None:
        if isinstance(fact, HandlerFailed) and fact.due_in_seconds is None:
            return  # told again as Failed
        if isinstance(fact, HandlerFailed | Failed) and fact.handler:
            self._failures.append(f"{fact.group}/{fact.handler}: {fact.code}")
        elif isinstance(fact, Held) and fact.box == "inbox" and fact.code != "KEY_HELD":
            self._failures.append(f"{fact.group}: {fact.code}")


def _handlers(app: App, group: str) -> list[Any]:
    return app.handlers.of_group(group)


def _open_connection(target: Any) -> CoreConnection | None:
    """The connection of a sync target's open transaction; None where nothing is open."""
    from sqlalchemy.engine import Connection
    from sqlalchemy.orm import Session, scoped_session

    if isinstance(target, scoped_session):
        target = target()
    if isinstance(target, Session):
        if target.in_transaction():
            return target.connection()
        target = target.bind  # of a session in an outer transaction of the test's
    if isinstance(target, Connection) and target.in_transaction():
        return target
    return None


async def _async_connection(target: Any) -> Any:
    """The same for an AsyncSession or AsyncConnection; None for everything else."""
    try:
        from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
    except ImportError:  # no greenlet: then nobody has an async target
        return None
    if isinstance(target, AsyncSession):
        if target.in_transaction():
            return await target.connection()
        target = target.bind
    if isinstance(target, AsyncConnection) and target.in_transaction():
        return target
    return None


def _nothing() -> Steps[None]:
    yield from ()
