"""What has been read from a source and not been stored.

Owns the bound between the reader, which is as fast as the source, and the writer, which is as fast
as the database.  The invariant: no more than ``changes_max`` changes wait here, but for one item
that is larger by itself; whoever reads on waits until the writer has taken enough.
"""

from __future__ import annotations

import asyncio
from collections import deque

from duly.kernel.changes import SnapshotChunk, Transaction

__all__ = ["Intake", "Item", "position_of", "weight_of"]

Item = Transaction | SnapshotChunk | str


class Intake:
    """A buffer between two tasks of one loop. changes_max: how many changes it holds."""

    def __init__(self, *, changes_max: int) -> None:
        self._items: deque[Item] = deque()
        self._max, self._weight = changes_max, 0
        self._changed = asyncio.Condition()

    async def put(self, item: Item) -> None:
        """Add an item; waits while there is too much."""
        weight = weight_of(item)
        async with self._changed:
            await self._changed.wait_for(
                lambda: not self._items or self._weight + weight <= self._max
            )
            self._items.append(item)
            self._weight += weight
            self._changed.notify_all()

    async def take(self, *, changes_max: int, timeout_seconds: float) -> list[Item]:
        """What is there, in order, up to ``changes_max`` changes or one larger item; nothing when
        nothing came in time.
        """
        async with self._changed:
            try:
                async with asyncio.timeout(timeout_seconds):
                    await self._changed.wait_for(lambda: bool(self._items))
            except TimeoutError:
                return []
            taken: list[Item] = []
            room = changes_max
            while self._items and (not taken or weight_of(self._items[0]) <= room):
                item = self._items.popleft()
                room -= weight_of(item)
                self._weight -= weight_of(item)
                taken.append(item)
            self._changed.notify_all()
            return taken


def weight_of(item: Item) -> int:
    """How many changes it is, at least one."""
    if isinstance(item, Transaction):
        return max(1, len(item.changes))
    return 1 if isinstance(item, str) else max(1, len(item.rows))


def position_of(item: Item) -> str:
    """Where to go on behind it."""
    if isinstance(item, Transaction):
        return item.commit
    return item if isinstance(item, str) else item.position
