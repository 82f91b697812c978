"""A delivery over a server that cuts, lies and forgets, by a process that is killed at any call.

What a receiver can see is checked after every change: under the final name there is what was there
before, or the whole file.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from duly.batch import delivery, send
from duly.batch.delivery import Policy
from duly.errors import DulyError, FileTargetError, OutcomeUnknownError, StaleLeaseError
from duly.kernel import resume
from duly.kernel.backoff import Retry
from duly.kernel.resume import Act, Move
from tests.servers.crooked_memory import ALL, Crooked, Killed, Run, Trouble

BLOCK = 16
ATTEMPTS_MAX = 60
NAME = "pay.csv"
FOREIGN = b"somebody else's, not to be touched"


@dataclass(frozen=True)
class Manifest:
    path: Path
    name: str
    size_bytes: int
    sha256: str
    rows: int = 3


@dataclass
class Told:
    """What came of a delivery."""

    server: Crooked
    run: Run
    error: DulyError | None
    content: bytes


def content_of(size: int) -> bytes:
    """Bytes of which no two stretches are alike, and none is zero."""
    return bytes(1 + (n * 7 + n // 251) % 255 for n in range(size))


def deliver(
    tmp_path: Path, server: Crooked, content: bytes, *, policy: Policy, before: bytes | None = None
) -> Told:
    """Attempt after attempt until it is delivered or refused; the receiver watches."""
    path = tmp_path / "sealed"
    path.write_bytes(content)
    manifest = Manifest(path, NAME, len(content), hashlib.sha256(content).hexdigest())
    allowed = [content, *([] if before is None else [before])]
    if before is not None:
        server.files[NAME] = bytearray(before)

    def watch() -> None:
        there = server.files.get(NAME)
        assert there is None or bytes(there) in allowed, f"a receiver sees {bytes(there)!r}"
        if before is not None and not policy.replace:
            assert there is not None
            assert bytes(there) == before, "a file of somebody else's was replaced"
        if NAME + ".done" in server.files:
            assert there is not None, "the marker is older than the file"
            assert bytes(there) == content

    server.watch = watch
    run = Run(tmp_path, server.trouble)
    step = send.SendStep(server, policy=policy, retry=Retry(attempts=3, base="1ms", max="1ms"))
    error: DulyError | None = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(send, "read_manifest", lambda spool: manifest)
        for attempt in range(1, ATTEMPTS_MAX):
            run.attempt, error = attempt, None
            try:
                asyncio.run(step.run(run))
                break
            except Killed:
                continue
            except (FileTargetError, OutcomeUnknownError) as refused:
                error = refused
                break
            except DulyError as lost:
                error = lost
    return Told(server, run, error, content)


TROUBLES = st.dictionaries(
    st.integers(1, 60),
    st.sampled_from(["cut before", "cut after", "kill before", "kill after"]),
    max_size=8,
)
FEATURES = st.builds(
    lambda acknowledges, replaces, hashes: replace(
        ALL, acknowledges=acknowledges, replaces=replaces, hashes=hashes
    ),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
QUICK = settings(
    max_examples=250,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@QUICK
@given(
    at=TROUBLES,
    features=FEATURES,
    size=st.integers(0, 5 * BLOCK),
    hole=st.booleans(),
    before=st.sampled_from([None, FOREIGN]),
    verify=st.sampled_from(["size", "tail", "sha256", "read-back"]),
)
@example(at={9: "cut after"}, features=ALL, size=40, hole=True, before=None, verify="tail")
def test_whatever_breaks_the_whole_file_is_delivered_once(
    tmp_path: Path,
    at: dict[int, str],
    features: resume.FileFeatures,
    size: int,
    hole: bool,
    before: bytes | None,
    verify: Any,
) -> None:
    # A server that answers no write and fills holes is believed by nobody's "size".
    assume(features.acknowledges or not hole)
    server = Crooked(features=features, trouble=Trouble(dict(at)), hole=hole)
    policy = Policy(verify=verify, replace=True, marker=".done", block_bytes=BLOCK)
    told = deliver(tmp_path, server, content_of(size), policy=policy, before=before)
    assert told.error is None
    assert bytes(server.files[NAME]) == told.content
    digest = hashlib.sha256(told.content).hexdigest()
    assert server.files[NAME + ".done"].decode() == f"{digest}  {NAME}\n"
    assert set(server.files) == {NAME, NAME + ".done"}, "something is left over"
    marker = len(server.files[NAME + ".done"])
    again = server.sent_bytes - size - marker * (1 + server.trouble.struck)
    assert again <= BLOCK * server.trouble.struck


@QUICK
@given(at=TROUBLES, features=FEATURES, size=st.integers(1, 3 * BLOCK))
def test_a_foreign_file_is_never_replaced_unless_told(
    tmp_path: Path, at: dict[int, str], features: resume.FileFeatures, size: int
) -> None:
    """Neither one of another size nor one of the same."""
    for foreign in (FOREIGN, bytes(size)):
        server = Crooked(features=features, trouble=Trouble(dict(at)), overwrites=True)
        policy = Policy(block_bytes=BLOCK)
        told = deliver(tmp_path, server, content_of(size), policy=policy, before=foreign)
        assert told.error is not None
        assert told.error.code == "FILE_TARGET_EXISTS"
        assert server.sent_bytes == 0


@QUICK
@given(
    at=TROUBLES,
    size=st.integers(1, 5 * BLOCK),
    drops=st.integers(0, 3),
    shortens=st.booleans(),
    keeps=st.booleans(),
    stubborn=st.booleans(),
    unclaimable=st.booleans(),
    hashes=st.booleans(),
)
def test_a_server_that_lies_is_found_out_or_refused(
    tmp_path: Path,
    at: dict[int, str],
    size: int,
    drops: int,
    hashes: bool,
    **crooked: bool,
) -> None:
    features = replace(ALL, hashes=hashes, replaces=False)
    server = Crooked(features=features, trouble=Trouble(dict(at)), drops=drops, **crooked)
    policy = Policy(verify="sha256", replace=True, block_bytes=BLOCK)
    told = deliver(tmp_path, server, content_of(size), policy=policy, before=FOREIGN)
    if told.error is None:
        assert bytes(server.files[NAME]) == told.content
    else:
        assert told.error.code in (
            "FILE_VERIFY_FAILED",
            "FILE_TARGET_REFUSED",
            "FILE_TARGET_DENIED",
            "FILE_TARGET_UNAVAILABLE",
        )


def test_a_file_that_is_gone_after_an_unanswered_rename_is_nobodys_guess(tmp_path: Path) -> None:
    """The receiver took it at once, or the server lost it: a person knows."""
    content = content_of(20)
    clean = Crooked()
    deliver(tmp_path, clean, content, policy=Policy(block_bytes=BLOCK))
    seen = []
    for call in range(1, clean.trouble.calls + 1):
        server = Crooked(trouble=Trouble({call: "cut after"}))
        taking = server.rename

        async def taken(
            old: str, new: str, *, replace: bool, server: Any = server, taking: Any = taking
        ) -> None:
            try:
                await taking(old, new, replace=replace)
            finally:
                server.files.pop(new, None)

        server.rename = taken  # type: ignore[method-assign]
        told = deliver(tmp_path, server, content, policy=Policy(block_bytes=BLOCK))
        seen.append(told.error.code if told.error else "delivered")
    assert seen.count("FILE_DELIVERY_UNKNOWN") == 1
    assert set(seen) == {"FILE_DELIVERY_UNKNOWN", "delivered"}


def _rename_first(goal: Any, held: Any, seen: Any, *, features: Any) -> Move:
    """Planted: the name before the verification."""
    held = replace(held, verified=held.verified or held.uploaded)
    return resume.next_move(goal, held, seen, features=features)


def _trust_the_size(goal: Any, held: Any, seen: Any, *, features: Any) -> Move:
    """Planted: what is there is what was sent."""
    there = seen.temp.size_bytes if seen.temp else 0
    held = replace(held, acked_bytes=max(held.acked_bytes, there))
    return resume.next_move(goal, held, replace(seen, window=True), features=features)


def _begin_again(goal: Any, held: Any, seen: Any, *, features: Any) -> Move:
    """Planted: a lost connection costs the whole file."""
    move = resume.next_move(goal, held, seen, features=features)
    return Move(Act.CREATE) if move.act in (Act.CHECK, Act.WRITE) else move


def _overwrite(goal: Any, held: Any, seen: Any, *, features: Any) -> Move:
    """Planted: whatever is there is ours to replace."""
    return resume.next_move(replace(goal, replace=True), held, seen, features=features)


@pytest.mark.parametrize("planted", [_rename_first, _trust_the_size, _begin_again, _overwrite])
def test_a_planted_mistake_is_caught(tmp_path: Path, planted: Any) -> None:
    """The same histories with one wrong decision: one of them must show it."""

    def histories() -> None:
        for call in range(1, 30):
            for what in ("cut before", "kill after"):
                server = Crooked(trouble=Trouble({call: what}), hole=True, overwrites=True)
                server.drops = 1 if planted is _rename_first else 0
                policy = Policy(verify="sha256", block_bytes=BLOCK)
                before = FOREIGN if planted is _overwrite else None
                told = deliver(tmp_path, server, content_of(80), policy=policy, before=before)
                assert told.error is None or planted is _overwrite
                assert server.sent_bytes - 80 * (1 + (planted is _rename_first)) <= BLOCK
                if planted is _trust_the_size:
                    assert "send.mismatches" not in told.run.facts

    histories()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delivery, "next_move", planted)
        with pytest.raises(AssertionError):
            histories()


# --- an attempt that was frozen -------------------------------------------------------------------
class Frozen:
    """The view of a server, and the run, of an attempt that stands still at its n-th call until
    ``thaw``: before it is done, or before its answer is read."""

    def __init__(self, server: Crooked, run: Run, *, at: int, answered: bool) -> None:
        self._server, self._run, self._at, self._answered = server, run, at, answered
        self._calls = 0
        self.stands, self.thaw = asyncio.Event(), asyncio.Event()
        self.features = server.features
        self.place = server.place

    async def _call(self, what: Any) -> Any:
        self._calls += 1
        here = self._calls == self._at
        found = await what() if here and self._answered else None
        if here:
            self.stands.set()
            await self.thaw.wait()
        return found if here and self._answered else await what()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Frozen]:
        yield self

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._server, name)
        if name not in ("look", "rename", "remove", "digest"):
            return found
        return lambda *args, **kwargs: self._call(partial(found, *args, **kwargs))

    async def write(self, *args: Any, **kwargs: Any) -> AsyncGenerator[int, None]:
        await self._call(_nothing)
        async for acked in self._server.write(*args, **kwargs):
            yield acked
            await self._call(_nothing)

    async def read(self, *args: Any, **kwargs: Any) -> AsyncGenerator[bytes, None]:
        await self._call(_nothing)
        async for piece in self._server.read(*args, **kwargs):
            yield piece

    def load(self) -> bytes | None:
        return self._run.load()

    async def save(self, checkpoint: bytes, **told: Any) -> None:
        await self._call(_nothing)
        if self._run.attempt != 1:
            raise StaleLeaseError("another attempt has begun")
        await self._run.save(checkpoint, **told)
        await self._call(_nothing)


async def _nothing() -> None:
    pass


async def overtaken(tmp_path: Path, features: resume.FileFeatures, at: int, answered: bool) -> bool:
    """The first attempt is frozen at a call, the second delivers, the first wakes up; whether it
    came that far."""
    content = content_of(40)
    path = tmp_path / "sealed"
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    manifest = Manifest(path, NAME, len(content), digest)
    server, run = Crooked(features=features), Run(tmp_path, Trouble())
    frozen = Frozen(server, run, at=at, answered=answered)
    late = Run(tmp_path, Trouble())
    late.load, late.save = frozen.load, frozen.save  # type: ignore[method-assign]
    policy = Policy(replace=True, marker=".done", block_bytes=BLOCK)
    retry = Retry(attempts=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(send, "read_manifest", lambda spool: manifest)
        first = asyncio.create_task(send.SendStep(frozen, policy=policy, retry=retry).run(late))  # type: ignore[arg-type]
        standing = asyncio.create_task(frozen.stands.wait())
        await asyncio.wait({first, standing}, return_when=asyncio.FIRST_COMPLETED)
        if first.done():
            standing.cancel()
            await first
            return False
        run.attempt = 2
        await send.SendStep(server, policy=policy, retry=retry).run(run)
        frozen.thaw.set()
        with suppress(DulyError):
            await first
    assert bytes(server.files[NAME]) == content
    assert server.files[f"{NAME}.done"].decode() == f"{digest}  {NAME}\n"
    return True


@pytest.mark.parametrize("replaces", [True, False])
@pytest.mark.parametrize("answered", [True, False])
async def test_an_attempt_that_wakes_up_late_takes_nothing_away(
    tmp_path: Path, replaces: bool, answered: bool
) -> None:
    """Wherever it was frozen: the file and its marker are those of the one after it."""
    features = replace(ALL, replaces=replaces)
    at = 1
    while await overtaken(tmp_path, features, at, answered):
        at += 1
    assert at > 20, "it was frozen at every call"
