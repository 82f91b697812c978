"""Storing something of a run while a lease lasts.

The invariant: nothing is stored after the holder's own clock says that the lease is over; until
then a database that is away is waited for.  What is stored also names a token, which the database
compares: this only saves the asking.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar

from duly.errors import OutcomeUnknownError, RetryableError, StaleLeaseError
from duly.ports import Steps
from duly.runtime.connection import ConnectionThread

__all__ = ["store"]

AGAIN_SECONDS = 0.2
T = TypeVar("T")

_log = logging.getLogger("duly.batch")


async def store(
    connection: ConnectionThread,
    steps: Callable[[], Steps[T]],
    *,
    remaining_seconds: Callable[[], float],
    name: str,
) -> T:
    """Run steps that may be run again. remaining_seconds: of the lease. name: whose it is.

    Raises StaleLeaseError, and what the steps raise for good.
    """
    while True:
        if remaining_seconds() <= 0:
            raise StaleLeaseError(f"the lease of {name} is over")
        try:
            return await connection.run(steps)
        except (RetryableError, OutcomeUnknownError) as error:
            _log.warning("%s: %s; again", name, error, extra={"code": error.code})
            await asyncio.sleep(AGAIN_SECONDS)
