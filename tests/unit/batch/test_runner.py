from __future__ import annotations

import asyncio
import threading
from datetime import date
from pathlib import Path

import pytest

from duly.batch import runner
from duly.batch.folders import Folders
from duly.batch.runner import BatchRole
from duly.errors import PermanentError, RetryableError, RunActiveError, StaleLeaseError
from duly.running import batch_context
from tests.unit.batch.world import (
    BY,
    Script,
    add_job,
    make_app,
    until,
    until_status,
    working,
)

DAY = {"day": date(2026, 11, 22)}


async def test_a_run_is_done_once_and_says_so(tmp_path: Path) -> None:
    app, script = make_app(tmp_path), Script()
    job = add_job(app, script)
    acted = app.batches.start(job, DAY, by=BY)
    assert acted.changed
    async with working(app):
        await until_status(app, acted.instance, "done")
        assert not app.batches.start(job, DAY, by=BY).changed
    shown = app.batches.show(acted.instance)
    assert [line for _, line in script.wrote] == [0, 1, 2, 3, 4]
    assert script.sent == [1]
    assert [(one.step, one.status, one.rows) for one in shown.steps] == [
        ("extract", "done", 5),
        ("send", "done", 5),
    ]
    assert shown.steps[0].facts == {"last": 4}
    assert [one.status for one in shown.attempts] == ["done"]
    assert shown.held is None
    app.close()


async def test_an_error_is_tried_again_from_the_checkpoint(tmp_path: Path) -> None:
    app, script = make_app(tmp_path), Script()
    job = add_job(app, script)

    cut = [RetryableError("the wire is cut")]

    async def fail_at_three(step: str, line: int) -> None:
        if line == 3 and cut:
            script.errors.append(cut.pop())

    script.before = fail_at_three
    instance = app.batches.start(job, DAY, by=BY).instance
    async with working(app):
        await until_status(app, instance, "done")
    assert script.wrote == [(1, 0), (1, 1), (1, 2), (2, 3), (2, 4)]
    attempts = app.batches.show(instance).attempts
    assert [(one.status, one.error) for one in attempts] == [
        ("done", ""),
        ("failed", "RETRYABLE: the wire is cut"),
    ]
    folders = list((tmp_path / "spool" / "shop" / instance).iterdir())
    assert [one.name for one in folders] == [attempts[0].spool]
    app.close()


async def test_what_a_retry_does_not_mend_waits_for_a_person(tmp_path: Path) -> None:
    app, script = make_app(tmp_path), Script(errors=[PermanentError("no key", code="BATCH_KEY")])
    job = add_job(app, script)
    instance = app.batches.start(job, DAY, by=BY).instance
    async with working(app):
        await until_status(app, instance, "failed")
        assert app.batches.show(instance).row.last_error == "BATCH_KEY: no key"
        assert app.batches.restart(instance, by=BY).changed
        await until_status(app, instance, "done")
    app.close()


async def test_attempts_that_get_nowhere_end(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    script = Script(errors=[ValueError("secret in here") for _ in range(5)])
    job = add_job(app, script)
    instance = app.batches.start(job, DAY, by=BY).instance
    async with working(app):
        await until_status(app, instance, "failed")
    row = app.batches.show(instance).row
    assert (row.attempt, row.last_error) == (3, "ValueError")
    app.close()


async def test_stop_is_at_a_safe_point_and_restart_goes_on(tmp_path: Path) -> None:
    app, script = make_app(tmp_path), Script()
    job = add_job(app, script)
    gate = threading.Event()

    async def wait_at_two(step: str, line: int) -> None:
        if line == 2:
            while not gate.is_set():
                await asyncio.sleep(0.01)

    script.before = wait_at_two
    instance = app.batches.start(job, DAY, by=BY).instance
    async with working(app) as role:
        await until(lambda: len(script.wrote) == 2)
        with pytest.raises(RunActiveError) as refused:
            app.batches.rerun(instance, by=BY)
        assert refused.value.owner
        assert refused.value.age_seconds is not None
        assert app.batches.stop(instance, by=BY).changed
        assert not app.batches.stop(instance, by=BY).changed
        await until(lambda: role.attempts[instance].stopping)
        gate.set()
        await until_status(app, instance, "stopped")
        await until(lambda: app.batches.show(instance).held is None)
        app.batches.restart(instance, by=BY)
        await until_status(app, instance, "done")
    assert [line for _, line in script.wrote] == [0, 1, 2, 3, 4]
    app.close()


async def test_a_worker_that_ends_gives_its_run_back(tmp_path: Path) -> None:
    app, script = make_app(tmp_path), Script()
    job = add_job(app, script)

    async def slow(step: str, line: int) -> None:
        await asyncio.sleep(0.05)

    script.before = slow
    instance = app.batches.start(job, DAY, by=BY).instance
    async with working(app):
        await until(lambda: len(script.wrote) >= 2)
    assert app.batches.show(instance).row.status == "due"
    async with working(app):
        await until_status(app, instance, "done")
    assert [line for _, line in script.wrote] == [0, 1, 2, 3, 4]
    app.close()


async def test_a_killed_attempt_can_store_nothing_more(tmp_path: Path) -> None:
    app, script = make_app(tmp_path), Script()
    job = add_job(app, script)
    inside, gate = threading.Event(), threading.Event()

    async def freeze(step: str, line: int) -> None:
        if line == 2 and not inside.is_set():
            inside.set()
            gate.wait(20)  # the whole thread of the attempt stands still

    script.before = freeze
    instance = app.batches.start(job, DAY, by=BY).instance
    async with working(app):
        await until(inside.is_set)
        assert app.batches.kill(instance, by=BY).status == "stopped"
        gate.set()
        await until(lambda: app.batches.show(instance).held is None)
        assert app.batches.show(instance).row.status == "stopped"
        assert int(script.contexts[0].load() or 0) == 2
        with pytest.raises(StaleLeaseError):
            await script.contexts[0].save(b"9")
        app.batches.restart(instance, by=BY)
        await until_status(app, instance, "done")
    assert script.sent == [2]
    app.close()


async def test_only_one_of_many_works_on_a_run(tmp_path: Path) -> None:
    app, script = make_app(tmp_path), Script(lines=8)
    job = add_job(app, script)

    async def slow(step: str, line: int) -> None:
        await asyncio.sleep(0.02)

    script.before = slow
    instance = app.batches.start(job, DAY, by=BY).instance
    roles = [BatchRole(batch_context(app)) for _ in range(4)]
    tasks = [asyncio.create_task(role.run()) for role in roles]
    await until_status(app, instance, "done")
    for role in roles:
        role.stop()
    await asyncio.gather(*tasks)
    assert script.wrote == [(1, line) for line in range(8)]
    app.close()


async def test_another_definition_is_refused_or_begins_anew(tmp_path: Path) -> None:
    script = Script()

    async def fail_at_two(step: str, line: int) -> None:
        if line == 2 and script.wrote == [(1, 0), (1, 1)]:
            script.errors.append(PermanentError("broken"))

    script.before = fail_at_two
    app = make_app(tmp_path)
    instance = app.batches.start(add_job(app, script), DAY, by=BY).instance
    async with working(app):
        await until_status(app, instance, "failed")
    app.close()
    other = make_app(tmp_path)
    add_job(other, script, mark="other")
    assert other.batches.plan(instance).changed
    other.batches.restart(instance, by=BY)
    async with working(other):
        await until_status(other, instance, "failed")
    assert other.batches.show(instance).row.last_error.startswith("BATCH_DEFINITION_CHANGED")
    other.close()
    forking = make_app(tmp_path)
    add_job(forking, script, mark="other", on_change="fork")
    forking.batches.restart(instance, by=BY)
    async with working(forking):
        await until_status(forking, instance, "done")
    assert script.wrote[2:] == [(2, line) for line in range(5)]
    forking.close()


async def test_without_the_earlier_folder_a_step_begins_anew(tmp_path: Path) -> None:
    app, script = make_app(tmp_path), Script(errors=[])
    job = add_job(app, script)

    async def fail_at_two(step: str, line: int) -> None:
        if line == 2 and len(script.wrote) == 2:
            script.errors.append(PermanentError("broken"))

    script.before = fail_at_two
    instance = app.batches.start(job, DAY, by=BY).instance
    async with working(app):
        await until_status(app, instance, "failed")
    moved = tmp_path / "spool" / "shop"
    moved.rename(tmp_path / "elsewhere")
    app.batches.restart(instance, by=BY)
    async with working(app):
        await until_status(app, instance, "done")
    shown = app.batches.show(instance)
    assert shown.steps[0].facts["mode"] == "again"
    assert script.wrote[2:] == [(2, line) for line in range(5)]
    app.close()


async def test_files_of_runs_that_ended_long_ago_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "TIDY_EVERY_SECONDS", 0.0)
    app, script = make_app(tmp_path, batch_keep="200ms"), Script()
    job = add_job(app, script)
    done = app.batches.start(job, DAY, by=BY).instance
    script.errors.append(PermanentError("broken"))
    spool = tmp_path / "spool" / "shop"
    async with working(app):
        await until_status(app, done, "failed")
        failed = done
        done = app.batches.start(job, {"day": date(2026, 11, 23)}, by=BY).instance
        await until_status(app, done, "done")
        (spool / "of nobody").mkdir()
        await until(lambda: not (spool / done).exists())
    assert sorted(path.name for path in spool.iterdir()) == sorted([failed, "of nobody"])
    app.close()


def test_a_spool_that_cannot_be_used_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    folders = Folders(tmp_path / "file", "shop")
    with pytest.raises(RetryableError) as refused:
        folders.make(folders.path("run", "a"))
    assert refused.value.code == "BATCH_SPOOL"
    assert folders.older_than(0) == []
