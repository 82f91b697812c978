"""The branch of a broker: messages that its receivers get when everything is committed.

Owns what waits for the end of the user's work: until then nothing is said to the broker, so that a
block that lasts, or is left by an exception, costs it nothing.  ``aside`` runs what blocks away
from an event loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from duly.observe.facts import Unrouted
from duly.observe.hooks import Hooks
from duly.outbox.publish import PendingMessage
from duly.twophase.registry import Participant

__all__ = ["BrokerBranch"]


class BrokerBranch:
    """As ``LiveBranch``. entries: without a key. It settles after the branches of databases: late
    values are called when all work is flushed.
    """

    def __init__(
        self,
        participant: Participant,
        name: str,
        entries: Sequence[PendingMessage],
        *,
        aside: Callable[[Callable[[], Any]], Any],
        hooks: Hooks,
    ) -> None:
        self.participant, self.name = participant, name
        self._entries, self._aside, self._hooks = entries, aside, hooks
        self._live = participant.as_broker().branch(name)

    def settle(self) -> None:
        """Send the messages in the branch; events that nobody reads are counted."""
        for entry in self._entries:
            entry.resolve()
        messages = [entry.message for entry in self._entries]
        unrouted = self._aside(lambda: self._live.deliver(messages))
        for topic, count in Counter(message.topic for message in unrouted).items():
            self._hooks.emit(Unrouted(topic=topic, count=count))

    def mark(self) -> str:
        """None: a broker is asked by the branch's name."""
        return ""

    def prepare(self) -> None:
        """As ``LiveBranch``."""
        self._aside(self._live.prepare)

    def finish(self, *, commit: bool) -> None:
        """As ``LiveBranch``."""
        self._aside(lambda: self._live.finish(commit=commit))

    def release(self, *, clean: bool) -> None:
        """As ``LiveBranch``."""
        del clean  # the connection is nobody else's
        self._aside(self._live.close)
