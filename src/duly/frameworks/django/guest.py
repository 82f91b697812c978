"""Django's ORM on the transaction of a handler.

Theory of operation.  The handler's transaction runs on a connection that Django has made and duly
holds (``source``).  While the handler runs, ``connections[alias]`` of its thread is a *guest*: a
connection wrapper of the same backend whose driver connection is that one.  Every use asks for it
again, so the first query opens the transaction, dedupe row first.  The guest stands inside an
atomic block that it cannot leave: ``atomic()`` in a handler is a savepoint, ``commit`` and
``set_autocommit`` are refused by Django, ``close`` by us.

The invariant: what the ORM writes on this alias while a handler runs is committed with the record
that the message was handled, or not at all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NoReturn

from django.db.transaction import Atomic

from duly.errors import TransactionMisuseError

__all__ = ["Reach", "guest_class", "run_hooks"]

Reach = Callable[[], Any]
_log = logging.getLogger("duly.frameworks.django")


class _Guest:
    """What a backend's connection wrapper does otherwise while it is a guest."""

    def welcome(self: Any, reach: Reach) -> None:
        """Begin a handler. reach: opens the transaction where it is not, gives its connection."""
        self._reach = reach
        self.connection = None
        self.autocommit, self.commit_on_exit = False, True
        self.needs_rollback, self.rollback_exc = False, None
        self.in_atomic_block, self.closed_in_transaction = True, False
        self.savepoint_state = 0
        self.savepoint_ids = list[Any]()
        self.run_on_commit = list[Any]()
        # What an ``atomic(durable=True)`` inside looks for, to refuse itself.
        self.atomic_blocks = [Atomic(self.alias, savepoint=False, durable=False)]

    def part(self: Any) -> None:
        """End a handler: whoever kept this connection cannot reach the next one's transaction."""
        self.welcome(_over)

    def approve(self: Any) -> None:
        """Raise TransactionMisuseError where Django wants this transaction rolled back."""
        if self.needs_rollback:
            raise TransactionMisuseError(
                "an error inside atomic() was caught outside of it, or set_rollback was called"
            )

    def ensure_connection(self: Any) -> None:
        self.connection = self._reach()

    connect = ensure_connection

    @contextmanager
    def temporary_connection(self: Any) -> Iterator[Any]:
        with self.cursor() as cursor:
            yield cursor

    def is_usable(self) -> bool:
        return True

    def close(self) -> NoReturn:
        raise TransactionMisuseError("connection.close() was called")

    def _commit(self) -> NoReturn:
        raise TransactionMisuseError("the connection was committed")

    def _rollback(self) -> NoReturn:
        raise TransactionMisuseError("the connection was rolled back")


def _over() -> NoReturn:
    raise TransactionMisuseError("a connection of Django's was used after its handler had returned")


@lru_cache(maxsize=16)
def guest_class(backend: type) -> Any:
    """The guest of a backend's connection wrapper."""
    return type("Guest", (_Guest, backend), {"__module__": __name__})


def run_hooks(hooks: list[tuple[Any, ...]]) -> None:
    """Run what waited for the commit; an error is logged and stops none of the others: the message
    is done.
    """
    for _, function, *_ in hooks:
        try:
            function()
        except (Exception, SystemExit):  # noqa: BLE001  # logged; the commit has succeeded
            _log.exception("on_commit in a handler failed: %r", function)
