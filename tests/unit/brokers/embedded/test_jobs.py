from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from duly.brokers.embedded.jobs import Jobs


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    jobs = Jobs()
    jobs.open()
    yield jobs
    jobs.close()


def took(jobs: Jobs, seconds: float, descriptor: int | None = None) -> float:
    began = time.monotonic()
    jobs.wait(seconds, descriptor)
    return time.monotonic() - began


def test_a_job_that_is_there_is_not_slept_over(jobs: Jobs) -> None:
    done: list[int] = []
    for n in range(3):
        jobs.put(lambda n=n: done.append(n))  # type: ignore[misc]
    assert took(jobs, 30.0) < 5.0
    while job := jobs.take():
        job()
    assert done == [0, 1, 2]
    took(jobs, 30.0)  # a ring may be left over, once
    assert took(jobs, 0.05) >= 0.04


def test_a_job_from_another_thread_ends_the_sleep(jobs: Jobs) -> None:
    later = threading.Timer(0.05, lambda: jobs.put(lambda: None))
    later.start()
    assert took(jobs, 30.0) < 10.0
    assert jobs.take() is not None
    later.join()


def test_a_descriptor_ends_the_sleep(jobs: Jobs) -> None:
    read, write = os.pipe()
    try:
        assert took(jobs, 0.05, read) >= 0.04
        os.write(write, b"x")
        assert took(jobs, 30.0, read) < 5.0
    finally:
        os.close(read)
        os.close(write)


def test_more_jobs_than_the_bell_can_hold(jobs: Jobs) -> None:
    for _ in range(100_000):
        jobs.put(lambda: None)
    count = 0
    while jobs.take():
        count += 1
    assert count == 100_000


def test_before_it_is_open_and_after_it_is_closed() -> None:
    jobs = Jobs()
    jobs.put(lambda: None)
    jobs.open()
    assert took(jobs, 30.0) < 5.0
    jobs.close()
    jobs.put(lambda: None)
    assert jobs.take() is not None
