"""Notes every transaction that begins on a connection of SQLAlchemy, a session's or a plain one.

Owns the listener, on the class as ``sessions`` has its own.  An async engine's greenlets share the
context of their task.
"""

from __future__ import annotations

from functools import cache

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine

from duly.frameworks.opened import note

__all__ = ["watch"]


@cache
def watch() -> None:
    """Listen from now on, once per process."""
    event.listen(Engine, "begin", _begins)
    event.listen(Engine, "begin_twophase", _begins)


def _begins(connection: Connection, *_: object) -> None:
    note(connection, _is_open)


def _is_open(connection: Connection) -> bool:
    return not connection.closed and connection.in_transaction()
