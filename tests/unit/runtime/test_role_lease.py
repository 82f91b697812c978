from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from duly import App
from duly.outbox.schema import Schema
from duly.runtime import role_lease as subject
from duly.runtime.role_lease import RoleLease, is_gone, process_mark


def mark_of_a_process_that_ended() -> str:
    code = "from duly.runtime.role_lease import process_mark; print(process_mark())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    return done.stdout.strip()


def test_a_process_that_ended_is_gone_and_a_living_one_is_not() -> None:
    mine = process_mark()
    assert mine.split(".")[2] == str(os.getpid())
    assert not is_gone(mine)
    assert is_gone(mark_of_a_process_that_ended())


def test_a_number_that_was_given_out_again_is_another_process() -> None:
    parts = process_mark().split(".")
    assert is_gone(".".join([*parts[:3], str(int(parts[3]) - 1)]))


@pytest.mark.parametrize("part", [0, 1])
def test_nothing_is_known_of_another_machine_or_container(part: int) -> None:
    parts = mark_of_a_process_that_ended().split(".")
    parts[part] = "elsewhere"
    assert not is_gone(".".join(parts))


@pytest.mark.parametrize("mark", ["", "host.1", "a.b.c.d", "nothing at all"])
def test_a_name_of_another_form_is_left_alone(mark: str) -> None:
    assert not is_gone(mark)


def test_where_there_is_no_proc_nobody_is_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ended = mark_of_a_process_that_ended()
    monkeypatch.setattr(subject, "_PROC", tmp_path)
    assert process_mark() == ""
    assert not is_gone(ended)


@pytest.fixture
def app(sqlite_url: str) -> App:
    made = App("shop", database=sqlite_url)
    Schema(made.database, "shop").start()
    return made


def lease(app: App) -> RoleLease:
    return RoleLease("cdc/shop", database=app.database, clock=app.clock, ttl_seconds=30)


async def test_the_lease_of_a_dead_process_is_taken_at_once_and_of_a_living_one_never(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = mark_of_a_process_that_ended()
    with monkeypatch.context() as patched:
        patched.setattr(subject, "process_mark", lambda: ended)
        dead = lease(app)
    assert await dead.take()
    second, third = lease(app), lease(app)
    assert await second.take()
    assert second.values()["token"] > dead.values()["token"]
    assert second.remaining_seconds > 20
    assert not await third.take()
    assert not await dead.take()
    await second.leave()
    assert second.remaining_seconds == 0
    assert await third.take()
    for one in (dead, third):
        await one.leave()
