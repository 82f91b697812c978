"""What the demo's processes are told when they start.

The settings come as one line on standard input, not as arguments or variables: a database URL may
hold a password, and a ``DULY_`` variable that is no setting would be refused.  The open pipe also
is the life line: when the driver is gone, reading it ends, and so does the child.
"""

from __future__ import annotations

from typing import TextIO

import msgspec

__all__ = ["STAGES", "Setup", "read_setup", "stages"]

STAGES = 3
_LIVE_FLIGHTS_MOST = 200


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """database, broker: URLs. gateway_port: on the loopback interface. flights: how many were
    asked for, None for the year. total: how many there are.
    """

    database: str
    broker: str
    gateway_port: int
    seed: int
    flights: int | None = None
    total: int

    def line(self) -> str:
        """As it is written to a child."""
        return msgspec.json.encode(self).decode() + "\n"


def read_setup(stream: TextIO) -> Setup:
    """The first line of a child's standard input."""
    return msgspec.json.decode(stream.readline(), type=Setup)


def stages(flights: int) -> tuple[int, int, int]:
    """How many flights the airline writes before each time it waits for a word of the driver: one
    half for each kill, and the last ones at a steady pace, to measure latencies by.
    """
    live = min(flights // 10, _LIVE_FLIGHTS_MOST)
    first = (flights - live) // 2
    return first, flights - live - first, live
