"""How a user's transaction is joined; ``join_of`` finds the way without importing a library that is
not in use.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from duly.errors import NotInTransactionError
from duly.ports import Join

__all__ = ["join_of", "watch_transactions"]

_DBAPI = {"sqlite3", "psycopg", "pymysql", "duly"}


def join_of(target: Any) -> Join:
    """The join for a session, connection or transaction of the user.

    Raises NotInTransactionError (NOT_A_TRANSACTION) for anything that none of the joins knows.
    """
    kind: Any = type(target)
    return _join_of(kind)


@lru_cache(maxsize=256)
def _join_of(kind: type) -> Join:
    packages = {cls.__module__.partition(".")[0] for cls in kind.__mro__}
    if "sqlalchemy" in packages:
        from duly.frameworks.sqlalchemy import JOIN as SQLALCHEMY

        return SQLALCHEMY
    if "django" in packages:
        from duly.frameworks.django.join import JOIN as DJANGO

        return DJANGO
    if packages & _DBAPI:
        from duly.frameworks.dbapi import JOIN as DBAPI

        return DBAPI
    raise NotInTransactionError(
        f"{kind.__module__}.{kind.__qualname__} is no session or connection",
        code="NOT_A_TRANSACTION",
    )


def watch_transactions() -> Callable[[float], float]:
    """Note from now on when transactions begin; gives what tells for how many seconds the one
    around a call is open, 0 without one. It takes when the call began, by time.monotonic.
    """
    from duly.frameworks import opened
    from duly.frameworks.sqlalchemy import watch

    opened.watch()
    watch.watch()

    def open_seconds(began: float) -> float:
        if "django.db" in sys.modules:
            from duly.frameworks.django.opened import note_blocks

            note_blocks(began)
        return opened.open_seconds()

    return open_seconds
