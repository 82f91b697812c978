"""One row: its sides measured in turns, and the figures that come of it.

Invariant: every repeat measures ours, the reference and the raw client one after the other, in an
order that is turned round each time, so that what else the machine does falls on all of them; the
ratio is the median of the ratios of these pairs, never a ratio of figures from different times.  A
row that needs more than its share of the time is repeated less often, never measured on less.  A
reference that does not reach its stated share of the raw client makes the row void.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

__all__ = ["Measured", "Row", "Sample", "Scale", "Sides", "measure"]

REPEATS = 5
REPEATS_LEAST = 3


class Sample(NamedTuple):
    """One measurement. facts: settings read back from the servers, and counts."""

    figure: float
    facts: Mapping[str, Any] = {}


Side = Callable[[], Sample]


class Sides(NamedTuple):
    """What a row measures. share_least: of the raw client, what the reference must reach.

    void: why there is nothing to compare with; then ours is measured once.
    """

    ours: Side
    reference: Side | None = None
    raw: Side | None = None
    share_least: float = 0.0
    void: str = ""


class Scale(NamedTuple):
    """How much is loaded: 1.0 is the real thing, less is for trying the harness itself."""

    factor: float = 1.0

    def of(self, count: int, *, least: int = 1) -> int:
        """That many, scaled."""
        return max(least, round(count * self.factor))


class Row(NamedTuple):
    """A row as it is declared. unit: of the figure. falls: whether a smaller figure is better.

    open: prepares the load and gives the sides; whatever it made is gone when its block ends.
    repeats_least: how often it is measured however long that takes.
    """

    name: str
    unit: str
    reference: str
    open: Callable[[Scale], AbstractContextManager[Sides]]
    falls: bool = False
    repeats_least: int = REPEATS_LEAST


@dataclass
class Measured:
    """What came of a row. void: why it does not count, empty when it does."""

    row: Row
    ours: list[Sample] = field(default_factory=list)
    reference: list[Sample] = field(default_factory=list)
    raw: list[Sample] = field(default_factory=list)
    share_least: float = 0.0
    void: str = ""

    @property
    def figure(self) -> float:
        """The median of ours."""
        return _median(self.ours)

    @property
    def reference_figure(self) -> float | None:
        """The median of the reference."""
        return _median(self.reference) if self.reference else None

    @property
    def raw_figure(self) -> float | None:
        """The median of the raw client."""
        return _median(self.raw) if self.raw else None

    @property
    def ratio(self) -> float | None:
        """Ours to the reference: the median over the pairs."""
        return _ratio(self.ours, self.reference)

    @property
    def share(self) -> float | None:
        """How near the reference comes to the raw client; 1 is as good."""
        over, under = (self.raw, self.reference) if self.row.falls else (self.reference, self.raw)
        return _ratio(over, under)

    @property
    def spread(self) -> float:
        """The width of ours, as a part of its median."""
        figures = [sample.figure for sample in self.ours]
        return (max(figures) - min(figures)) / self.figure if self.figure else 0.0


def measure(
    row: Row,
    *,
    repeats: int = REPEATS,
    scale: Scale,
    told: Callable[[str], None],
    seconds: float = math.inf,
) -> Measured:
    """Measure a row. told: hears of every repeat. seconds: no repeat is begun, past the least, that
    would end later. Raises what its sides raise.
    """
    found, began = Measured(row), time.monotonic()
    with row.open(scale) as sides:
        found.share_least, found.void = sides.share_least, sides.void
        turns = [
            (kind, side, into)
            for kind, side, into in (
                ("raw", sides.raw, found.raw),
                ("reference", sides.reference, found.reference),
                ("ours", sides.ours, found.ours),
            )
            if side is not None
        ]
        for number in range(1 if sides.void else repeats):
            for _, side, into in turns if number % 2 == 0 else turns[::-1]:
                into.append(side())
            figures = ", ".join(f"{kind} {into[-1].figure:,.3g}" for kind, _, into in turns)
            told(f"{row.name}  {number + 1}/{repeats}  {figures} {row.unit}")
            spent = time.monotonic() - began
            if number + 1 >= row.repeats_least and spent * (number + 2) / (number + 1) > seconds:
                break
    share = found.share
    whole = scale.factor >= 1.0  # a trial of the harness is too short to judge anybody by
    if whole and share is not None and share < found.share_least:
        found.void = f"the reference reaches {share:.2f} of the raw client, not {found.share_least}"
    return found


def _median(samples: list[Sample]) -> float:
    return median(sample.figure for sample in samples)


def _ratio(over: list[Sample], under: list[Sample]) -> float | None:
    pairs = [a.figure / b.figure for a, b in zip(over, under, strict=False) if b.figure]
    return median(pairs) if pairs else None
