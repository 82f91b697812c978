"""What the demo's processes are told when they start.

The settings come as one line on standard input, not as arguments or variables: a database URL may
hold a password, and a ``DULY_`` variable that is no setting would be refused.  The open pipe also
is the life line: when the driver is gone, reading it ends, and so does the child.
"""

from __future__ import annotations

from typing import TextIO

import msgspec

__all__ = ["Setup", "live_part", "read_setup"]

_LIVE_FLIGHTS_MOST = 600


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """database, broker: URLs. gateway_port: on the loopback interface. flights: how many, None for
    the year. kill_at_effect: the worker kills itself between the call and the record of its n-th
    effect; 0 for never.
    """

    database: str
    broker: str
    gateway_port: int
    seed: int
    flights: int | None = None
    kill_at_effect: int = 0

    def line(self) -> str:
        """As it is written to a child."""
        return msgspec.json.encode(self).decode() + "\n"


def read_setup(stream: TextIO) -> Setup:
    """The first line of a child's standard input."""
    return msgspec.json.decode(stream.readline(), type=Setup)


def live_part(flights: int) -> int:
    """How many flights at the end are written at a steady pace, to measure latencies by."""
    return min(flights // 10, _LIVE_FLIGHTS_MOST)
