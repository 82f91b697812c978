"""How long the transaction around the running code is open, whoever opened it.

Owns one context variable: the transactions that began in this thread or task.  The joins note what
they see - SQLAlchemy every begin of a connection; raw drivers, which tell nobody, the first message
on a connection, and ``atomic`` blocks of duly's; Django's ``atomic()`` whoever asks, as it is open
since before the call that he asks for.  The invariant: a transaction that has ended counts as none,
whoever ended it.  Leaves out a raw connection that duly has not been given.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple
from weakref import ref

__all__ = ["note", "open_seconds", "watch"]

_MAX = 8  # more than that are open at once in nobody's code


class _Begun(NamedTuple):
    place: ref[Any]
    is_open: Callable[[Any], bool]
    at: float


_begun: ContextVar[tuple[_Begun, ...]] = ContextVar("duly_begun", default=())
_watching = False


def watch() -> None:
    """Note from now on; for the life of the process."""
    global _watching  # one process has calls to watch, or none
    _watching = True


def note(place: Any, is_open: Callable[[Any], bool], *, at: float | None = None) -> None:
    """A transaction is open since now, or since it was noted. place: the connection or block, held
    weakly. is_open: whether it still is. at: since then, by time.monotonic.
    """
    if not _watching:
        return
    known = _still_open()
    if len(known) < _MAX and not any(one.place() is place for one in known):
        since = time.monotonic() if at is None else at
        known = (*known, _Begun(ref(place), is_open, since))
    _begun.set(known)


def open_seconds() -> float:
    """For how long; 0 where none is open."""
    if not _begun.get():
        return 0.0
    known = _still_open()
    _begun.set(known)
    return time.monotonic() - min(one.at for one in known) if known else 0.0


def _still_open() -> tuple[_Begun, ...]:
    known = _begun.get()
    return tuple(one for one in known if (place := one.place()) is not None and one.is_open(place))
