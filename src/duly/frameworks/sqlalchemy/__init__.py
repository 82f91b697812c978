"""Joining transactions of SQLAlchemy: sessions, connections, their async and scoped forms.

Everything reaches one of two owners: a sync ``Session`` (``sessions``) or a sync ``Connection``
(``core``); the async and scoped ones are thin shells around those, and their commits run the same
code inside SQLAlchemy's greenlet.  That is why ``publish`` needs no ``await``: it only appends to a
list.
"""

from __future__ import annotations

import sys
from typing import Any

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.engine.base import Transaction
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from duly.errors import NotInTransactionError
from duly.frameworks.frames import item
from duly.frameworks.sqlalchemy import core, sessions
from duly.ports import Pending

__all__ = ["JOIN", "SQLAlchemyJoin"]


class SQLAlchemyJoin:
    """The join for everything of SQLAlchemy's that can have a transaction."""

    def buffer(self, target: Any, entry: Pending) -> None:
        """Attach ``entry`` to the innermost transaction of a session or connection; no I/O.

        Raises NotInTransactionError (an Engine or a factory, no transaction, one that has ended),
        ConfigurationError (AUTOCOMMIT, somebody else's database) - here or, for a session without a
        connection yet, at its commit.
        """
        owner = _owner(target)
        if isinstance(owner, Session):
            sessions.buffer(owner, entry)
        else:
            frame = core.innermost(owner)
            core.refuse_autocommit(owner)
            frame.items.append(item(entry))

    def flush(self, target: Any) -> None:
        """Store what is buffered so far in the open transaction. Under an AsyncSession: through
        ``run_sync``.
        """
        owner = _owner(target)
        if isinstance(owner, Session):
            sessions.flush(owner)
        else:
            core.write_now(owner)


JOIN = SQLAlchemyJoin()


def _owner(target: Any) -> Session | Connection:
    """The sync session or connection behind a target."""
    if isinstance(target, Session):
        return target
    if isinstance(target, scoped_session):
        target = target.registry()
    # Importing this needs greenlet; whoever has an async target has imported it.
    if "sqlalchemy.ext.asyncio" in sys.modules:
        target = _behind_async(target)
    if isinstance(target, Transaction):
        return target.connection
    if isinstance(target, Session | Connection):
        return target
    if isinstance(target, Engine | sessionmaker):
        raise _no_transaction(target)
    raise NotInTransactionError(
        f"{type(target).__qualname__} is no session or connection", code="NOT_A_TRANSACTION"
    )


def _behind_async(target: Any) -> Any:
    from sqlalchemy.ext import asyncio as shells

    if isinstance(target, shells.async_scoped_session):
        target = target.registry()
    if isinstance(target, shells.AsyncSession):
        return target.sync_session
    if isinstance(target, shells.AsyncTransaction):
        target = target.connection
    if isinstance(target, shells.AsyncConnection):
        if target.sync_connection is None:
            raise NotInTransactionError("the AsyncConnection is not started")
        return target.sync_connection
    if isinstance(target, shells.AsyncEngine | shells.async_sessionmaker):
        raise _no_transaction(target)
    return target


def _no_transaction(target: Any) -> NotInTransactionError:
    return NotInTransactionError(
        f"a {type(target).__name__} has no transaction; use a session or connection of it",
        code="ENGINE_IS_NO_TRANSACTION",
    )
