"""Work that waits for the commit, on the same frames as the messages.

Owns the entries for ``app.after_commit`` and for messages that are sent after the commit instead of
stored.  The invariant: the work runs after the *outermost* commit or not at all - never for a
savepoint that was rolled back, a session that was closed - and whatever it raises is reported and
never looks like a failed commit.  A crash between the commit and the work loses it; what must not
be lost belongs into the outbox.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from duly.errors import ConfigurationError
from duly.kernel.backoff import Retry
from duly.message import Message
from duly.outbox.publish import UNKEYED, MessageOutlet, PendingMessage
from duly.ports import Outlet

__all__ = [
    "FailureLog",
    "Hook",
    "Ignore",
    "Policy",
    "UnstoredMessage",
    "is_async",
    "qualified_name",
]


@dataclass(frozen=True)
class Ignore:
    """A message that cannot be sent is lost; counted and logged."""


@dataclass(frozen=True)
class FailureLog:
    """A message that cannot be sent is written to the failure log, for a person or a job to handle
    later.
    """


Policy = Ignore | Retry | FailureLog
Deliver = Callable[[Message, Policy], None]
Report = Callable[[str, Exception], None]


class Hook:
    """A function that runs after the outermost commit.

    run: a plain function without arguments; on an AsyncSession it runs inside SQLAlchemy's
    greenlet, before ``await session.commit()`` returns. report: told the function's name and its
    exception. Raises ConfigurationError (ASYNC_HOOK) for an async function.
    """

    __slots__ = ("_report", "_run")
    outlet: Outlet | None = None
    frozen = True

    def __init__(self, run: Callable[[], object], report: Report) -> None:
        if is_async(run):
            raise ConfigurationError(
                f"{qualified_name(run)} is an async function; start a task in a plain one instead",
                code="ASYNC_HOOK",
            )
        self._run = run
        self._report = report

    def resolve(self) -> None:
        """Nothing is late in a hook."""

    def committed(self) -> None:
        """Run it."""
        result = self._run()
        if inspect.iscoroutine(result):
            result.close()
            raise ConfigurationError(
                f"{qualified_name(self._run)} returned a coroutine; nobody awaits it",
                code="ASYNC_HOOK",
            )

    def failed(self, error: Exception) -> None:
        """Report it."""
        self._report(qualified_name(self._run), error)


class UnstoredMessage(PendingMessage):
    """A message that is sent after the commit (``publish(..., outbox=False)``).

    deliver: sends one message under a policy; what it raises is reported with the wire name of the
    message.
    """

    __slots__ = ("_deliver", "_policy", "_report")

    def __init__(
        self,
        source: MessageOutlet,
        value: Any,
        *,
        kind: str,
        policy: Policy,
        deliver: Deliver,
        report: Report,
        key: Any = UNKEYED,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if isinstance(policy, Retry):
            policy.refuse_on("policy=")
        super().__init__(source, value, kind=kind, key=key, headers=headers, stored=False)
        self._policy = policy
        self._deliver = deliver
        self._report = report

    def committed(self) -> None:
        """Send it."""
        self._deliver(self.message, self._policy)

    def failed(self, error: Exception) -> None:
        """Report it."""
        self._report(self.message.type, error)


def is_async(run: Any) -> bool:
    """Whether calling it gives a coroutine: an async function, a partial or an object of one."""
    while isinstance(run, partial):
        run = run.func
    return inspect.iscoroutinefunction(run) or inspect.iscoroutinefunction(type(run).__call__)


def qualified_name(run: Any) -> str:
    """How a function is named to a person."""
    while isinstance(run, partial):
        run = run.func
    return (
        f"{getattr(run, '__module__', '?')}.{getattr(run, '__qualname__', type(run).__qualname__)}"
    )
