"""A plain function in a thread of the standard pool, its result waited for with a timeout."""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

given = json.loads(sys.argv[1])


def rate(number):
    return number


def hops(pool, count):
    began = time.perf_counter()
    for number in range(count):
        pool.submit(rate, number).result(timeout=2.0)
    return time.perf_counter() - began


with ThreadPoolExecutor(16) as pool:
    hops(pool, given["count"] // 10)
    figure = hops(pool, given["count"]) / given["count"] * 1e6
print(json.dumps({"figure": figure, "calls": given["count"]}))
