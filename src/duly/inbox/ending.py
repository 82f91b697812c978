"""How the handling of a message can end, and which error means which end.

Owns the table below.  The invariant: nothing a handler raises is lost, and nothing of its text is
kept - an error is stored as its code, or its class and the line that raised it, because texts of
errors quote data.

    raised                                    | end        | what follows
    ------------------------------------------+------------+-----------------------------------
    a signal of ours (the record says done)   | as it says | ack
    lost connection of ours, also in COMMIT   | AGAIN      | at once on a new one; the record
                                              |            | tells whether it was committed
    deadlock, lock timeout, serialization     | AGAIN      | at once, some times
    somebody else's live effect               | LATER      | stored, due soon, no attempt used
    effect in doubt or with other arguments   | HELD       | stored for a person
    PermanentError                            | FAILED     | stored, no more attempts
    everything else, SystemExit too           | RETRY      | stored with its due time
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from enum import Enum
from pathlib import PurePath
from typing import NamedTuple

from duly.errors import (
    DatabaseUnavailableError,
    DulyError,
    EffectArgumentsChangedError,
    OutcomeUnknownError,
    PermanentError,
    TransactionConflictError,
    error_code,
)

__all__ = ["DONE", "End", "Ended", "Ending", "all_done", "ending_of", "error_text"]

EFFECT_IN_DOUBT = "EFFECT_IN_DOUBT"
EFFECT_IS_LIVE = "EFFECT_IS_LIVE"


class End(Enum):
    """How it ended."""

    DONE = "done"
    DUPLICATE = "duplicate"  # handled before
    OWNED = "owned"  # its stored copy is unfinished and will be handled by itself
    BUSY = "busy"  # another message with the same business key is unfinished
    STALE = "stale"  # a stored row that somebody else owns now
    RETRY = "retry"
    FAILED = "failed"
    HELD = "held"
    LATER = "later"  # no attempt was used
    AGAIN = "again"  # rolled back through no fault of the handler


class Ending(NamedTuple):
    """end, and what to store: ``CODE: text`` without payloads. half: half of the work was committed
    by the handler. due_in_seconds: until the next attempt, of a RETRY that has one; 0.0 where that
    is not decided yet.
    """

    end: End
    error: str = ""
    half: bool = False
    due_in_seconds: float = 0.0


DONE = Ending(End.DONE)


class Ended(
    BaseException
):  # a signal, not an error: no `except Exception` of a handler may keep it
    """The handling of this message has ended before its handler has."""

    def __init__(self, ending: Ending) -> None:
        self.ending = ending
        super().__init__(ending.end.value)


def all_done(endings: Sequence[Ending]) -> bool:
    """Whether nothing has to be said of any message by itself: the usual case, told at once."""
    return endings.count(DONE) == len(endings)


def ending_of(error: BaseException, mapped: BaseException, *, connection_lost: bool) -> Ending:
    """The ending that an error means. mapped: it as one of ours, where the database knows it."""
    if isinstance(error, Ended):
        return error.ending
    if connection_lost and isinstance(mapped, DatabaseUnavailableError | OutcomeUnknownError):
        return Ending(End.AGAIN, error_text(mapped))
    if isinstance(mapped, TransactionConflictError):
        return Ending(End.AGAIN, error_text(mapped))
    if isinstance(error, DulyError) and error.code == EFFECT_IS_LIVE:
        return Ending(End.LATER, error_text(error))
    if isinstance(error, EffectArgumentsChangedError) or error_code(error) == EFFECT_IN_DOUBT:
        return Ending(End.HELD, error_text(error))
    if isinstance(error, PermanentError):
        return Ending(End.FAILED, error_text(error))
    return Ending(End.RETRY, error_text(error))


def error_text(error: BaseException) -> str:
    """The code or class of an error, and the file and line that raised it."""
    frames = traceback.extract_tb(error.__traceback__) if error.__traceback__ else []
    where = f"{PurePath(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    return f"{error_code(error)}: raised at {where}"
