from __future__ import annotations

import logging
import threading
import time

import pytest

from duly.observe.facts import Duplicate, Fact, Published
from duly.observe.hooks import Hooks

PUBLISHED = Published(topic="orders", count=1)
DUPLICATE = Duplicate(group="g", handler="h", count=1)


def test_hooks_hear_facts_in_order_until_removed():
    hooks = Hooks()
    heard: list[tuple[str, Fact]] = []
    remove = hooks.add(lambda fact: heard.append(("first", fact)))
    hooks.add(lambda fact: heard.append(("second", fact)))
    hooks.emit(PUBLISHED)
    remove()
    remove()
    hooks.emit(DUPLICATE)
    assert heard == [("first", PUBLISHED), ("second", PUBLISHED), ("second", DUPLICATE)]


def test_the_same_hook_added_twice_is_removed_once_at_a_time():
    hooks = Hooks()
    heard: list[Fact] = []
    remove = hooks.add(heard.append)
    hooks.add(heard.append)
    remove()
    remove()
    hooks.emit(PUBLISHED)
    assert heard == [PUBLISHED]


def test_a_raising_hook_disturbs_nobody_and_is_logged_once_per_type_of_fact(caplog):
    def broken(fact: Fact) -> None:
        raise RuntimeError("exporter is down")

    hooks = Hooks()
    heard: list[Fact] = []
    hooks.add(broken)
    hooks.add(heard.append)
    with caplog.at_level(logging.ERROR, "duly.observe"):
        for _ in range(100):
            hooks.emit(PUBLISHED)
        hooks.emit(DUPLICATE)
    assert len(heard) == 101
    assert [record.fact for record in caplog.records] == ["outbox.published", "inbox.duplicate"]
    assert {record.code for record in caplog.records} == {"HOOK_FAILED"}
    assert "broken" in caplog.records[0].getMessage()


def test_two_broken_hooks_complain_each_and_again_after_being_added_anew(caplog):
    class Broken:
        def __call__(self, fact: Fact) -> None:
            raise RuntimeError

    hooks = Hooks()
    hook = Broken()
    remove = hooks.add(hook)
    hooks.add(Broken())
    hooks.emit(PUBLISHED)
    assert len(caplog.records) == 2
    remove()
    hooks.add(hook)
    hooks.emit(PUBLISHED)
    assert len(caplog.records) == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_the_wish_to_stop_passes(error):
    def stop(fact: Fact) -> None:
        raise error

    hooks = Hooks()
    hooks.add(stop)
    with pytest.raises(error):
        hooks.emit(PUBLISHED)


def test_a_hook_may_add_and_remove_hooks():
    hooks = Hooks()
    heard: list[Fact] = []

    def once(fact: Fact) -> None:
        remove()
        hooks.add(heard.append)

    remove = hooks.add(once)
    hooks.emit(PUBLISHED)
    assert heard == []
    hooks.emit(PUBLISHED)
    assert heard == [PUBLISHED]


def test_many_threads_add_emit_and_remove():
    hooks = Hooks()
    counted: list[int] = []
    lock = threading.Lock()

    def hook(fact: Fact) -> None:
        with lock:
            counted.append(1)

    def work() -> None:
        for _ in range(200):
            remove = hooks.add(hook)
            hooks.emit(PUBLISHED)
            remove()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(counted) >= 1_600
    before = len(counted)
    hooks.emit(PUBLISHED)
    assert len(counted) == before


def test_without_hooks_a_fact_costs_next_to_nothing():
    hooks = Hooks()
    began = time.process_time()
    for _ in range(100_000):
        hooks.emit(PUBLISHED)
    assert time.process_time() - began < 0.5  # 5 microseconds each; measured: a tenth of one
