"""What a subscription reads under one group name: its streams, its own name, and what is told.

Owns how a lost group is made anew, for both threads of a subscription. Invariant: a group that was
there and is gone begins at the oldest entry again - what is in the stream then was written after
the loss, or was read by somebody whose record went with the group - and the loss is told once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from redis import exceptions

from duly.brokers.redis.link import Link, raised
from duly.brokers.redis.settings import Settings
from duly.brokers.redis.topology import make_group
from duly.ports import Loss

__all__ = ["Arrived", "Lane", "Source", "Tell"]

Tell = Callable[[Loss], None]
_GONE = ("NOGROUP", "UNBLOCKED")


class Source(NamedTuple):
    """A stream. number: in the subscription. lease: the key of the lease, of an ordered group."""

    number: int
    stream: str
    lease: str


class Arrived(NamedTuple):
    """An entry as it came. again: it was delivered before. epoch: in which it was read."""

    source: int
    id: bytes
    fields: Sequence[bytes]
    again: bool
    epoch: int


@dataclass(frozen=True, slots=True)
class Lane:
    """group: of the streams. consumer: our name there. tell: of a loss."""

    settings: Settings
    group: str
    consumer: str
    ordered: bool
    sources: Sequence[Source]
    tell: Tell

    def answer(self, link: Link, answer: Any) -> Any:
        """``answer``, raised as one of ours when it is an error; None when the group was gone and
        has been made anew.
        """
        if isinstance(answer, exceptions.ResponseError) and str(answer).startswith(_GONE):
            self.restore(link)
            return None
        return raised(link, answer)

    def restore(self, link: Link) -> None:
        """Make the groups that are gone."""
        for source in self.sources:
            if make_group(link, source.stream, self.group, start="0"):
                self.tell(Loss(source.stream, self.group, None))

    def lost(self, source: Source, count: int) -> None:
        """Tell of entries that somebody deleted before they were done."""
        if count:
            self.tell(Loss(source.stream, self.group, count))
