"""From which id to read, so that rows that were settled long ago are not looked at again and again.

State per row is the truth, ids are only speed.  While somebody holds an old snapshot open, deleted
rows stay in the index and every read from the beginning walks over them.  Two marks keep reads
short:

* the *cursor*, the highest id read so far, for the next read in a row;
* the *floor*, below which no ready row can appear any more.  Ids are handed out before commit, so a
  row may become visible below the cursor: reads go back to the floor regularly, and the floor only
  moves over ids that were already visible when the oldest writer of today had not yet begun, and
  that are older than a margin (an id is drawn a moment before its transaction is known to the
  server).

Both are ignored at take-over and on every sweep, which reads from the beginning.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Floor"]

MARGIN_SECONDS = 5.0


class _Candidate(NamedTuple):
    """An id that was the highest one read, the next transaction number at that time, and when that
    was.
    """

    id: int
    next_writer: int
    at: float


class Floor:
    """The cursor and floor of one lane reader. Pure: told what was read, asked where to read."""

    def __init__(self) -> None:
        self.cursor = 0
        self.floor = 0
        self._candidate: _Candidate | None = None

    def read(self, highest: int) -> None:
        """A read came as far as this id."""
        self.cursor = max(self.cursor, highest)

    def rewind(self) -> None:
        """The next read starts from the floor."""
        self.cursor = self.floor

    def reset(self) -> None:
        """The next read starts from the beginning."""
        self.cursor = self.floor = 0
        self._candidate = None

    def observe(
        self,
        oldest_writer: int,
        next_writer: int,
        *,
        now: float,
        reached: int | None,
        lowest_busy: int | None,
    ) -> None:
        """Called right after a read from the floor, with the writers as they were before it.

        reached: how far the read came, None for to the end. lowest_busy: the lowest id in memory
        that is not settled; the floor stays below it.
        """
        candidate = self._candidate
        if candidate is None or (reached is not None and reached < candidate.id):
            self._candidate = candidate or _Candidate(self.cursor, next_writer, now)
        elif oldest_writer >= candidate.next_writer and now - candidate.at >= MARGIN_SECONDS:
            bound = candidate.id if lowest_busy is None else min(candidate.id, lowest_busy - 1)
            self.floor = max(self.floor, bound)
            self._candidate = _Candidate(self.cursor, next_writer, now)
