"""How long the transaction around the running code is open.

Owns one context variable and the listener that sets it where a session of SQLAlchemy begins on a
connection: in that thread, or in that task (SQLAlchemy's greenlets share the task's context).  The
invariant: a transaction that has ended counts as none, whoever ended it.  Leaves out transactions
that no session began: plain connections, and drivers used without SQLAlchemy.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from functools import cache
from weakref import ref

from sqlalchemy import event
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session, SessionTransaction

__all__ = ["open_seconds", "watch"]

_begun: ContextVar[tuple[ref[Connection], float] | None] = ContextVar("duly_begun", default=None)


@cache
def watch() -> None:
    """Listen from now on, once per process and on the class, as ``sessions`` does."""
    event.listen(Session, "after_begin", _after_begin)


def open_seconds() -> float:
    """For how long; 0 where none is open."""
    found = _begun.get()
    if found is None:
        return 0.0
    connection = found[0]()
    if connection is None or connection.closed or not connection.in_transaction():
        _begun.set(None)
        return 0.0
    return time.monotonic() - found[1]


def _after_begin(_: Session, transaction: SessionTransaction, connection: Connection) -> None:
    if not transaction.nested:
        _begun.set((ref(connection), time.monotonic()))
