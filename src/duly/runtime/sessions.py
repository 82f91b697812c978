"""The SQLAlchemy session that a handler gets; imported when the first handler asks for one.

Owns a ``Session`` that joins the handler's transaction and cannot end it: commit, rollback and
close raise, at once and again at the end, in case the handler catches it.
``app.publish(tx.session, ...)`` works on it as on any session.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from duly.errors import TransactionMisuseError

__all__ = ["HandlerSession", "async_session", "session"]


class HandlerSession(Session):
    """A session whose transaction is duly's."""

    misused: TransactionMisuseError | None = None
    ending = False

    def _refuse(self, what: str) -> NoReturn:
        self.misused = TransactionMisuseError(f"tx.session.{what}() was called")
        raise self.misused

    def commit(self) -> None:
        """Refused while the handler runs."""
        if not self.ending:
            self._refuse("commit")
        super().commit()

    def rollback(self) -> None:
        """Refused while the handler runs; use ``begin_nested`` for a part that may fail."""
        if not self.ending:
            self._refuse("rollback")
        super().rollback()

    def close(self) -> None:
        """Refused while the handler runs."""
        if not self.ending:
            self._refuse("close")
        super().close()


def session(core: Any) -> HandlerSession:
    """A session in the transaction of a connection."""
    return HandlerSession(bind=core, join_transaction_mode="rollback_only")


def async_session(connection: AsyncConnection, opened: Callable[[], None]) -> AsyncSession:
    """An async session; ``opened`` runs when it begins to use the connection, before its first
    statement.
    """
    made = AsyncSession(
        bind=connection, sync_session_class=HandlerSession, join_transaction_mode="rollback_only"
    )
    event.listen(made.sync_session, "after_begin", lambda *_: opened())
    return made
