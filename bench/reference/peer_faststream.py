"""FastStream, a handler that does nothing: lists from a Redis stream, or ten messages at once."""

import asyncio
import json
import sys
import time
from importlib.metadata import version

import redis.asyncio as redis
import uvloop
from faststream.redis import RedisBroker, StreamSub

CHUNK, GROUP = 1000, "stats"
given = json.loads(sys.argv[1])
WORKERS = {} if given["batch"] else {"max_workers": 10}
broker = RedisBroker(given["redis"], logger=None)
READ = {"batch": given["batch"], "max_records": 1000}
source = StreamSub(given["stream"], group=GROUP, consumer="one", **READ)
done, began, all_done = 0, 0.0, asyncio.Event()


def count(more):
    global done, began
    done, began = done + more, began or time.perf_counter()
    if done >= given["count"]:
        all_done.set()


async def in_batches(bodies: list[dict]) -> None:
    count(len(bodies))


async def one_by_one(body: dict) -> None:
    count(1)


async def main():
    client = redis.Redis.from_url(given["redis"])
    await broker.connect()
    for at in range(0, given["count"], CHUNK):
        async with client.pipeline(transaction=True) as pipe:
            for n in range(at, at + CHUNK):
                body = {"order_id": n, "cents": 1250, "note": "x" * 980}
                await broker.publish(body, stream=given["stream"], pipeline=pipe)
            await pipe.execute()
    await client.xgroup_create(given["stream"], GROUP, id="0")
    subscribe = broker.subscriber(stream=source, **WORKERS)
    subscribe(in_batches if given["batch"] else one_by_one)
    await broker.start()
    await all_done.wait()
    asked = given["stream"], GROUP
    while (await client.xpending(*asked))["pending"]:  # noqa: ASYNC110  # nothing tells of it
        await asyncio.sleep(0.002)
    figure = done / (time.perf_counter() - began)
    await broker.stop()
    return {"figure": figure, "messages": done, "peer": version("faststream")}


print(json.dumps(uvloop.run(main()) | READ | WORKERS | {"processes": 1, "loop": "uvloop"}))
