"""Calls submitted to a pool of duly's, each waited for; what a thread, a task and a waiting call
cost.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from bench.ours.shop import arguments, tell
from bench.rss import rss_bytes
from duly import App

WARM = 2_000
TASKS_MAX = 1_000  # of a pool


def work(n: int) -> int:
    """Nothing: what is measured is the way there and back."""
    return n


def task_kib(app: App, tasks: int) -> float:
    """What a running task of an async function takes."""
    measured = threading.Event()

    async def asleep() -> None:
        while not measured.is_set():  # noqa: ASYNC110  # by another thread
            await asyncio.sleep(0.5)

    hold = app.background(pool="hold", workers=tasks, queue=1, name="hold")(asleep)
    start = rss_bytes()
    held = [hold.submit() for _ in range(tasks)]
    while app.tasks.pool("hold").status().running < tasks:
        time.sleep(0.01)
    taken = rss_bytes() - start
    measured.set()
    for task in held:
        task.result()
    return round(taken / tasks / 1024, 1)


def main(given: dict[str, Any]) -> None:
    """Measure once."""
    app = App("bench", database="sqlite://", broker="embedded:///:memory:")
    function = app.background(workers=given["workers"])(work)
    for n in range(WARM):
        function.submit(n).result()
    began = time.perf_counter()
    for n in range(given["count"]):
        function.submit(n).result()
    seconds = time.perf_counter() - began
    opened = threading.Event()
    threads, waiting = given["threads"], given["waiting"]
    wait = app.background(pool="wait", workers=threads, queue=waiting, name="wait")(opened.wait)
    start = rss_bytes()
    for _ in range(threads):
        wait.submit()
    while app.tasks.status()[-1].running < threads:
        time.sleep(0.01)
    begun = rss_bytes()
    tasks = [wait.submit() for _ in range(waiting)]
    queued = rss_bytes()
    opened.set()
    for task in tasks:
        task.result()
    thread_kib = round((begun - start) / threads / 1024, 1)
    tell(
        seconds / given["count"] * 1e6,
        workers=given["workers"],
        thread_kib=thread_kib,
        task_kib=task_kib(app, min(10 * threads, TASKS_MAX)),
        waiting_bytes=round((queued - begun) / waiting),
    )


if __name__ == "__main__":
    main(arguments())
