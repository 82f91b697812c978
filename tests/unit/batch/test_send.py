"""How often a connection is made again, and what is said of a spool that is not what it was."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from duly.batch.delivery import Policy
from duly.batch.manifest import Manifest, write_manifest
from duly.batch.send import SendStep
from duly.batch.steps import StopAtCheckpoint
from duly.errors import FileTargetUnavailableError, PermanentError
from duly.files.local import LocalTarget
from duly.kernel.backoff import Retry
from tests.servers.crooked_memory import Crooked, Run, Trouble

DATA = b"1,2\n" * 30


def seal(spool: Path) -> None:
    path = spool / "sealed"
    path.write_bytes(DATA)
    write_manifest(Manifest(path, "pay.csv", len(DATA), hashlib.sha256(DATA).hexdigest(), 30, ()))


def step_to(target: object, attempts: int = 3) -> SendStep:
    retry = Retry(attempts=attempts, base="1ms", max="1ms")
    return SendStep(target, policy=Policy(block_bytes=30), retry=retry)  # type: ignore[arg-type]


async def test_connections_that_bring_nothing_are_counted(tmp_path: Path) -> None:
    seal(tmp_path)
    trouble = Trouble(dict.fromkeys(range(1, 100), "cut before"))
    with pytest.raises(FileTargetUnavailableError):
        await step_to(Crooked(trouble=trouble)).run(Run(tmp_path, Trouble()))
    assert trouble.struck == 3


async def test_connections_that_bring_something_are_not(tmp_path: Path) -> None:
    """Every third call is cut, and still it ends with three attempts."""
    seal(tmp_path)
    trouble = Trouble(dict.fromkeys(range(8, 100, 8), "cut before"))
    server = Crooked(trouble=trouble)
    await step_to(server).run(Run(tmp_path, Trouble()))
    assert trouble.struck > 3
    assert bytes(server.files["pay.csv"]) == DATA


async def test_a_stop_is_obeyed_while_the_server_is_away(tmp_path: Path) -> None:
    seal(tmp_path)
    run = Run(tmp_path, Trouble())
    run.stopping = True
    trouble = Trouble(dict.fromkeys(range(1, 100), "cut before"))
    with pytest.raises(StopAtCheckpoint):
        await step_to(Crooked(trouble=trouble)).run(run)


async def test_a_spool_that_is_not_what_was_sealed(tmp_path: Path) -> None:
    seal(tmp_path)
    server, run = Crooked(), Run(tmp_path, Trouble())
    (tmp_path / "sealed").write_bytes(DATA[:-1])
    with pytest.raises(PermanentError) as caught:
        await step_to(server).run(run)
    assert caught.value.code == "BATCH_SPOOL_DAMAGED"
    (tmp_path / "sealed").unlink()
    with pytest.raises(PermanentError) as caught:
        await step_to(server).run(run)
    assert caught.value.code == "BATCH_SPOOL_GONE"
    assert server.files == {}


async def test_a_run_that_was_sent_ends_again_at_once(tmp_path: Path) -> None:
    seal(tmp_path)
    folder = tmp_path / "out"
    folder.mkdir()
    run, step = Run(tmp_path, Trouble()), step_to(LocalTarget(folder.as_uri()))
    await step.run(run)
    saves = run.saves
    (folder / "pay.csv").unlink()  # the receiver has taken it
    await step.run(run)
    assert run.saves == saves
    assert list(folder.iterdir()) == []


async def test_another_content_begins_anew_and_clears_away(tmp_path: Path) -> None:
    """A part of the old one is not gone on with."""
    seal(tmp_path)
    server, run = Crooked(), Run(tmp_path, Trouble())
    run.stop_after_saves = 2
    with pytest.raises(StopAtCheckpoint):
        await step_to(server).run(run)
    assert len(server.files) == 1
    other = DATA.replace(b"1", b"7")
    path = tmp_path / "sealed"
    path.write_bytes(other)
    write_manifest(Manifest(path, "pay.csv", len(other), hashlib.sha256(other).hexdigest(), 9, ()))
    run.stopping, run.stop_after_saves, run.attempt = False, 1 << 30, 2
    await step_to(server).run(run)
    assert {name: bytes(data) for name, data in server.files.items()} == {"pay.csv": other}


async def test_verify_says_when_nothing_can_be_read_back(tmp_path: Path) -> None:
    from dataclasses import replace

    seal(tmp_path)
    server, run = Crooked(), Run(tmp_path, Trouble())
    server.features = replace(server.features, reads=False, hashes=False)
    await SendStep(server, policy=Policy(verify="size"), retry=Retry(attempts=1)).run(run)  # type: ignore[arg-type]
    step = step_to(server)
    assert await step.verify(run) == ["pay.csv at memory: cannot be read back; its size is right"]
