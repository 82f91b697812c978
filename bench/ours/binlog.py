"""duly reading a binary log: whole transactions, each change as JSON to a handler in memory.

Ends when so many changes came.  ``envelope`` makes Debezium's JSON of each, as an event has it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import msgspec

from bench.ours.changes import CONFIRM_EVERY, absent
from bench.ours.shop import arguments, tell
from duly.cdc.debezium import Debezium
from duly.databases.mysql.changes import MysqlChanges
from duly.kernel.changes import Change, Transaction
from duly.runtime.clock import SystemClock
from duly.sources import TableSpec

Encode = Callable[[Change], bytes]


class Handler:
    """What a change ends at, as JSON text; of some it is kept."""

    def __init__(self, sampled: int) -> None:
        self.count = self.bytes = 0
        self.sample: list[tuple[Change, bytes]] = []
        self._sampled = sampled

    def __call__(self, change: Change, told: bytes) -> None:
        """Take one."""
        self.count += 1
        self.bytes += len(told)
        if self.count % self._sampled == 0:
            self.sample.append((change, told))


def as_debezium(schema: str, table: str) -> Encode:
    """What makes Debezium's envelope of a change."""
    types = {"placed_at": "timestamp(6)"}
    tell_of = Debezium(
        f"bench.{schema}.{table}", connector="mariadb", tombstones=False, types=types
    )
    encode = msgspec.json.Encoder().encode
    return lambda change: b"".join([encode(emit.message) for emit in tell_of(change)])


async def read(given: dict[str, Any], handle: Handler, encode: Encode) -> tuple[float, float]:
    """Seconds that the changes behind the warm-up took, on the clock and of the processor."""
    table = TableSpec(given["table"], before_image=True)
    source = MysqlChanges(given["database"], reader="bench", clock=SystemClock())
    await source.prepare([table])
    stream = await source.open([table], position=given["position"], token=1)
    warm, last = given["warm"], given["warm"] + given["count"]
    began, worked, told = 0.0, 0.0, 0
    async with asyncio.timeout(given["seconds"]):
        async for item in stream.items():
            if isinstance(item, Transaction):
                for change in item:
                    handle(change, encode(change))
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


def sample_of(handle: Handler, *, envelope: bool) -> list[Any]:
    """What the reference kept of the same changes: of an envelope the rows, else plain values."""
    if envelope:
        told = (json.loads(one) for _, one in handle.sample)
        return [[one["op"], one["before"], one["after"]] for one in told]
    rows = [[one.op, one.before, one.after] for one, _ in handle.sample]
    return list(json.loads(json.dumps(rows, default=_text)))


def _text(value: Any) -> str:
    if isinstance(value, datetime):  # the reference has moments without a zone
        value = value.astimezone(UTC).replace(tzinfo=None)
    return str(value)


def main(given: dict[str, Any]) -> None:
    """Measure once."""
    handler = Handler(given["sampled"])
    schema = given["database"].rpartition("/")[2]
    plain = msgspec.json.Encoder(enc_hook=absent).encode
    encode = as_debezium(schema, given["table"]) if given["envelope"] else plain
    seconds, worked = asyncio.run(read(given, handler, encode))
    facts: dict[str, Any] = {
        "changes": handler.count,
        "json_bytes": round(handler.bytes / handler.count),
    }
    facts |= {"processor_us": round(worked / given["count"] * 1e6, 2)}
    facts |= {"driver": f"PyMySQL {version('pymysql')}", "processes": 1, "loop": "asyncio"}
    facts |= {"sample": sample_of(handler, envelope=given["envelope"])}
    tell(given["count"] / seconds, **facts)


if __name__ == "__main__":
    main(arguments())
