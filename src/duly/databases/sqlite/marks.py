"""What a service says of its own transaction: its bounds and its meaning; triggers know neither.

Owns the three INSERTs into the view ``duly_intent`` that any program may write by itself; they are
documented and need no import of ours.  Invariant: the marks commit and roll back with the changes
they are about, and an unfinished block leaves none that would claim more.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from duly.errors import NotInTransactionError

__all__ = ["marked"]

_SAY = "INSERT INTO duly_intent (name, data) VALUES (?, ?)"


@contextmanager
def marked(connection: Any) -> Iterator[Callable[..., None]]:
    """Let a change source see all changes of this block as one transaction.

    connection: a ``sqlite3.Connection`` inside a transaction, or a SQLAlchemy ``Session`` or
    ``Connection`` on SQLite. Gives a function ``say(name, data=b"")`` that attaches an intent.

    Guarantee: what the block changes comes as one ``Transaction`` with its intents, if it commits.
    On failure: when the block raises, roll back; what it changed would come change by change.
    Raises NotInTransactionError for a connection in autocommit.
    """
    run = _runner(connection)
    run(_SAY, ("BEGIN", None))
    if isinstance(connection, sqlite3.Connection) and not connection.in_transaction:
        raise NotInTransactionError("marks around a transaction need one")

    def say(name: str, data: bytes = b"") -> None:
        if name in ("BEGIN", "COMMIT"):
            raise ValueError(f"{name} is a mark, not the name of an intent")
        run(_SAY, (name, data))

    yield say
    run(_SAY, ("COMMIT", None))


def _runner(connection: Any) -> Callable[[str, tuple[Any, ...]], Any]:
    if isinstance(connection, sqlite3.Connection):
        return connection.execute
    core = connection.connection() if hasattr(connection, "get_bind") else connection
    run: Callable[[str, tuple[Any, ...]], Any] = core.exec_driver_sql
    return run
