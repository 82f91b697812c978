"""The verbs of publishing: from a user's session or connection to an entry in its transaction.

Owns nothing but the wiring: an App makes one ``Publisher`` and its methods are what users call as
``app.publish``, ``app.send`` and ``app.after_commit``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from duly.outbox.after_commit import Deliver, Hook, Policy, Report, UnstoredMessage
from duly.outbox.publish import UNKEYED, MessageOutlet, PendingMessage
from duly.ports import Join

__all__ = ["Publisher"]


class Publisher:
    """Publishes into the transactions of users.

    join_of: finds the way to join a target (``duly.frameworks.join_of``). deliver: sends a message
    after the commit, for ``unstored``. report: told what failed after a commit, by name.
    """

    def __init__(
        self,
        outlet: MessageOutlet,
        *,
        join_of: Callable[[Any], Join],
        deliver: Deliver,
        report: Report,
    ) -> None:
        self._outlet = outlet
        self._join_of = join_of
        self._deliver = deliver
        self._report = report

    def publish(
        self,
        target: Any,
        message: Any,
        *,
        key: Any = UNKEYED,
        headers: Mapping[str, str] | None = None,
        kind: str = "event",
    ) -> str:
        """Store a message with the transaction of ``target`` and return its id.

        message, key: values, or callables that are called before the commit. Guarantee: committed
        together with the transaction, or not at all. On failure: the commit raises and the whole
        transaction is rolled back. Idempotence: none; each call is a message of its own. Raises
        NotInTransactionError, ConfigurationError and what PendingMessage raises.
        """
        entry = PendingMessage(self._outlet, message, kind=kind, key=key, headers=headers)
        self._join_of(target).buffer(target, entry)
        return entry.id

    def unstored(
        self,
        target: Any,
        message: Any,
        *,
        policy: Policy,
        key: Any = UNKEYED,
        headers: Mapping[str, str] | None = None,
        kind: str = "event",
    ) -> str:
        """Send a message after the transaction of ``target`` committed and return its id.

        Guarantee: never sent for what was rolled back; lost when the process dies between commit
        and send. On failure: what ``policy`` says. Raises as ``publish``.
        """
        entry = UnstoredMessage(
            self._outlet,
            message,
            kind=kind,
            policy=policy,
            deliver=self._deliver,
            report=self._report,
            key=key,
            headers=headers,
        )
        self._join_of(target).buffer(target, entry)
        return entry.id

    def after_commit(self, target: Any, run: Callable[[], object]) -> None:
        """Run a plain function after the outermost commit of the transaction of ``target``.

        It may use the session: what it leaves open there is committed when it returns and rolled
        back when it raises. Guarantee: at most once, never for what was rolled back, in the order
        of registration. On failure: reported; the next ones run; the commit stays what it is.
        Raises NotInTransactionError, ConfigurationError (ASYNC_HOOK).
        """
        self._join_of(target).buffer(target, Hook(run, self._report))
