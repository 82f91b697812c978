"""duly reading a slot: whole transactions, each change as JSON to a handler in memory.

Ends when so many changes came.  ``times`` keeps when each of them reached the handler.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import psycopg

from bench.ours.shop import arguments, tell
from duly.databases.postgres.changes import PostgresChanges
from duly.kernel.changes import ABSENT, Transaction
from duly.runtime.clock import SystemClock
from duly.sources import TableSpec

TABLE = TableSpec("public.orders")
CONFIRM_EVERY = 1000  # changes, as a stream of rules does


class Handler:
    """What a change ends at, as JSON text."""

    def __init__(self, *, times: bool) -> None:
        self.count = self.bytes = 0
        self.arrived: list[float] = []
        self._times = times

    def __call__(self, envelope: bytes) -> None:
        """Take one."""
        self.count += 1
        self.bytes += len(envelope)
        if self._times:
            self.arrived.append(time.monotonic())


def absent(value: Any) -> None:
    """What the log did not carry is null here, as the peer has it."""
    if value is not ABSENT:
        raise TypeError(type(value))


async def read(given: dict[str, Any], handle: Handler) -> tuple[float, float]:
    """Seconds that the changes behind the warm-up took, on the clock and of the processor."""
    source = PostgresChanges(given["database"], reader=given["reader"], clock=SystemClock())
    stream = await source.open([TABLE], position=await source.prepare([TABLE]), token=1)
    encode = msgspec.json.Encoder(enc_hook=absent).encode
    warm, last = given["warm"], given["warm"] + given["count"]
    began, worked, told = 0.0, 0.0, 0
    async with asyncio.timeout(given["seconds"]):
        async for item in stream.items():
            if isinstance(item, Transaction):
                for change in item:
                    handle(encode(change))
                if handle.count >= told + CONFIRM_EVERY:
                    told = handle.count
                    await stream.confirm(item.commit)
                if not began and handle.count >= warm:
                    began, worked = time.perf_counter(), time.process_time()
            if handle.count >= last:
                break
    seconds = time.perf_counter() - began, time.process_time() - worked
    await stream.close()
    return seconds


def main(given: dict[str, Any]) -> None:
    """Measure once."""
    handler = Handler(times=given["times"])
    seconds, worked = asyncio.run(read(given, handler))
    facts = {"changes": handler.count, "json_bytes": round(handler.bytes / handler.count)}
    facts |= {"processor_us": round(worked / given["count"] * 1e6, 2)}
    facts |= {"driver": psycopg.pq.__impl__, "processes": 1, "loop": "asyncio"}
    if given["times"]:
        facts["arrived"] = handler.arrived
    tell(given["count"] / seconds, **facts)


if __name__ == "__main__":
    main(arguments())
