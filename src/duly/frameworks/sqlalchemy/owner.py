"""A Session whose transaction began elsewhere is refused inside a background call.

Theory of operation.  Arguments are looked at when a call is submitted; a session can come by other
ways, a global among them.  So each root transaction remembers where it began - which thread, which
background call - and inside a background call every query, flush and commit looks: the transaction
must have begun in this call, or in an earlier one on the same thread.  Outside of background calls
nothing is compared, because frameworks hand a request from thread to thread.  Left out:
``rollback`` and ``close``, which end what should not go on, and a Core ``Connection`` by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import ORMExecuteState, Session, SessionTransaction

from duly.errors import CrossesThreadsError

__all__ = ["watch"]

_KEY = "_duly_began"
_inside: list[Callable[[], Any]] = []


def watch(inside: Callable[[], Any]) -> None:
    """Begin to look, once per process. inside: what identifies the background call that runs here,
    None outside.
    """
    if _inside:
        return
    _inside.append(inside)
    event.listen(Session, "after_transaction_create", _began)
    event.listen(Session, "do_orm_execute", _executes)
    event.listen(Session, "before_flush", _check)
    event.listen(Session, "before_commit", _check)


def _began(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        vars(transaction)[_KEY] = (_inside[0](), threading.get_ident())


def _executes(state: ORMExecuteState) -> None:
    _check(state.session)


def _check(session: Session, *_: Any) -> None:
    here = _inside[0]()
    if here is None:
        return
    root = session.get_transaction()
    if root is None:
        return
    call, thread = vars(root).get(_KEY, (None, 0))
    if call is here or (call is not None and thread == threading.get_ident() and not here.is_async):
        return
    raise CrossesThreadsError("this session's transaction was begun outside of the background call")
