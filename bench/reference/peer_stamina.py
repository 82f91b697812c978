"""stamina's retry with a timeout around an async function that does nothing."""

import asyncio
import json
import sys
import time
from importlib.metadata import version

import stamina

given = json.loads(sys.argv[1])


@stamina.retry(on=ConnectionError, attempts=3, timeout=2.0)
async def rate(number):
    return number


async def happy(count):
    began = time.perf_counter()
    for number in range(count):
        await rate(number)
    return time.perf_counter() - began


asyncio.run(happy(given["count"] // 10))
seconds = asyncio.run(happy(given["count"]))
figure = seconds / given["count"] * 1e6
print(json.dumps({"figure": figure, "calls": given["count"], "peer": version("stamina")}))
