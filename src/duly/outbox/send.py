"""One publish to the broker, seen by whoever traces.

Owns the span around it and nothing else: whoever sends - the relay, the sender of unstored
messages, the retrier of the failure log - calls this instead of ``Broker.publish`` and gets the
same outcomes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from duly.message import Message
from duly.observe import tracing
from duly.ports import Outcome, OutcomeKind

__all__ = ["Send", "send"]

_FINE = (OutcomeKind.CONFIRMED, OutcomeKind.UNROUTED)


class Send(Protocol):
    """How messages are sent: ``Broker.publish``."""

    async def __call__(
        self, messages: Sequence[Message], *, deadline_seconds: float
    ) -> Sequence[Outcome]:
        """One outcome per message, in order."""
        ...


async def send(
    publish: Send, messages: Sequence[Message], *, deadline_seconds: float
) -> Sequence[Outcome]:
    """``Broker.publish`` in a span of its own where spans are collected."""
    if not messages or not tracing.collecting():
        return await publish(messages, deadline_seconds=deadline_seconds)
    with tracing.sending(messages) as failed:
        outcomes = await publish(messages, deadline_seconds=deadline_seconds)
        for outcome in outcomes:
            if outcome.kind not in _FINE:
                failed(outcome.kind.name)
                break
    return outcomes
