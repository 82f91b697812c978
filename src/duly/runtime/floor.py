"""From which id to read, so that rows that were settled long ago are not looked at again and again.

State per row is the truth, ids are only speed.  While somebody holds an old snapshot open, deleted
rows stay in the index and every read from the beginning walks over them.  So reads begin at the
*floor*, below which no ready row can appear any more.

Ids are handed out before the commit, so a row may become visible far below the highest id that was
read - and it must be read before a later row of its key.  "The highest id read" is therefore no
place to begin at, not even for a moment.  The floor moves up to an id that was seen, once

* no flush of keyed messages is under way any more that was under way when (or before) that id was
  seen: a flush holds the lock of its stripes from before it draws its ids until its commit, and
* the transactions of that time have ended, or ``MARGIN_SECONDS`` are over: messages without a key
  take no lock, and a foreign transaction that writes for hours must not hold up everybody.  One of
  them that comes even later is found by the next sweep, which reads from the beginning.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Floor", "Writers"]

MARGIN_SECONDS = 5.0


class Writers(NamedTuple):
    """Who was writing at some moment. flushes: transactions with stripe locks. oldest: the lowest
    number of a running transaction; following: a number above all that were given out.
    """

    flushes: frozenset[str]
    oldest: int
    following: int


class _Candidate(NamedTuple):
    id: int
    writers: Writers
    at: float


class Floor:
    """The floor of one lane reader. Pure: told what was read, asked where to begin."""

    def __init__(self) -> None:
        self._floor = self._highest = 0
        self._whole = True
        self._candidate: _Candidate | None = None

    @property
    def after(self) -> int:
        """The next read begins above this id."""
        return 0 if self._whole else self._floor

    def reset(self) -> None:
        """The next read begins at the beginning."""
        self._whole = True

    def lower(self, id_: int) -> None:
        """A row with this id went back to its table."""
        self._floor = min(self._floor, id_ - 1)

    def forget(self) -> None:
        """Other lanes are read from now on: what is known is void."""
        self.__init__()  # type: ignore[misc]

    def read(
        self,
        highest: int | None,
        writers: Writers | None,
        *,
        complete: bool,
        lowest_busy: int | None,
        now: float,
    ) -> None:
        """A read from ``after`` has come as far as ``highest`` (None: it found nothing).

        writers: as they were before the read, None where nobody asked. complete: to the end.
        lowest_busy: the lowest id in memory that is not settled.
        """
        reached = float("inf") if complete else float(highest or 0)
        self._whole = self._whole and reached < self._floor
        candidate = self._candidate
        if writers is not None:
            if candidate is None:
                self._candidate = _Candidate(self._highest, writers, now)
            elif reached >= candidate.id and _has_passed(candidate, writers, now):
                bound = candidate.id if lowest_busy is None else min(candidate.id, lowest_busy - 1)
                self._floor = max(self._floor, bound)
                self._candidate = None
        self._highest = max(self._highest, highest or 0)


def _has_passed(candidate: _Candidate, writers: Writers, now: float) -> bool:
    if candidate.writers.flushes & writers.flushes:
        return False
    return writers.oldest >= candidate.writers.following or now - candidate.at >= MARGIN_SECONDS
