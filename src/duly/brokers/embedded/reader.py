"""One subscription's reading: its sources, what is under way, and how far each is done.

Invariant: the position stored for a source never passes a delivery that is not acked (a contiguous
watermark), and at most ``prefetch`` deliveries are under way. A source that is to be given up is
read no further; it goes when the last delivery under way has come back. Runs in the engine's thread
only; leaves out when it is called (``engine``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import attrgetter

import msgspec

from duly.brokers.embedded import claims
from duly.brokers.embedded.claims import Claimed, Member
from duly.brokers.embedded.log import Log, Moved
from duly.brokers.embedded.store import PARTITIONS
from duly.kernel.watermark import Watermark
from duly.message import Message
from duly.ports import Delivery

__all__ = ["Held", "Reader", "Token"]

RELEASE_PAUSE_SECONDS = 1.0
# How many messages after a crash are marked as redelivered. A message that ends its process is the
# first one without an ack sooner or later, however many were under way beside it.
DOUBTFUL = 100


class Token(msgspec.Struct, frozen=True, gc=False):
    """A message under way: its source and its offset there."""

    held: Held
    offset: int


_held = attrgetter("held")


class Held:
    """A source under lease. until: when the lease ends by our own clock; 0 when it is lost or given
    up.
    """

    __slots__ = (
        "claimed",
        "cursor",
        "doubtful_to",
        "end",
        "giving_up",
        "mark",
        "name",
        "ready",
        "released",
        "stored",
        "until",
    )

    def __init__(self, claimed: Claimed, *, name: str, until: float) -> None:
        self.claimed = claimed
        self.name = name
        self.until = until
        self.cursor = self.end = self.stored = claimed.position
        self.doubtful_to = claimed.position + DOUBTFUL * claimed.orphaned
        self.mark = Watermark(claimed.position)
        self.ready: deque[Delivery] = deque()
        self.released: set[int] = set()
        self.giving_up = False

    def take(self, log: Log, count: int) -> list[Delivery]:
        """Up to ``count`` next deliveries."""
        if len(self.ready) < count and self.cursor < self.end:
            for chunk in log.read(
                self.claimed.source, after=self.cursor, count=count - len(self.ready)
            ):
                skip = max(0, self.cursor + 1 - chunk.first)
                self.ready.extend(self._delivered(chunk.messages[skip:], chunk.first + skip))
                self.cursor = chunk.first + len(chunk.messages) - 1
        pop = self.ready.popleft
        taken = [pop() for _ in range(min(count, len(self.ready)))]
        self.mark.enter_all([delivery.token.offset for delivery in taken])
        return taken

    def _delivered(self, messages: Sequence[Message], first: int) -> list[Delivery]:
        name, doubtful_to = self.name, self.doubtful_to
        return [
            Delivery(message, Token(self, offset), name, str(offset), offset <= doubtful_to)
            for offset, message in enumerate(messages, first)
        ]

    @property
    def hungry(self) -> bool:
        """Whether there is more to give out."""
        return not self.giving_up and (bool(self.ready) or self.cursor < self.end)

    @property
    def at_rest(self) -> bool:
        """Whether it is to be given up and nothing of it is being worked on."""
        return self.giving_up and self.mark.unsettled <= len(self.released)


class Reader:
    """What one subscription reads. topics: number, group and name of each topic."""

    def __init__(
        self, holder: str, topics: Sequence[tuple[int, str, str]], *, prefetch: int, ttl: float
    ) -> None:
        self.member = Member(holder, tuple((number, group) for number, group, _ in topics))
        self._names = {number: name for number, _, name in topics}
        self._prefetch = prefetch
        self._ttl_seconds = ttl
        self._held: dict[tuple[int, str], Held] = {}
        self._turn = 0
        self._under_way = 0
        self._paused_until = 0.0
        self._leaving = False

    # --- leases -----------------------------------------------------------------------------------
    def renew(self, log: Log, now: float) -> None:
        """Prolong what is held; what was lost meanwhile is dropped."""
        held = list(self._held.values())
        member = self.member if now >= self._paused_until else Member(self.member.holder, ())
        lost = claims.renew(
            log, member, [h.claimed for h in held], now=now, ttl_seconds=self._ttl_seconds
        )
        self._drop(lost)
        for h in self._held.values():
            h.until = now + self._ttl_seconds

    def rebalance(self, log: Log, now: float) -> None:
        """Move towards the fair share: take what is free, begin to give up what is too much."""
        if now < self._paused_until:
            return
        for h in self._held.values():
            h.giving_up = bool(h.released)  # else only for a share that may have changed since
        held = [h.claimed for h in self._held.values()]
        taken, above = claims.claim(log, self.member, held, now=now, ttl_seconds=self._ttl_seconds)
        for c in taken:
            topic, partition = divmod(c.source, PARTITIONS)
            name = f"{self._names[topic]}/{partition}"
            self._held[c.source, c.group] = Held(c, name=name, until=now + self._ttl_seconds)
        for key, count in above.items():
            mine = [
                h
                for h in self._held.values()
                if (h.claimed.source // PARTITIONS, h.claimed.group) == key
            ]
            mine.sort(key=lambda h: (not h.giving_up, h.mark.unsettled))  # idle ones can go at once
            for h in mine[:count]:
                h.giving_up = True
        if taken:
            self.look(log)

    def look(self, log: Log) -> None:
        """See how far the sources reach by now."""
        if self._held:
            ends = log.ends([source for source, _ in self._held])
            for (source, _), h in self._held.items():
                h.end = ends[source]

    # --- deliveries -------------------------------------------------------------------------------
    def fill(self, log: Log) -> list[Delivery]:
        """The next deliveries, spread over the sources; none while more than half of ``prefetch``
        is under way.
        """
        if self._under_way > self._prefetch // 2:
            return []
        room = self._prefetch - self._under_way
        hungry = [h for h in self._held.values() if h.hungry]
        batch: list[Delivery] = []
        while hungry and room > len(batch):
            each = max(1, (room - len(batch)) // len(hungry))
            self._turn += 1
            for i in range(len(hungry)):
                count = min(each, room - len(batch))
                if count:
                    batch += hungry[(i + self._turn) % len(hungry)].take(log, count)
            hungry = [h for h in hungry if h.hungry]
        self._under_way += len(batch)
        return batch

    def ack(self, tokens: Iterable[Token]) -> None:
        """These are done; acks under a lost lease change nothing any more."""
        for held, mine in groupby(tokens, _held):
            if held.until:
                self._under_way -= held.mark.settle_all([token.offset for token in mine])

    def release(self, tokens: Sequence[Token], now: float) -> None:
        """These are not done: their sources go to others, who read on from the stored position.

        For a second we are no member, so that our share falls to the others.
        """
        for held in {token.held for token in tokens if token.held.until}:
            held.giving_up = True
        for token in tokens:
            token.held.released.add(token.offset)
        self._paused_until = now + RELEASE_PAUSE_SECONDS
        self._leaving = True

    # --- positions --------------------------------------------------------------------------------
    def flush(self, log: Log) -> None:
        """Store the positions that have moved, then give up the sources that are to go and have
        come to rest.
        """
        moved = [h for h in self._held.values() if h.mark.value > h.stored]
        if moved:
            rows = [
                Moved(h.claimed.source, h.claimed.group, h.claimed.token, h.mark.value)
                for h in moved
            ]
            lost = log.commit(rows)
            for h, row in zip(moved, rows, strict=True):
                h.stored = row.position
            self._drop(lost)
        if self._leaving:
            claims.leave(log, self.member)
            self._leaving = False
        going = [h for h in self._held.values() if h.at_rest]
        if going:
            claims.surrender(log, [h.claimed for h in going])
            self._drop([h.claimed for h in going])

    @property
    def unflushed(self) -> bool:
        """Whether ``flush`` has something to do."""
        return self._leaving or any(
            h.at_rest or h.mark.value > h.stored for h in self._held.values()
        )

    def close(self, log: Log) -> None:
        """Store positions, give everything up, leave the group."""
        for h in self._held.values():
            h.giving_up = True
        self.flush(log)
        rest = [h.claimed for h in self._held.values()]
        claims.surrender(log, rest)
        self._drop(rest)
        claims.leave(log, self.member)

    def forget(self) -> None:
        """The store was lost: everything held is void."""
        self._drop([h.claimed for h in self._held.values()])

    def _drop(self, lost: Iterable[Claimed | Moved]) -> None:
        for c in lost:
            h = self._held.pop((c.source, c.group))
            self._under_way -= h.mark.unsettled
            h.until = 0.0
