"""Which rows may be under way at the same time.

Rows come in the order of their ids.  Rows without an order key are free.  Of rows with one, at most
one is under way: the next is let go when the one before it was *finished* (confirmed, or handed
over to whoever stores its failure).

    offer(row) --key idle---> runnable --take--> under way --finish--> the key's next is runnable
               --key in use-> waiting behind its key -----^

The invariant, per key: the rows taken are a prefix of the rows offered, one at a time.  Rows can be
dropped again while they wait, never while they are under way: ``forget`` gives back what it
dropped.  Bounded by what is offered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

__all__ = ["Waves"]

R = TypeVar("R")
K = Hashable


class Waves(Generic[R]):
    """The queue of one lane reader. key_of: the order key of a row, None for a free one."""

    def __init__(self, key_of: Callable[[R], K | None]) -> None:
        self._key_of = key_of
        self._runnable: deque[R] = deque()
        # A key is here while a row of it is runnable or under way; with those behind it, if any.
        self._waiting: dict[K, deque[R] | None] = {}
        self._queued = 0

    def __len__(self) -> int:
        """How many rows are queued: runnable or waiting, not those under way."""
        return self._queued

    def offer(self, rows: Iterable[R]) -> None:
        """Queue rows, in the order of their ids."""
        key_of, waiting, runnable = self._key_of, self._waiting, self._runnable
        for row in rows:
            self._queued += 1
            key = key_of(row)
            if key is None:
                runnable.append(row)
            elif key not in waiting:
                waiting[key] = None
                runnable.append(row)
            elif (behind := waiting[key]) is None:
                waiting[key] = deque((row,))
            else:
                behind.append(row)

    def take(self, most: int) -> list[R]:
        """Up to ``most`` rows that may go now; they are under way until ``finish``."""
        taken = [self._runnable.popleft() for _ in range(min(most, len(self._runnable)))]
        self._queued -= len(taken)
        return taken

    def finish(self, rows: Iterable[R]) -> None:
        """These rows are not under way any more; the next ones of their keys may go."""
        key_of = self._key_of
        for row in rows:
            key = key_of(row)
            if key is not None:
                self._advance(key)

    def forget(self, unwanted: Callable[[R], bool]) -> list[R]:
        """Drop queued rows and return them. What is under way stays, and keeps its key in use."""
        dropped: list[R] = []
        self._runnable = self._sift(self._runnable, unwanted, dropped)
        # Of a key only one row is runnable, and then none is under way: the next may go instead.
        bereft = [key for row in dropped if (key := self._key_of(row)) is not None]
        for key, behind in self._waiting.items():
            if behind is not None:
                self._waiting[key] = self._sift(behind, unwanted, dropped) or None
        self._queued -= len(dropped)
        for key in bereft:
            self._advance(key)
        return dropped

    def _advance(self, key: K) -> None:
        behind = self._waiting[key]
        if behind is None:
            del self._waiting[key]
            return
        self._runnable.append(behind.popleft())
        if not behind:
            self._waiting[key] = None

    @staticmethod
    def _sift(rows: deque[R], unwanted: Callable[[R], bool], dropped: list[R]) -> deque[R]:
        kept: deque[R] = deque()
        for row in rows:
            (dropped if unwanted(row) else kept).append(row)
        return kept
