"""Deliveries to servers as they are: OpenSSH, and SSH servers with the habits of the field."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from duly.batch.delivery import Policy
from duly.batch.destinations import Sftp
from duly.batch.manifest import Manifest, write_manifest
from duly.batch.send import SendStep
from duly.batch.steps import StopAtCheckpoint
from duly.errors import (
    ConfigurationError,
    FileTargetError,
    FileTargetUnavailableError,
    HostKeyError,
)
from duly.files.ftp import FtpTarget
from duly.files.sftp import SftpTarget
from duly.kernel import failpoints
from duly.kernel.backoff import Retry
from duly.testing.fault_proxy import FaultProxy
from tests.servers.crooked_memory import Run, Trouble
from tests.servers.crooked_sftp import CrookedSftp, Habits
from tests.servers.ftp_server import PASSWORD, USER, ftp_server
from tools.services import PrivateServer

ROOT = Path(__file__).resolve().parents[2]
NAME = "settlement-2026-11-22.csv"
BLOCK = 1 << 20
SOON = Retry(attempts=4, base="10ms", max="50ms")


def seal(spool: Path, size: int = 5 * BLOCK + 77) -> bytes:
    """A sealed file with its manifest; its bytes."""
    spool.mkdir(exist_ok=True)
    unit = b"".join(b"%08d,row of a settlement\n" % n for n in range(4000))
    data = (unit * (size // len(unit) + 1))[:size]
    path = spool / "sealed.csv"
    path.write_bytes(data)
    write_manifest(Manifest(path, NAME, size, hashlib.sha256(data).hexdigest(), 9, ()))
    return data


class World:
    """A server with habits, a spool, and a run that is sent to it."""

    def __init__(self, tmp_path: Path, habits: Habits) -> None:
        self.folder, self._known = tmp_path / "in", tmp_path / "known_hosts"
        self.folder.mkdir(exist_ok=True)
        self.server = CrookedSftp(self.folder, habits)
        self.data = seal(tmp_path / "spool")
        self.run = Run(tmp_path / "spool", Trouble())

    def target(self, timeout_seconds: float = 20.0) -> SftpTarget:
        self._known.write_text(self.server.known_hosts)
        return SftpTarget(self.server.url, known_hosts=self._known, timeout_seconds=timeout_seconds)

    async def send(self, *, timeout_seconds: float = 20.0, **policy: Any) -> None:
        """One attempt."""
        step = SendStep(
            self.target(timeout_seconds),
            policy=Policy(block_bytes=BLOCK, **policy),
            retry=SOON,
        )
        await step.run(self.run)

    @property
    def final(self) -> bytes | None:
        path = self.folder / NAME
        return path.read_bytes() if path.exists() else None

    def names(self) -> list[str]:
        return sorted(one.name for one in self.folder.iterdir())


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    with ExitStack() as open_servers:

        def make(**habits: Any) -> World:
            made = World(tmp_path, Habits(**habits))
            open_servers.enter_context(made.server)
            return made

        yield make


# --- the twelve habits ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    "habits",
    [
        {"generic": True},
        {"generic": True, "extensions": False},
        {"keeps_length": True},
        {"no_setstat": True},
        {"shuffled": True},
        {"extensions": False},
        {"check_file": True},
    ],
    ids=lambda habits: "+".join(habits),
)
async def test_a_file_is_delivered_whatever_the_habit(
    world: Callable[..., World], habits: dict[str, Any]
) -> None:
    told = world(**habits)
    await told.send(verify="sha256", marker=".sha256")
    assert told.final == told.data
    assert told.names() == [NAME, f"{NAME}.sha256"]
    level = "server-hash" if habits.get("check_file") else "read-back"
    assert told.run.facts["send.verified"] == level
    assert told.run.facts["send.published"] == "plain"


@pytest.mark.parametrize("extensions", [True, False], ids=["posix-rename", "none"])
async def test_a_file_that_may_be_replaced(world: Callable[..., World], extensions: bool) -> None:
    """At once where the server can; else what was there is renamed first, and removed last."""
    told = world(extensions=extensions, generic=not extensions)
    (told.folder / NAME).write_bytes(b"of yesterday")
    with pytest.raises(FileTargetError) as caught:
        await told.send()
    assert caught.value.code == "FILE_TARGET_EXISTS"
    assert told.final == b"of yesterday"
    await told.send(replace=True)
    assert told.final == told.data
    assert told.names() == [NAME]
    assert told.run.facts["send.published"] == ("atomic" if extensions else "set aside")


async def test_a_server_that_takes_files_when_they_are_closed(world: Callable[..., World]) -> None:
    told = world(takes=True)
    with pytest.raises(FileTargetError) as caught:
        await told.send()
    assert caught.value.code == "FILE_TARGET_VANISHED"
    assert told.final is None


async def test_writes_that_are_done_by_half_are_found_out(world: Callable[..., World]) -> None:
    """Sent again once; a server that keeps doing it is refused, and nothing is delivered."""
    told = world(short=1)
    await told.send(verify="sha256")
    assert told.final == told.data
    assert told.run.facts["send.mismatches"] == 1
    told.server.shorts, told.run.checkpoint = 1 << 30, None
    (told.folder / NAME).unlink()
    with pytest.raises(FileTargetError) as caught:
        await told.send(verify="sha256")
    assert caught.value.code == "FILE_VERIFY_FAILED"
    assert told.names() == []
    told.server.shorts = 0
    await told.send(verify="sha256")
    assert told.final == told.data


async def test_a_connection_that_ends_after_so_many_bytes(world: Callable[..., World]) -> None:
    """Goes on over the next ones; every one costs at most a block."""
    told = world(closes_after=2 * BLOCK)
    await told.send()
    assert told.final == told.data
    cuts = len(told.data) // (2 * BLOCK) + 1
    assert len(told.data) <= told.server.received <= len(told.data) + cuts * BLOCK


async def test_a_connection_on_which_nothing_gets_through(world: Callable[..., World]) -> None:
    told = world(closes_after=1)
    with pytest.raises(FileTargetUnavailableError):
        await told.send()
    assert told.final is None


async def test_a_server_that_hangs_after_the_login(world: Callable[..., World]) -> None:
    told = world(hangs=True)
    began = asyncio.get_running_loop().time()
    with pytest.raises(FileTargetUnavailableError, match="did not answer within"):
        await told.send(timeout_seconds=0.5)
    assert asyncio.get_running_loop().time() - began < 15
    assert told.names() == []


async def test_a_quota_ends_the_attempt_and_not_the_run(world: Callable[..., World]) -> None:
    """What was sent is used when there is room again."""
    told = world(quota=3 * BLOCK)
    with pytest.raises(FileTargetUnavailableError) as caught:
        await told.send()
    assert caught.value.code in ("FILE_TARGET_FULL", "FILE_TARGET_WRITE_FAILED")
    assert told.final is None
    object.__setattr__(told.server.habits, "quota", 0)
    before = told.server.received
    told.run.attempt = 2
    await told.send()
    assert told.final == told.data
    assert told.server.received - before <= len(told.data) - 2 * BLOCK
    assert told.names() == [NAME]


async def test_a_folder_that_may_not_be_written_to_says_so(world: Callable[..., World]) -> None:
    told = world(read_only=True)
    with pytest.raises(FileTargetError) as caught:
        await told.send()
    assert caught.value.code == "FILE_TARGET_DENIED"
    assert told.names() == []
    object.__setattr__(told.server.habits, "read_only", False)
    told.run.attempt = 2
    await told.send()
    assert told.final == told.data


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("verify", ["tail", "sha256"])
async def test_a_rename_whose_answer_is_lost_is_judged_by_the_file(
    world: Callable[..., World], replace: bool, verify: str
) -> None:
    told = world(lost_rename=NAME)
    await told.send(replace=replace, verify=verify, marker=".done")
    assert told.server.lost == 1
    assert told.run.facts["send.published"] == "found"
    assert told.final == told.data
    assert told.names() == [NAME, f"{NAME}.done"]


# --- who it is ------------------------------------------------------------------------------------
async def test_an_unknown_or_changed_server_gets_nothing(
    world: Callable[..., World], tmp_path: Path
) -> None:
    told = world()
    other, mine = CrookedSftp(tmp_path), tmp_path / "mine"
    other.port = told.server.port
    for line, code in ((other.known_hosts, "HOST_KEY_CHANGED"), ("", "HOST_KEY_UNKNOWN")):
        mine.write_text(line)
        target = SftpTarget(told.server.url, known_hosts=mine)
        with pytest.raises(HostKeyError) as caught:
            async with target.open():
                pass
        assert caught.value.code == code
        assert told.server.key.convert_to_public().get_fingerprint() in str(caught.value)
        assert "correct" not in str(caught.value)
    other._loop.close()


async def test_a_wrong_password_says_so_and_not_which(
    world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = world()
    told.target()
    monkeypatch.setenv("BANK_PASSWORD", "not-this-one")
    url = f"sftp://bank@127.0.0.1:{told.server.port}/"
    target = SftpTarget(url, known_hosts=told._known, password_env="BANK_PASSWORD")
    with pytest.raises(ConfigurationError) as caught:
        async with target.open():
            pass
    assert caught.value.code == "FILE_TARGET_LOGIN"
    assert "not-this-one" not in str(caught.value)
    monkeypatch.setenv("BANK_PASSWORD", "correct horse")
    async with target.open() as session:
        assert await session.look("nothing") is None


# --- stopping and going on ------------------------------------------------------------------------
async def test_a_stop_is_obeyed_at_a_safe_point_and_the_rest_follows(
    world: Callable[..., World],
) -> None:
    told = world()
    told.run.stop_after_saves = 4
    with pytest.raises(StopAtCheckpoint):
        await told.send()
    assert told.final is None
    sent, told.run.stopping, told.run.stop_after_saves = told.server.received, False, 1 << 30
    told.run.attempt = 2
    await told.send()
    assert told.final == told.data
    assert sent < len(told.data)
    assert told.server.received <= len(told.data) + BLOCK
    assert told.names() == [NAME]


async def test_verify_tells_what_differs_and_changes_nothing(world: Callable[..., World]) -> None:
    told = world()
    step = SendStep(told.target(), policy=Policy(), retry=SOON)
    assert "is not there" in (await step.verify(told.run))[0]
    await told.send()
    assert await step.verify(told.run) == []
    (told.folder / NAME).write_bytes(told.data[:-1] + b"!")
    assert "has other bytes" in (await step.verify(told.run))[0]
    (told.folder / NAME).write_bytes(told.data[:-1])
    assert "bytes, not" in (await step.verify(told.run))[0]
    assert told.names() == [NAME]


async def test_a_link_or_a_folder_in_the_way_is_left_alone(world: Callable[..., World]) -> None:
    told = world()
    victim = told.folder / "victim"
    victim.write_bytes(b"precious")
    (told.folder / NAME).symlink_to(victim)
    with pytest.raises(FileTargetError) as caught:
        await told.send(replace=True)
    assert caught.value.code == "FILE_TARGET_NOT_A_FILE"
    (told.folder / NAME).unlink()
    (told.folder / NAME).mkdir()
    with pytest.raises(FileTargetError) as caught:
        await told.send(replace=True)
    assert caught.value.code == "FILE_TARGET_NOT_A_FILE"
    assert told.names() == [NAME, "victim"]
    assert victim.read_bytes() == b"precious"


async def test_ftp_goes_on_where_the_file_ends(tmp_path: Path) -> None:
    data = seal(tmp_path / "spool")
    folder = tmp_path / "in"
    folder.mkdir()
    run = Run(tmp_path / "spool", Trouble())
    with ftp_server(folder) as port:
        url = f"ftp://{USER}:{PASSWORD}@127.0.0.1:{port}/"
        step = SendStep(FtpTarget(url), policy=Policy(block_bytes=BLOCK, marker=".ok"), retry=SOON)
        run.stop_after_saves = 3
        with pytest.raises(StopAtCheckpoint):
            await step.run(run)
        parts = [one for one in folder.iterdir() if one.name.endswith(".part")]
        assert len(parts) == 1
        run.stopping, run.stop_after_saves, run.attempt = False, 1 << 30, 2
        await step.run(run)
    assert (folder / NAME).read_bytes() == data
    assert sorted(one.name for one in folder.iterdir()) == [NAME, f"{NAME}.ok"]


# --- OpenSSH: killed, cut off, restarted ----------------------------------------------------------
KILLED = """
import asyncio, sys
from pathlib import Path
from duly.batch.delivery import Policy
from duly.batch.send import SendStep
from duly.files.sftp import SftpTarget
from duly.kernel.backoff import Retry
from duly.testing.failpoints import arm_from_environment
from tests.servers.crooked_memory import Run, Trouble

spool, url, known_hosts, key, kept, attempt = sys.argv[1:]
run = Run(Path(spool), Trouble())
run.attempt = int(attempt)
run.checkpoint = Path(kept).read_bytes() if Path(kept).exists() else None
save = run.save

async def stored(checkpoint, **done):
    await save(checkpoint, **done)
    Path(kept + "~").write_bytes(checkpoint)
    Path(kept + "~").rename(kept)

run.save = stored
arm_from_environment()
target = SftpTarget(url, known_hosts=known_hosts, key=key)
policy = Policy(block_bytes=1 << 20, marker=".done", replace=True)
step = SendStep(target, policy=policy, retry=Retry(attempts=2, base="10ms", max="10ms"))
asyncio.run(step.run(run))
"""


def test_a_process_killed_at_every_point_leaves_no_partial_file(
    tmp_path: Path, sftp_url: str
) -> None:
    """One run, killed at one point after the other, each time by another process."""
    data = seal(tmp_path / "spool")
    folder, kept = Path(urlsplit(sftp_url).path), tmp_path / "kept"
    words = [
        str(tmp_path / "spool"),
        sftp_url,
        os.environ["DULY_TEST_SFTP_KNOWN_HOSTS"],
        os.environ["DULY_TEST_SFTP_KEY"],
        str(kept),
    ]
    points = [
        f"{failpoints.BATCH_BLOCK_ACKED}@2",
        f"{failpoints.BATCH_BLOCK_ACKED}@3",
        failpoints.BATCH_UPLOADED,
        failpoints.BATCH_VERIFIED,
        failpoints.BATCH_RENAMED,
        failpoints.BATCH_MARKED,
        "",
    ]
    for attempt, point in enumerate(points, 1):
        (folder / NAME).write_bytes(b"of yesterday") if attempt == 1 else None
        done = subprocess.run(
            [sys.executable, "-c", KILLED, *words, str(attempt)],
            cwd=ROOT,
            env={**os.environ, "DULY_TEST_FAILPOINTS": point, "PYTHONPATH": f"{ROOT}/src:{ROOT}"},
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert done.returncode == (-signal.SIGKILL if point else 0), done.stderr
        renamed = attempt >= points.index(failpoints.BATCH_RENAMED) + 1
        assert (folder / NAME).read_bytes() == (data if renamed else b"of yesterday"), point
    assert sorted(one.name for one in folder.iterdir()) == [NAME, f"{NAME}.done"]


async def test_openssh_cut_off_again_and_again(tmp_path: Path, sftp_url: str) -> None:
    """Whatever is under way when the wire is cut, nothing is sent twice beyond a block."""
    data = seal(tmp_path / "spool", 24 * BLOCK)
    parts, known = urlsplit(sftp_url), tmp_path / "known"
    run = Run(tmp_path / "spool", Trouble())
    with FaultProxy("127.0.0.1", parts.port or 22) as proxy:
        key = Path(os.environ["DULY_TEST_SFTP_KNOWN_HOSTS"]).read_text().partition(" ")[2]
        known.write_text(f"[127.0.0.1]:{proxy.port} {key}")
        url = f"sftp://{parts.username}@127.0.0.1:{proxy.port}{parts.path}"
        target = SftpTarget(url, known_hosts=known, key=os.environ["DULY_TEST_SFTP_KEY"])
        policy = Policy(block_bytes=4 * BLOCK, verify="sha256")
        sending = asyncio.ensure_future(SendStep(target, policy=policy, retry=SOON).run(run))
        cuts = 0
        for reached in (6, 12, 18):
            while not sending.done() and proxy.request_bytes < reached * BLOCK:
                await asyncio.sleep(0.002)
            if not sending.done():
                proxy.cut()
                cuts += 1
        await sending
        assert cuts >= 1
        assert proxy.request_bytes < len(data) + cuts * 5 * BLOCK
    assert (Path(parts.path) / NAME).read_bytes() == data
    assert [one.name for one in Path(parts.path).iterdir()] == [NAME]


async def test_a_server_that_is_killed_and_comes_back(
    tmp_path: Path, private_sshd: PrivateServer
) -> None:
    """Within one attempt; what the server had answered is not sent again."""
    data = seal(tmp_path / "spool", 40 * BLOCK)
    folder, given = Path(urlsplit(private_sshd.url).path), private_sshd.environment
    target = SftpTarget(
        private_sshd.url,
        known_hosts=given["DULY_TEST_SFTP_KNOWN_HOSTS"],
        key=given["DULY_TEST_SFTP_KEY"],
    )
    run, patient = Run(tmp_path / "spool", Trouble()), Retry(attempts=100, base="100ms", max="1s")
    policy = Policy(block_bytes=3 * BLOCK, verify="sha256")
    sending = asyncio.ensure_future(SendStep(target, policy=policy, retry=patient).run(run))
    while run.saves < 10 and not sending.done():
        await asyncio.sleep(0.002)
    assert not sending.done()
    await asyncio.to_thread(private_sshd.kill)
    kept = run.saves
    await asyncio.to_thread(private_sshd.start)
    await sending
    assert kept < run.saves
    assert (folder / NAME).read_bytes() == data
    assert [one.name for one in folder.iterdir()] == [NAME]


async def test_a_declared_destination_reaches_its_server(tmp_path: Path, sftp_url: str) -> None:
    """From the declaration to the file, by the App's own way to its adapters."""
    from duly.adapters import make_file_target

    class Job:
        class places:  # noqa: N801
            file_target = staticmethod(make_file_target)

    data = seal(tmp_path / "spool", 1000)
    place = Sftp(
        sftp_url,
        known_hosts=os.environ["DULY_TEST_SFTP_KNOWN_HOSTS"],
        key=os.environ["DULY_TEST_SFTP_KEY"],
        verify="sha256",
    )
    run = Run(tmp_path / "spool", Trouble())
    await place.step(Job()).run(run)  # type: ignore[arg-type]
    assert (Path(urlsplit(sftp_url).path) / NAME).read_bytes() == data
    assert "resumes" in run.facts["send.server"]
