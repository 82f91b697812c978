"""The suite that a place of delivery must pass; public, so that anybody can certify one.

Derive a class, give it a fixture named ``target``, and run it with pytest and pytest-asyncio in
auto mode::

    class TestMyTarget(FileConformance):
        @pytest.fixture
        def target(self, my_server):
            return Target(make=lambda: MyTarget(my_server.url), features=..., folder=my_server.path)

The invariant: every promise of ``duly.targets.FileSession`` is tried on the real server, and what
it has stored is looked at from behind, not through the adapter.  What is declared in
``FileFeatures`` is shown to hold and what is not declared is shown to be absent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest

from duly.errors import FileTargetError, FileTargetUnavailableError
from duly.targets import FileFeatures, FileSession, FileTarget, Remote

__all__ = ["FileConformance", "Target"]

STEP_BYTES = 1 << 20
SILENCE_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is tested: a fresh, empty folder.

    make: a target of it. features: those it must show once connected. folder: the same files seen
    from behind. missing: a target of a folder that is not there. stalled: a target whose server
    falls silent when the context's value is called; None where there is no server.
    """

    make: Callable[[], FileTarget]
    features: FileFeatures
    folder: Path
    missing: Callable[[], FileTarget]
    stalled: Callable[[], AbstractAsyncContextManager[tuple[FileTarget, Callable[[], None]]]] | None


def content(size: int) -> bytes:
    """Bytes that repeat at no power of two."""
    return bytes(bytearray((n * 31 + n // 509) % 253 for n in range(4093)) * (size // 4093 + 1))[
        :size
    ]


async def put(session: FileSession, name: str, data: bytes, *, offset: int = 0) -> list[int]:
    """Write all of it; what was told."""
    written = session.write(
        name,
        lambda place, size: data[place : place + size],
        size_bytes=len(data),
        offset=offset,
        step_bytes=STEP_BYTES,
    )
    async with aclosing(written):
        return [answered async for answered in written]


async def get(session: FileSession, name: str, *, offset: int, size: int) -> bytes:
    """Bytes of a file."""
    pieces = session.read(name, offset=offset, size_bytes=size)
    async with aclosing(pieces):
        return b"".join([piece async for piece in pieces])


class FileConformance:
    """Every test gets a target with a fresh, empty folder through the fixture ``target``."""

    async def test_a_target_shows_what_is_expected_of_it(self, target: Target) -> None:
        """A feature cannot be lost by no longer showing it; a digest may show itself when asked."""
        async with target.make().open() as session:
            await put(session, "file", b"some")
            await session.digest("file")
            assert session.features == target.features

    @pytest.mark.parametrize("size", [0, 1, 3 * STEP_BYTES + 17])
    async def test_a_file_arrives_byte_for_byte(self, target: Target, size: int) -> None:
        """What is told grows, and ends with the size; nothing else is there afterwards."""
        data = content(size)
        async with target.make().open() as session:
            told = await put(session, "file.csv", data)
            assert told == sorted(set(told))
            assert told[-1] == size
            assert await session.look("file.csv") == Remote(size)
            assert await get(session, "file.csv", offset=0, size=size) == data
        assert [one.name for one in target.folder.iterdir()] == ["file.csv"]
        assert (target.folder / "file.csv").read_bytes() == data

    async def test_a_new_file_takes_the_place_of_what_was_there(self, target: Target) -> None:
        """Also when that was longer."""
        async with target.make().open() as session:
            await put(session, "file", content(5000))
            await put(session, "file", content(100))
        assert (target.folder / "file").read_bytes() == content(100)

    async def test_not_more_is_under_way_than_was_agreed(self, target: Target) -> None:
        """While nobody asks for more, nothing beyond two steps is read; what is told has arrived,
        where writes are answered.
        """
        data, asked = content(8 * STEP_BYTES), [0]

        def read(place: int, size: int) -> bytes:
            asked.append(place + size)
            return data[place : place + size]

        async with target.make().open() as session:
            written = session.write(
                "file", read, size_bytes=len(data), offset=0, step_bytes=STEP_BYTES
            )
            last = 0
            async with aclosing(written):
                async for answered in written:
                    arrived = (target.folder / "file").stat().st_size
                    assert arrived >= answered or not target.features.acknowledges
                    assert max(asked) <= last + 2 * STEP_BYTES or answered == len(data)
                    last = answered
                    await asyncio.sleep(0.01)

    async def test_writing_goes_on_where_it_was_left(self, target: Target) -> None:
        """Over another connection; what was answered is not written again."""
        data = content(6 * STEP_BYTES + 5)
        reached = 0
        async with target.make().open() as session:
            written = session.write(
                "file",
                lambda place, size: data[place : place + size],
                size_bytes=len(data),
                offset=0,
                step_bytes=STEP_BYTES,
            )
            async with aclosing(written):
                async for answered in written:
                    reached = answered
                    if answered >= 2 * STEP_BYTES:
                        break
        there = (target.folder / "file").stat().st_size
        offset = min(reached, there) if target.features.acknowledges else there
        other = bytes(offset) + data[offset:]  # were it sent again, this would be seen
        async with target.make().open() as session:
            if not target.features.resumes:
                with pytest.raises(FileTargetError):
                    await put(session, "file", other, offset=offset)
                return
            there = (await session.look("file") or Remote(0)).size_bytes
            offset = offset if target.features.acknowledges else there
            other = bytes(offset) + data[offset:]
            assert (await put(session, "file", other, offset=offset))[-1] == len(data)
        assert (target.folder / "file").read_bytes() == data

    async def test_any_part_of_a_file_can_be_read(self, target: Target) -> None:
        """Also past its end, and without an end to the dialogue."""
        data = content(3 * STEP_BYTES)
        async with target.make().open() as session:
            await put(session, "file", data)
            for offset, size in ((0, 10), (len(data) - 7, 7), (1000, STEP_BYTES), (len(data), 5)):
                expected = data[offset : offset + size]
                assert await get(session, "file", offset=offset, size=size) == expected
            assert await get(session, "file", offset=len(data) - 3, size=100) == data[-3:]
            assert await session.look("file") == Remote(len(data))

    async def test_what_is_there_is_seen(self, target: Target) -> None:
        """Nothing, a folder, a file with an odd name."""
        (target.folder / "sub").mkdir()
        async with target.make().open() as session:
            assert await session.look("nothing") is None
            sub = await session.look("sub")
            assert sub is not None
            assert sub.kind == "folder"
            for name in ("a b.csv", "naïve-é.csv", "-r.csv", 'it\'s "q".csv', "#1;2&3.csv"):
                await put(session, name, b"x")
                assert await session.look(name) == Remote(1), name
                assert (target.folder / name).read_bytes() == b"x"

    async def test_a_free_name_is_taken(self, target: Target) -> None:
        """The old one is free afterwards."""
        async with target.make().open() as session:
            await put(session, "old", b"data")
            await session.rename("old", "new", replace=False)
            assert await session.look("old") is None
        assert (target.folder / "new").read_bytes() == b"data"

    async def test_a_name_that_is_taken(self, target: Target) -> None:
        """Refused where that is declared; else replaced whole or refused, nothing in between."""
        async with target.make().open() as session:
            await put(session, "ours", b"new")
            await put(session, "theirs", b"old one")
            if target.features.refuses:
                with pytest.raises(FileTargetError):
                    await session.rename("ours", "theirs", replace=False)
                assert (target.folder / "ours").read_bytes() == b"new"
                assert (target.folder / "theirs").read_bytes() == b"old one"
                return
            try:
                await session.rename("ours", "theirs", replace=False)
            except FileTargetError:
                assert (target.folder / "theirs").read_bytes() == b"old one"
            else:
                assert (target.folder / "theirs").read_bytes() == b"new"

    async def test_replacing_a_file(self, target: Target) -> None:
        """At once where that is declared, else not offered."""
        async with target.make().open() as session:
            await put(session, "ours", b"new")
            await put(session, "theirs", b"old one")
            if target.features.replaces:
                await session.rename("ours", "theirs", replace=True)
                assert (target.folder / "theirs").read_bytes() == b"new"
                assert not (target.folder / "ours").exists()
                return
            with pytest.raises(FileTargetError) as caught:
                await session.rename("ours", "theirs", replace=True)
            assert caught.value.code == "FILE_TARGET_UNSUPPORTED"
            assert (target.folder / "theirs").read_bytes() == b"old one"

    async def test_what_is_not_there_cannot_be_renamed(self, target: Target) -> None:
        """And the connection goes on after it."""
        async with target.make().open() as session:
            with pytest.raises(FileTargetError):
                await session.rename("nothing", "new", replace=False)
            assert await session.look("new") is None

    async def test_removing_twice_is_removing_once(self, target: Target) -> None:
        """What is not there any more is no failure."""
        async with target.make().open() as session:
            await put(session, "file", b"x")
            await session.remove("file")
            await session.remove("file")
        assert list(target.folder.iterdir()) == []

    async def test_the_digest_is_that_of_the_file(self, target: Target) -> None:
        """Where it is declared; else there is none."""
        data = content(5000)
        async with target.make().open() as session:
            await put(session, "file", data)
            digest = await session.digest("file")
            assert digest == (sha256(data).hexdigest() if target.features.hashes else None)

    async def test_a_folder_that_is_not_there_is_told_at_once(self, target: Target) -> None:
        """With a code, and not made."""
        with pytest.raises(FileTargetError) as caught:
            async with target.missing().open():
                pass
        assert caught.value.code == "FILE_TARGET_MISSING"

    async def test_silence_ends_a_wait(self, target: Target) -> None:
        """In the middle of a file, within the timeout that was given."""
        if target.stalled is None:
            assert target.make().place.startswith("file:"), "only this machine has no server"
            return
        data = content(32 * STEP_BYTES)

        async def send(place: FileTarget, fall_silent: Callable[[], None]) -> None:
            def read(offset: int, size: int) -> bytes:
                if offset > STEP_BYTES:
                    fall_silent()
                return data[offset : offset + size]

            async with asyncio.timeout(SILENCE_SECONDS), place.open() as session:
                written = session.write(
                    "file", read, size_bytes=len(data), offset=0, step_bytes=STEP_BYTES
                )
                async with aclosing(written):
                    async for _ in written:
                        pass

        async with target.stalled() as (place, fall_silent):
            with pytest.raises(FileTargetUnavailableError):
                await send(place, fall_silent)
