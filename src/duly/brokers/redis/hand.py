"""What one subscription has in its hands: read, and neither acknowledged nor given back.

Invariants: an entry is in the hand once, however often it is claimed, and is handed out once; at
most ``prefetch`` entries are in it; one is handed out only while nobody else can have taken it -
until then by our own clock, and of an ordered source only in the epoch in which it was read, so
that nothing overtakes what was given back.  Thread-safe and free of I/O; when entries are read and
answered is decided by ``reader`` and ``keeper``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import NamedTuple

__all__ = ["Hand", "Token"]


class Token(NamedTuple):
    """An entry. source: the number of its stream in the subscription; id: its id there."""

    source: int
    id: bytes


class Hand:
    """sources: how many streams the subscription reads."""

    def __init__(self, sources: int, *, prefetch: int) -> None:
        self._prefetch = prefetch
        self._room = threading.Condition()
        self._until: dict[Token, float] = {}
        self._given: set[Token] = set()
        self._epochs = [0] * sources
        self._held_until = [float("inf")] * sources

    # --- room -------------------------------------------------------------------------------------
    @property
    def room(self) -> int:
        """How many more may be taken."""
        return self._prefetch - len(self._until)

    def wait_for_room(self, timeout_seconds: float) -> int:
        """Wait until a good part of it is empty, at most so long; gives how much room there is.

        To read as soon as there is room for one would read them one by one.
        """
        with self._room:
            self._room.wait_for(lambda: 4 * self.room >= self._prefetch, timeout_seconds)
            return self.room

    # --- in and out -------------------------------------------------------------------------------
    def take(self, source: int, ids: Iterable[bytes], *, until: float, epoch: int) -> set[bytes]:
        """Take what was read in an epoch; gives what was not in the hand. The rest is kept longer.

        Takes nothing when the epoch is over.
        """
        fresh: set[bytes] = set()
        with self._room:
            if epoch != self._epochs[source]:
                return fresh
            for one in ids:
                token = Token(source, one)
                if token not in self._until:
                    fresh.add(one)
                self._until[token] = until
        return fresh

    def give(self, token: Token, *, epoch: int, now: float) -> bool:
        """Hand an entry out, if that is still right; gives whether it is."""
        with self._room:
            until = self._until.get(token)
            if until is None or token in self._given or epoch != self._epochs[token.source]:
                return False
            if now >= until:
                self._forget([token])  # it can be claimed, by us as well
                return False
            if now >= self._held_until[token.source]:
                self._turn(token.source)
                return False
            self._given.add(token)
            return True

    def drop(self, tokens: Iterable[Token]) -> None:
        """They are done, or were given back."""
        with self._room:
            self._forget(tokens)

    def _forget(self, tokens: Iterable[Token]) -> None:
        for token in tokens:
            self._until.pop(token, None)
            self._given.discard(token)
        self._room.notify_all()

    # --- leases -----------------------------------------------------------------------------------
    def ids(self, source: int) -> list[bytes]:
        """What is in the hand, of one source."""
        with self._room:
            return [token.id for token in self._until if token.source == source]

    def renewed(
        self, source: int, *, asked: Sequence[bytes], kept: set[bytes], until: float
    ) -> int:
        """A heartbeat was answered: what was kept is ours for longer; gives how many were lost."""
        with self._room:
            for one in kept:
                if Token(source, one) in self._until:
                    self._until[Token(source, one)] = until
            gone = [Token(source, one) for one in asked if one not in kept]
            lost = [token for token in gone if token in self._until]
            self._forget(lost)
            return len(lost)

    def epoch(self, source: int) -> int:
        """The epoch of a source; it changes when an ordered source is lost or given up."""
        return self._epochs[source]

    def hold(self, source: int, until: float) -> None:
        """The lease on an ordered source runs until then by our own clock."""
        with self._room:
            self._held_until[source] = until

    def turn(self, source: int) -> None:
        """An ordered source is lost or given up: nothing that was read is handed out any more."""
        with self._room:
            self._turn(source)

    def _turn(self, source: int) -> None:
        self._epochs[source] += 1
        read = {token for token in self._until if token.source == source}
        self._forget(read - self._given)
