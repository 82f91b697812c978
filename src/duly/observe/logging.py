"""Facts as log records of the standard library.

Owns the logger, the level and the text of every fact.  The invariant: the fields of a fact are what
a record says, in its text and as ``extra`` attributes, and nothing else - a fact has no payload to
leak.  Configures nothing: handlers, formats and levels are the user's; the loggers are called
``duly.publish``, ``duly.relay``, ``duly.consume``, ``duly.effects``, ``duly.calls``,
``duly.operator``, ``duly.cdc``, ``duly.batch``, ``duly.background`` and ``duly.runtime``.  What
happens per batch of messages in a healthy run is DEBUG.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

from duly.observe import facts
from duly.observe.facts import Fact

__all__ = ["log_fact"]


class _Line(NamedTuple):
    logger: logging.Logger
    level: int


def _line(name: str, level: int) -> _Line:
    return _Line(logging.getLogger(f"duly.{name}"), level)


_LINES: dict[type[Fact], _Line] = {
    facts.Published: _line("publish", logging.DEBUG),
    facts.AfterCommitFailed: _line("publish", logging.ERROR),
    facts.Relayed: _line("relay", logging.DEBUG),
    facts.SendFailed: _line("relay", logging.WARNING),
    facts.Unrouted: _line("relay", logging.INFO),
    facts.DroppedByPolicy: _line("relay", logging.WARNING),
    facts.Held: _line("relay", logging.WARNING),
    facts.Failed: _line("relay", logging.ERROR),
    facts.Received: _line("consume", logging.DEBUG),
    facts.Handled: _line("consume", logging.DEBUG),
    facts.Duplicate: _line("consume", logging.INFO),
    facts.Skipped: _line("consume", logging.DEBUG),
    facts.HandlerFailed: _line("consume", logging.WARNING),
    facts.EffectCalled: _line("effects", logging.DEBUG),
    facts.EffectReused: _line("effects", logging.INFO),
    facts.EffectInDoubt: _line("effects", logging.WARNING),
    facts.Called: _line("calls", logging.DEBUG),
    facts.CallFailed: _line("calls", logging.INFO),
    facts.CallDeferred: _line("calls", logging.INFO),
    facts.BreakerMoved: _line("calls", logging.WARNING),
    facts.CallInTransaction: _line("calls", logging.WARNING),
    facts.OperatorActed: _line("operator", logging.INFO),
    facts.StillStuck: _line("runtime", logging.ERROR),
    facts.HistoryLost: _line("runtime", logging.ERROR),
    facts.Captured: _line("cdc", logging.DEBUG),
    facts.CaptureStopped: _line("cdc", logging.ERROR),
    facts.CaptureLagged: _line("cdc", logging.DEBUG),
    facts.GlobalTransactionRecovered: _line("twophase", logging.DEBUG),  # told where it happens
    facts.BatchScheduled: _line("batch", logging.INFO),
    facts.BatchBegan: _line("batch", logging.INFO),
    facts.BatchProgressed: _line("batch", logging.INFO),
    facts.BatchStepEnded: _line("batch", logging.INFO),
    facts.BatchEnded: _line("batch", logging.INFO),
    facts.TaskRan: _line("background", logging.DEBUG),
    facts.TaskFailed: _line("background", logging.INFO),
    facts.TaskNotQueued: _line("background", logging.WARNING),
    facts.TaskOverdue: _line("background", logging.DEBUG),
    facts.LeaseTaken: _line("runtime", logging.DEBUG),
    facts.LeaseLost: _line("runtime", logging.WARNING),
    facts.Connected: _line("runtime", logging.INFO),
    facts.Disconnected: _line("runtime", logging.WARNING),
}
_OTHER = _line("runtime", logging.INFO)
_CONSUME = logging.getLogger("duly.consume")


def log_fact(fact: Fact) -> None:
    """A hook: write the fact to its logger. Add it with ``hooks.add(log_fact)``."""
    logger, level = _LINES.get(type(fact), _OTHER)
    if getattr(fact, "box", "") == "inbox" and logger.name == "duly.relay":
        logger = _CONSUME  # facts that both boxes state
    if not logger.isEnabledFor(level):
        return
    values = {name: getattr(fact, name) for name in fact.__struct_fields__}
    text = " ".join(f"{name}={_shown(value)}" for name, value in values.items())
    logger.log(level, "%s %s", fact.name, text, extra={"fact": fact.name, **values})


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, tuple):
        return ",".join(_shown(item) for item in value)
    text = str(value)
    # Quoted and escaped where it could be taken for something else, or could turn a terminal.
    return (
        text if text.isascii() and text.isprintable() and " " not in text and text else ascii(text)
    )
