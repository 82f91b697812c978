"""The ways of integrating besides messages, as an App offers them.

Owns the methods by which a user declares background functions, calls, batch jobs, rules about
changes and global transactions, and the way to each room's registry and verbs.  A room is imported
and its registry made when it is first asked for: an App that only publishes loads none of them.
What is joined here to the App's database, clock and hooks is wired by ``App``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, cast

from duly.adapters import Places, make_change_source, make_participant
from duly.errors import ConfigurationError
from duly.frameworks import join_of, watch_transactions
from duly.wire.urls import redact

if TYPE_CHECKING:
    from duly.app import App
    from duly.background.registry import BackgroundOptions, BackgroundRegistry, Decorator
    from duly.batch.folders import Folders
    from duly.batch.registry import JobOptions, JobRegistry
    from duly.batch.service import Batches
    from duly.calls.registry import CallOptions, CallRegistry, Decorate
    from duly.cdc.operator import Streams
    from duly.cdc.registry import RuleOptions, RuleRegistry, StreamRules
    from duly.sources import ChangeSource
    from duly.twophase.entrance import GlobalTransactions
    from duly.twophase.transaction import Scope

__all__ = ["Features"]

C = TypeVar("C", bound=type)
F = TypeVar("F", bound=Callable[..., Any])


class Features:
    """What ``App`` adds to messages and handlers; no object of its own."""

    @property
    def _app(self) -> App:
        return cast("App", self)

    # --- work beside the caller ---
    def background(self, **options: Unpack[BackgroundOptions]) -> Decorator:
        """Make a function one that can also be called in the background: by ``submit``, by
        ``after(session).submit``, by ``durable(session).submit``; options as in
        ``BackgroundOptions``. Called directly it is what it was. Raises ConfigurationError.
        """
        return self.tasks.register(**options)

    @cached_property
    def tasks(self) -> BackgroundRegistry:
        """The background functions of this App and their pools."""
        from duly.background.registry import BackgroundRegistry, Surface
        from duly.frameworks import threadbound

        surface = Surface(join_of, threadbound.bound, threadbound.release, _watch_sessions)
        return BackgroundRegistry(self._app, surface)

    @property
    def logs_calls(self) -> bool:
        """Whether failed calls of the background are written to the failure log."""
        return "tasks" in vars(self) and self.tasks.logs_failures

    async def _end_tasks(self) -> None:
        if "tasks" in vars(self) and self.tasks.status():
            import asyncio

            await asyncio.to_thread(self.tasks.drain)  # calls may run on this very loop

    # --- calls to other systems ---
    def call(self, **options: Unpack[CallOptions]) -> Decorate:
        """Make a function a call to another system, with a deadline, retries, a breaker, a
        bulkhead; options as in ``CallOptions``.

        It stays a callable of its type; ``using(on_failure=...)`` and ``deferrable(session)`` say
        what a failure means. Guarantee: over by its deadline; what may have been done is never made
        again unless that is harmless. On failure: raises what the function raised,
        CallRefusedError where it was not made, CallDeadlineError where that is unknown.
        Idempotence: by ``key_as``. Raises ConfigurationError, InvalidNameError.
        """
        return self.calls.call(**options)

    @cached_property
    def calls(self) -> CallRegistry:
        """The calls of this App."""
        from duly.calls.call import CallContext
        from duly.calls.registry import CallRegistry

        context = CallContext(
            hooks=self._app.hooks,
            store=self._app.send,
            encode=self._app.registry.encode,
            open_seconds=watch_transactions(),
            transaction_seconds=lambda: self._app.settings.transaction_warning,
        )
        return CallRegistry(
            self._app.name,
            context,
            health=self._app.health,
            handle=self._app.handlers.handle,
            now=lambda: self._app.clock.time(),  # noqa: PLW0108  # `override` changes it
        )

    # --- batch ---
    def batch(self, name: str, **options: Unpack[JobOptions]) -> Callable[[C], C]:
        """Register a class as a job: what it reads, how it is processed and written, where it is
        sent; options as in ``JobOptions``.

        Guarantee: one attempt at an instance stores anything at a time, and under its final name a
        file is complete. On failure: goes on from the last checkpoint. Idempotence: an instance is
        its parameters. Raises ConfigurationError.
        """
        return self.jobs.job(name, **options)

    @cached_property
    def jobs(self) -> JobRegistry:
        """The batch jobs of this App."""
        from duly.batch.registry import JobRegistry

        return JobRegistry(Places(lambda: self._url_of(None, "give Query a url")))

    @property
    def batches(self) -> Batches:
        """The verbs on this App's batch runs: start, restart, rerun, stop ..."""
        from duly.batch.service import Batches

        return Batches(
            self.jobs,
            database=self._app.database,
            hooks=self._app.hooks,
            folders=self.batch_folders,
            now=self._app.clock.time,
        )

    @property
    def batch_folders(self) -> Folders:
        """Where the batch runs of this App keep their files."""
        from duly.batch.folders import Folders

        return Folders(Path(self._app.settings.batch_spool), self._app.name)

    # --- changes of other people's data ---
    def cdc(self, **options: Unpack[RuleOptions]) -> Callable[[F], F]:
        """Register a rule: a generator function of one ``Change`` (or of one ``Transaction``) that
        yields events and commands; options as in ``RuleOptions``.

        What it yields is keyed by the row's key; ``Emit(message, key=..., headers=...)`` says
        otherwise. Guarantee: each committed change reaches the rule, and what the rule makes of a
        transaction is stored exactly once, with ids that a replay repeats. On failure: the stream
        waits at that transaction and tries again. Raises ConfigurationError, InvalidNameError.
        """
        return self.captures.rule(**options)

    @cached_property
    def captures(self) -> RuleRegistry:
        """The rules of this App about changes, by stream."""
        from duly.cdc.registry import RuleRegistry

        return RuleRegistry(self._app.name)

    def source(self, name: str, url: str | None = None) -> None:
        """Declare a database whose changes rules are about: ``@app.cdc(source=name)``.

        name: of the stream, and of what the reader makes there (slot, triggers); lower case
        letters, digits and "_". url: None for the App's own database. Raises InvalidNameError,
        ConfigurationError (declared before, differently).
        """
        self.captures.source(name, url)

    def make_change_source(self, stream: StreamRules) -> ChangeSource:
        """The source of a stream. Raises ConfigurationError, MissingExtraError."""
        return make_change_source(
            self._source_url(stream), reader=stream.name, clock=self._app.clock
        )

    def _source_url(self, stream: StreamRules) -> str:
        return self._url_of(stream.url, f"declare app.source({stream.name!r})")

    def _url_of(self, declared: str | None, fix: str) -> str:
        """A declared URL, else that of the App's own database."""
        if declared is not None:
            return declared
        given = self._app.given_database
        if given is None or isinstance(given, str):
            return given or self._app.settings.database
        url = getattr(given, "url", None)
        if url is None:
            text = f"{type(given).__qualname__} tells no URL; {fix}"
            raise ConfigurationError(text, code="CDC_SOURCE")
        return url if isinstance(url, str) else str(url.render_as_string(hide_password=False))

    def streams(self) -> Streams:
        """The operator's verbs on this App's streams of changes."""
        from duly.cdc.operator import Streams

        return Streams(
            self.captures,
            database=self._app.database,
            hooks=self._app.hooks,
            make_source=self.make_change_source,
            shown_url=lambda stream: redact(self._source_url(stream)),
        )

    # --- global transactions ---
    def participant(self, name: str, database: Any) -> None:
        """Declare a further database for global transactions: a URL, Engine or AsyncEngine; or a
        broker that takes part, ``activemq://...``.

        name: stays with its branches. Raises ConfigurationError (PARTICIPANT), InvalidNameError.
        """
        self.global_transactions.participants.add(name, database)

    def global_transaction(self) -> Scope:
        """Commit in the App's database and in participants, or in none: ``with``, ``async with``.

        Guarantee: all branches end alike, whatever crashes; those in doubt are ended by the role
        upkeep. On failure: raises before the decision, never for what comes after it.
        """
        return self.global_transactions.scope()

    @cached_property
    def global_transactions(self) -> GlobalTransactions:
        """The participants, the operator's verbs and the recovery."""
        from duly.twophase.entrance import GlobalTransactions

        def make(given: Any) -> Any:  # listen_url is a way to the App's own
            settings = replace(self._app.settings, listen_url=None)
            return make_participant(settings, given, clock=self._app.clock)

        return GlobalTransactions(
            self._app._wired,
            make=make,
            join_of=join_of,
            hooks=self._app.hooks,
            prepare_seconds=lambda: self._app.settings.global_tx_timeout,
        )


def _watch_sessions(inside: Callable[[], Any]) -> None:
    from duly.frameworks.sqlalchemy.owner import watch  # the ORM: not before there are pools

    watch(inside)
