"""Calls submitted to ``ThreadPoolExecutor``, each waited for; what a thread and a call cost."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

WARM = 2_000


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def work(n: int) -> int:
    return n


def main(given: dict[str, Any]) -> None:
    with ThreadPoolExecutor(given["workers"]) as pool:
        for n in range(WARM):
            pool.submit(work, n).result()
        began = time.perf_counter()
        for n in range(given["count"]):
            pool.submit(work, n).result()
        seconds = time.perf_counter() - began
    opened = threading.Event()
    threads, waiting = given["threads"], given["waiting"]
    with ThreadPoolExecutor(threads) as pool:
        start = rss_bytes()
        for _ in range(threads):
            pool.submit(opened.wait)
        begun = rss_bytes()
        tasks = [pool.submit(opened.wait) for _ in range(waiting)]
        queued = rss_bytes()
        opened.set()
        for task in tasks:
            task.result()
    facts = {
        "workers": given["workers"],
        "thread_kib": round((begun - start) / threads / 1024, 1),
        "waiting_bytes": round((queued - begun) / waiting),
    }
    print(json.dumps({"figure": seconds / given["count"] * 1e6, **facts}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
