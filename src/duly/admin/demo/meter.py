"""How far everybody is, read from outside while it runs.

Owns some sums and counts, asked on a connection of its own with plain SQL; nothing is kept
between two looks, so what is shown is what is committed.
"""

from __future__ import annotations

from types import TracebackType
from typing import NamedTuple, Self

from sqlalchemy import text
from sqlalchemy.engine import Engine

__all__ = ["Counts", "Meter"]

_COUNTS = text("""
    SELECT (SELECT COALESCE(SUM(flights), 0) FROM duly_demo_destinations),
        (SELECT COALESCE(SUM(flights), 0) FROM duly_demo_carrier_days),
        (SELECT COUNT(*) FROM duly_demo_notices)
""")
_BEHIND = text("""
    SELECT (SELECT COUNT(*) FROM duly_demo_flights),
        (SELECT COALESCE(SUM(flights), 0) FROM duly_demo_destinations),
        (SELECT COALESCE(SUM(flights), 0) FROM duly_demo_carrier_days)
""")
_EFFECTS = text("SELECT COUNT(*) FROM duly_demo_effect WHERE state = 'done'")
_HANDLED = text("SELECT COUNT(*) FROM duly_demo_inbox WHERE status = 'done'")


class Counts(NamedTuple):
    """What is committed: flights by the airline, by each projection, and flights told about."""

    written: int = 0
    destinations: int = 0
    carriers: int = 0
    told: int = 0


class Meter:
    """Looks at the tables of the consumers; use as a context manager."""

    def __init__(self, engine: Engine) -> None:
        self._connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")

    def counts(self, written: int) -> Counts:
        """How far the consumers are; written: what the airline has said of itself."""
        destinations, carriers, told = self._connection.execute(_COUNTS).one()
        return Counts(written, int(destinations), int(carriers), int(told))

    def behind(self) -> int:
        """How many flights are committed that one of the projections does not have yet. Asks the
        airline's table: what the airline says of itself comes now and then, and may be old.
        """
        written, *handled = map(int, self._connection.execute(_BEHIND).one())
        return written - min(handled)

    def effects(self) -> int:
        """How many gateway calls are recorded with their result."""
        return int(self._connection.execute(_EFFECTS).scalar_one())

    def handled(self) -> int:
        """How many messages handlers are done with."""
        return int(self._connection.execute(_HANDLED).scalar_one())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connection.close()
