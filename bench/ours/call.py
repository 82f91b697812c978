"""A call that goes well, with everything on: deadline, retry, budget, breaker and bulkhead."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from bench.ours.shop import arguments, tell
from duly import App
from duly.calls import Breaker, Bulkhead, Retry

app = App("bench")
ON = (ConnectionError,)


@app.call(deadline="2s", retry=Retry(attempts=3, on=ON), breaker=Breaker(), bulkhead=Bulkhead(100))
async def rate(number: int) -> int:
    return number


@app.call(deadline="2s", retry=Retry(attempts=3, on=ON), breaker=Breaker())
def hop(number: int) -> int:
    return number


async def happy(count: int) -> float:
    """Seconds of so many, one after the other."""
    began = time.perf_counter()
    for number in range(count):
        await rate(number)
    return time.perf_counter() - began


def hops(count: int) -> float:
    """The same through a thread each."""
    began = time.perf_counter()
    for number in range(count):
        hop(number)
    return time.perf_counter() - began


def main(given: dict[str, Any]) -> None:
    """Measure one of them, warmed up."""
    count = given["count"]
    if given["what"] == "happy":
        asyncio.run(happy(count // 10))
        seconds = asyncio.run(happy(count))
    else:
        hops(count // 10)
        seconds = hops(count)
    tell(seconds / count * 1e6, calls=count)


if __name__ == "__main__":
    main(arguments())
