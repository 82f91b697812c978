"""A folder of this machine: what is on the disk, and what the file system refuses."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from duly.errors import ConfigurationError, FileTargetError, FileTargetUnavailableError
from duly.files import local
from duly.files.local import LocalTarget


async def put(target: LocalTarget, name: str, data: bytes, *, offset: int = 0) -> None:
    async with target.open() as session:
        written = session.write(
            name,
            lambda place, size: data[place : place + size],
            size_bytes=len(data),
            offset=offset,
            step_bytes=4,
        )
        async with aclosing(written):
            async for _ in written:
                pass


@pytest.mark.parametrize("url", ["file://host/x", "/srv/x", "sftp://x/", "file:///x?y=1"])
def test_only_folders_of_this_machine(url: str) -> None:
    with pytest.raises(ConfigurationError):
        LocalTarget(url)


async def test_what_is_told_and_what_is_named_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash of the machine loses nothing that was told: each step, and each rename."""
    synced: list[str] = []
    real = os.fsync

    def fsync(file: int) -> None:
        synced.append("folder" if stat.S_ISDIR(os.fstat(file).st_mode) else "file")
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    target = LocalTarget(tmp_path.as_uri())
    await put(target, "file", b"0123456789")
    assert synced == ["file", "file", "file", "folder"]
    synced.clear()
    async with target.open() as session:
        await session.rename("file", "other", replace=False)
        await session.rename("other", "file", replace=True)
    assert synced == ["folder"] * 2


async def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    with pytest.raises(FileTargetError):
        await put(LocalTarget(tmp_path.as_uri()), "link", b"x")
    assert (tmp_path / "victim").read_bytes() == b"precious"


async def test_a_file_that_was_cut_off_is_not_written_on(tmp_path: Path) -> None:
    """A hole would be read as zeros."""
    (tmp_path / "file").write_bytes(b"01")
    with pytest.raises(FileTargetError):
        await put(LocalTarget(tmp_path.as_uri()), "file", b"0123456789", offset=8)


@pytest.mark.parametrize("taken", [False, True])
async def test_without_hard_links_a_look_must_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: bool
) -> None:
    def none(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr(os, "link", none)
    (tmp_path / "old").write_bytes(b"data")
    if taken:
        (tmp_path / "new").write_bytes(b"theirs")
    async with LocalTarget(tmp_path.as_uri()).open() as session:
        if taken:
            with pytest.raises(FileTargetError):
                await session.rename("old", "new", replace=False)
        else:
            await session.rename("old", "new", replace=False)
    assert (tmp_path / "new").read_bytes() == (b"theirs" if taken else b"data")


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "FILE_TARGET_FULL"),
        (errno.EDQUOT, "FILE_TARGET_FULL"),
        (errno.EROFS, "FILE_TARGET_DENIED"),
        (errno.EIO, "FILE_TARGET_REFUSED"),
    ],
)
async def test_what_the_file_system_refuses_has_a_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(number, os.strerror(number), "file")

    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises((FileTargetError, FileTargetUnavailableError)) as caught:
        await put(LocalTarget(tmp_path.as_uri()), "file", b"x")
    assert caught.value.code == code


async def test_a_disk_that_does_not_answer_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from threading import Event

    release = Event()
    monkeypatch.setattr(local, "_sync_folder", lambda folder: release.wait(20))
    with pytest.raises(FileTargetUnavailableError, match="did not answer"):
        await put(LocalTarget(tmp_path.as_uri(), timeout_seconds=0.2), "file", b"x")
    release.set()
