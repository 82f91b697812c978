"""Joining ``transaction.atomic()``.

Theory of operation.  Django tells nobody before it commits.  So ``publish`` stores at once, by
Django's own cursor, in the transaction that the block has open: the row follows its savepoints, a
request's transaction (``ATOMIC_REQUESTS``) and a ``TestCase`` that never commits.  What waits for
the commit is registered with ``on_commit``, which drops it with its savepoint.  An error while
storing marks the block for rollback, so that nobody can catch it and commit the work without its
message.

The invariant: outside ``atomic()`` nothing is stored, not even with autocommit switched off: then
nobody says when it ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakSet

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.utils import Error
from django.utils.connection import ConnectionProxy

from duly.errors import NotInTransactionError
from duly.frameworks.frames import Item, drive, finish, item, write
from duly.ports import Outlet, Pending, Result, Statement

__all__ = ["JOIN", "DjangoJoin"]

_ADMITTED = "_duly_admitted"


class DjangoJoin:
    """The join for ``django.db.connection`` and ``connections[alias]``."""

    def buffer(self, target: Any, entry: Pending) -> None:
        """Store a message at once, in the innermost ``atomic()`` block; what waits for the commit
        waits with ``on_commit``.

        Raises NotInTransactionError (NOT_IN_ATOMIC, NOT_A_TRANSACTION), ConfigurationError
        (WRONG_DATABASE), RetryableError.
        """
        connection = _connection(target)
        _check(connection)
        numbered = item(entry)
        with _all_or_nothing(connection):
            entry.resolve()
            if entry.outlet is not None:
                _admit(connection, entry.outlet)
                write([numbered], partial(_run, connection), last=False)
        connection.on_commit(partial(_finish, numbered))

    def flush(self, target: Any) -> None:
        """Nothing waits here; raises NotInTransactionError as ``buffer``."""
        _check(_connection(target))


JOIN = DjangoJoin()


def _connection(target: Any) -> Any:
    if isinstance(target, ConnectionProxy):
        return connections[target.alias]
    if isinstance(target, BaseDatabaseWrapper):
        return target
    raise NotInTransactionError(
        f"{type(target).__qualname__} is no connection; use django.db.connection",
        code="NOT_A_TRANSACTION",
    )


def _check(connection: Any) -> None:
    if not connection.in_atomic_block:
        raise NotInTransactionError(
            f"the connection {connection.alias!r} is outside of transaction.atomic()",
            code="NOT_IN_ATOMIC",
        )
    if connection.needs_rollback:
        raise NotInTransactionError(
            f"the atomic block of {connection.alias!r} has failed and will be rolled back"
        )


@contextmanager
def _all_or_nothing(connection: Any) -> Iterator[None]:
    try:
        yield
    except BaseException:
        connection.set_rollback(True)
        raise


def _finish(numbered: Item) -> None:
    finish([numbered], lambda fine: None)  # after the commit Django is in autocommit again


def _admit(connection: Any, outlet: Outlet) -> None:
    """Ask whether this is the App's database, once per connection that was made to a server."""
    connection.ensure_connection()
    driver, known = vars(connection).get(_ADMITTED, (None, None))
    if driver is not connection.connection:
        driver, known = connection.connection, WeakSet()
        vars(connection)[_ADMITTED] = driver, known
    if outlet not in known:
        drive(outlet.admits(driver, managed=False), partial(_run, connection, outlet))
        known.add(outlet)


def _run(connection: Any, outlet: Outlet, statement: Statement) -> Result:
    result = Result([], 0)
    try:
        for text, values, many in outlet.prepare(statement):
            with connection.cursor() as cursor:
                if many:
                    cursor.executemany(text, values)
                else:
                    cursor.execute(text, values)
                rows = [tuple(row) for row in cursor.fetchall()] if cursor.description else []
                result = Result(rows or result.rows, cursor.rowcount)
    except Error as error:
        ours = outlet.map_error(error.__cause__) if isinstance(error.__cause__, Exception) else None
        if ours is None or ours is error.__cause__:
            raise
        raise ours from error
    return result
