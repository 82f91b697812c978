"""Programs that end while their background still works; which one is the first argument."""

import asyncio
import logging
import os
import sys
import threading
import time

from duly import App

logging.basicConfig(level=logging.WARNING)
app = App("exits", broker="embedded:///broker.db", drain_timeout=sys.argv[2])
KEPT = []


def told(name: str, error: BaseException) -> None:
    os.write(1, f"told {error}\n".encode())  # at once: threads share what is buffered


@app.background(workers=4, queue=1_000, on_error=told)
def fail(n: int) -> None:
    raise LookupError(n)


@app.background(pool="tasks", workers=50, queue=1_000, on_error=told)
async def fail_async(n: int) -> None:
    await asyncio.sleep(0.001)
    raise LookupError(n)


@app.background(pool="slow", workers=2)
def work(n: int) -> None:
    time.sleep(0.3)
    os.write(1, f"done {n}\n".encode())


@app.background(pool="stuck", workers=1)
def stay() -> None:
    threading.Event().wait()


def many() -> None:
    for n in range(100):
        task = fail.submit(n)
        if n % 10 == 0:
            KEPT.append(task)
        fail_async.submit(1000 + n)


def slow() -> None:
    for n in range(4):
        work.submit(n)


def stuck() -> None:
    stay.submit()
    KEPT.append(stay.submit())
    time.sleep(0.2)


async def loop() -> None:
    for n in range(20):
        fail_async.submit(n)


if sys.argv[1] == "loop":
    asyncio.run(loop())
else:
    {"many": many, "slow": slow, "stuck": stuck}[sys.argv[1]]()
os.write(1, b"end of main\n")  # in one piece: what is told meanwhile comes between
