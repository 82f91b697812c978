"""The contiguous watermark: how far everything is done.

Positions enter in growing order (gaps are fine) and settle in any order.  The value is the highest
position entered with nothing unsettled at or below it - never the highest settled, never the last
one called back.  It may therefore be stored at any moment: after a crash, reading on from it
repeats work but skips none.

Memory holds the unsettled positions only, each with the position that entered before it; one that
stays unsettled forever costs one entry however many settle behind it.  How many are unsettled at
once is bounded by the caller.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

__all__ = ["Watermark"]


class Watermark:
    """Tracks one stream of positions. start: up to where everything was done already."""

    __slots__ = ("_highest", "_unsettled")

    def __init__(self, start: int) -> None:
        self._highest = start
        # Not a plain dict: finding its oldest entry slows down as entries before it go.
        self._unsettled: OrderedDict[int, int] = OrderedDict()

    @property
    def value(self) -> int:
        """The position up to which everything is settled; it never goes back."""
        for before in self._unsettled.values():
            return before
        return self._highest

    @property
    def unsettled(self) -> int:
        """How many positions have entered and not settled."""
        return len(self._unsettled)

    def enter(self, position: int) -> None:
        """A position was given out. Raises ValueError when it is not above every position before
        it.
        """
        if position <= self._highest:
            raise ValueError(f"position {position} entered after {self._highest}")
        self._unsettled[position] = self._highest
        self._highest = position

    def enter_all(self, positions: Iterable[int]) -> None:
        """Positions were given out, in this order. Raises ValueError at the first that is not above
        every position before it; those in front of it have entered.
        """
        unsettled, highest = self._unsettled, self._highest
        try:
            for position in positions:
                if position <= highest:
                    raise ValueError(f"position {position} entered after {highest}")
                unsettled[position] = highest
                highest = position
        finally:
            self._highest = highest

    def settle(self, position: int) -> bool:
        """A position is done; False when there was nothing to settle.

        Idempotence: settling twice, or a position inside a gap, changes nothing and gives False.
        Raises ValueError for a position above all that have entered: it was never given out.
        """
        if position > self._highest:
            raise ValueError(f"position {position} settled, but only {self._highest} has entered")
        return self._unsettled.pop(position, None) is not None

    def settle_all(self, positions: Sequence[int]) -> int:
        """Positions are done; how many of them were unsettled.

        Idempotence: as ``settle``. Raises ValueError, and settles none, for a position above all
        that have entered.
        """
        if positions and max(positions) > self._highest:
            raise ValueError(
                f"position {max(positions)} settled, but only {self._highest} has entered"
            )
        before, pop = len(self._unsettled), self._unsettled.pop
        for position in positions:
            pop(position, None)
        return before - len(self._unsettled)
