"""What belongs to the thread or task that opened it, found without importing a library not in use.

Owns the list: sessions, connections, cursors and results of SQLAlchemy, of any DB-API driver and of
Django, duly's own ``Tx``, and loaded objects that are attached to a session, with their lazy
collections.  The invariant: an engine, a factory, a pool or a detached object is none of them -
they may go anywhere.  Left out: where in an argument such a thing hides (``background.guard``), and
what is reached through a global (``sqlalchemy.owner``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

__all__ = ["PLAIN", "bound", "release"]

PLAIN: Final = "plain"
_SESSIONS: dict[tuple[str, str], str] = {
    ("sqlalchemy.orm.session", "Session"): "a Session",
    ("sqlalchemy.orm.scoping", "scoped_session"): "a scoped_session",
    ("sqlalchemy.ext.asyncio.session", "AsyncSession"): "an AsyncSession",
    ("sqlalchemy.ext.asyncio.scoping", "async_scoped_session"): "an async_scoped_session",
    ("sqlalchemy.ext.asyncio.engine", "AsyncConnection"): "an AsyncConnection",
    ("sqlalchemy.ext.asyncio.engine", "AsyncTransaction"): "an AsyncTransaction",
    ("sqlalchemy.ext.asyncio.result", "AsyncCommon"): "a result",
    ("sqlalchemy.engine.base", "Connection"): "a Connection",
    ("sqlalchemy.engine.base", "Transaction"): "a Transaction",
    ("sqlalchemy.engine.result", "_WithKeys"): "a result",
    ("sqlalchemy.orm.query", "Query"): "a Query of a session",
    ("sqlalchemy.orm.dynamic", "AppenderMixin"): "a lazy collection",
    ("sqlalchemy.orm.writeonly", "AbstractCollectionWriter"): "a lazy collection",
    ("django.db.backends.base.base", "BaseDatabaseWrapper"): "a connection of Django",
    ("django.utils.connection", "ConnectionProxy"): "a connection of Django",
    ("django.db.backends.utils", "CursorWrapper"): "a cursor of Django",
    ("duly.inbox.transaction", "Tx"): "a Tx",
    ("duly.inbox.transaction", "AsyncTx"): "an AsyncTx",
    ("duly.cdc.effects", "ChangeTx"): "a ChangeTx",
    ("duly.frameworks.dbapi", "Atomic"): "an atomic block",
}
_CONNECTION = ("cursor", "commit", "rollback")
_CURSOR = ("execute", "executemany", "fetchone")
_NUMBERS = {"bool", "complex", "Decimal", "float", "int", "NoneType"}
_TIMES = {"date", "datetime", "time", "timedelta", "timezone"}
_SIMPLE = frozenset({*_NUMBERS, *_TIMES, "bytes", "str", "UUID"})
_SIMPLE_IN = frozenset({"builtins", "datetime", "decimal", "uuid"})


def bound(value: Any) -> str:
    """What ``value`` is that belongs to its thread; empty for anything else.

    ``PLAIN`` instead of empty: nothing of this class is ever bound, nor holds what is.
    """
    kind: Any = type(value)
    known = _kind_of(kind)
    return known if isinstance(known, str) else known(value)


def release() -> None:
    """Give back what Django keeps for this thread, once it is too old or broken."""
    django = sys.modules.get("django.db")
    if django is not None and sys.modules["django.conf"].settings.configured:
        django.close_old_connections()


@lru_cache(maxsize=1024)
def _kind_of(kind: type) -> str | Callable[[Any], str]:
    for cls in kind.__mro__:
        found = _SESSIONS.get((cls.__module__, cls.__qualname__))
        if found is not None:
            return found
    if _has(kind, _CONNECTION):
        return f"a connection ({kind.__module__}.{kind.__qualname__})"
    if _has(kind, _CURSOR):
        return f"a cursor ({kind.__module__}.{kind.__qualname__})"
    if hasattr(kind, "_sa_class_manager"):
        return _attached
    if "_sa_adapter" in vars(kind) or hasattr(kind, "_sa_instrumented"):
        return _collection
    return PLAIN if kind.__name__ in _SIMPLE and kind.__module__ in _SIMPLE_IN else ""


def _has(kind: type, names: tuple[str, ...]) -> bool:
    return all(callable(getattr(kind, name, None)) for name in names)


def _attached(value: Any) -> str:
    state = vars(value).get("_sa_instance_state")
    if state is None or state.session is None:
        return ""
    return f"an object that is attached to a session ({type(value).__qualname__})"


def _collection(value: Any) -> str:
    adapter = getattr(value, "_sa_adapter", None)
    state = None if adapter is None else adapter.owner_state
    return "" if state is None or state.session is None else "a collection of an attached object"
