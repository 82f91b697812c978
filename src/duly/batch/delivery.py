"""One file on its way to its final name, over one connection after another.

Owns the doing of the moves that ``kernel.resume`` decides, and the checkpoint they leave.  The
invariants: what a move relies on is stored before the move is made (a name before it is used, a
verification before the rename), so that a process killed anywhere leaves a state that the next one
can judge; and a block counts as sent only when the other side has answered it.  How often a
connection is made again belongs to ``send``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from duly.batch.steps import StepContext, StopAtCheckpoint
from duly.errors import FileTargetError, OutcomeUnknownError
from duly.kernel import failpoints
from duly.kernel.resume import Act, Goal, Held, Move, Remote, Seen, Way, next_move
from duly.targets import FileSession, ReadAt

__all__ = ["BLOCK_BYTES", "WINDOW_BYTES", "Delivery", "Policy", "Sealed", "Verify", "matches"]

BLOCK_BYTES = 24 << 20  # at most this much is sent again after a crash
WINDOW_BYTES = 1 << 20
MOVES_MAX = 60

Verify = Literal["size", "tail", "sha256", "read-back"]


class Sealed(Protocol):
    """A finished file of this run: what the manifest says of it."""

    @property
    def path(self) -> Path:
        """Where it lies, whatever it is called there."""
        ...

    @property
    def name(self) -> str:
        """Its final name."""
        ...

    @property
    def size_bytes(self) -> int:
        """Its length."""
        ...

    @property
    def sha256(self) -> str:
        """Of all its bytes, in hex."""
        ...

    @property
    def rows(self) -> int:
        """How many it holds."""
        ...


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What a job asks of a delivery. verify: the least that must be shown before the file gets its
    name. replace: whether another file of that name may be replaced. marker: what is appended to
    the name for a second file, written last; empty for none.
    """

    verify: Verify = "tail"
    replace: bool = False
    marker: str = ""
    block_bytes: int = BLOCK_BYTES


class _Kept(msgspec.Struct, kw_only=True):
    """The checkpoint. sha256: of the bytes that ``held`` is about."""

    sha256: str
    held: dict[str, Any]
    names: int = 0


class Delivery:
    """One file of one attempt. read: of the local file. held: what the last checkpoint says."""

    def __init__(
        self, context: StepContext, policy: Policy, sealed: Sealed, *, read: ReadAt
    ) -> None:
        self._context, self._policy, self._sealed, self._read = context, policy, sealed, read
        self._names = 0
        self.held = self._restored(context.load())
        self._found = Seen()
        self._moves: dict[Act, Callable[[FileSession, Move], Awaitable[None]]] = {
            Act.CLAIM: self._claim,
            Act.CLAIMED: self._claimed,
            Act.CREATE: self._create,
            Act.CHECK: self._check,
            Act.WRITE: self._write,
            Act.VERIFY: self._verify,
            Act.DISCARD: self._discard,
            Act.COMPARE: self._compare,
            Act.ADOPT: self._adopt,
            Act.UNMARK: self._unmark,
            Act.RENAME: self._rename,
            Act.RESTORE: self._restore,
            Act.TIDY: self._tidy,
            Act.MARK: self._mark,
        }

    async def drive(self, session: FileSession) -> None:
        """Go on until it is delivered. Raises what a session raises, FileTargetError,
        OutcomeUnknownError, StopAtCheckpoint, StaleLeaseError.
        """
        self._found = Seen()
        if not self.held.published:
            told = asdict(session.features)
            self._context.fact("send.server", ", ".join(one for one, has in told.items() if has))
        for _ in range(MOVES_MAX):
            if self._context.stopping:
                raise StopAtCheckpoint
            await self._look(session)
            move = next_move(self._goal, self.held, self._found, features=session.features)
            if move.act is Act.DONE:
                return
            if move.act in (Act.REFUSE, Act.UNKNOWN):
                await self._give_up(move)
            await self._moves[move.act](session, move)
        text = f"{self._sealed.name} after {MOVES_MAX} moves"
        raise FileTargetError(text, code="FILE_TARGET_UNSETTLED")

    @property
    def _goal(self) -> Goal:
        sealed, marker = self._sealed, self._policy.marker
        return Goal(
            sealed.name,
            self._own_name(),
            sealed.size_bytes,
            replace=self._policy.replace,
            marker=sealed.name + marker if marker else "",
        )

    def _own_name(self, ending: str = "part") -> str:
        """A hidden name that no other run and no other attempt uses."""
        number = f"{self._context.attempt}" + (f"-{self._names}" if self._names else "")
        return self._run_name(f"{number}.{ending}")

    def _run_name(self, ending: str) -> str:
        run = sha256(self._context.instance.encode()).hexdigest()[:8]
        return f".{self._sealed.name}.{run}-{ending}"

    # --- what is held -----------------------------------------------------------------------------
    def _restored(self, checkpoint: bytes | None) -> Held:
        if checkpoint is None:
            return Held()
        kept = msgspec.json.decode(checkpoint, type=_Kept)
        held = Held(**kept.held)
        if kept.sha256 == self._sealed.sha256:
            self._names = kept.names
            return held
        if held.published:
            return Held()
        # Bytes of another content are of no use, but they are to be cleared away.
        return Held(temp=held.temp, claim=held.claim, stale=True, aside=held.aside)

    async def _keep(self, held: Held) -> None:
        """Store a new state; it is in force when this returns."""
        kept = _Kept(sha256=self._sealed.sha256, held=asdict(held), names=self._names)
        done = self._sealed.rows if held.published else 0
        await self._context.save(
            msgspec.json.encode(kept), rows=done, size_bytes=max(0, held.acked_bytes)
        )
        self.held = held

    def _find(self, **changes: Any) -> None:
        self._found = replace(self._found, **changes)

    async def _look(self, session: FileSession) -> None:
        """What the names show; nothing is asked for a name that is not in use."""
        held, goal = self.held, self._goal
        if held.published:
            return
        self._find(
            temp=await session.look(held.temp) if held.temp else None,
            claim=await session.look(held.claim) if held.claim else None,
            final=await session.look(goal.name),
        )
        marker = await session.look(goal.marker) if goal.marker and held.verified else None
        self._find(marker=marker, says=await self._says(session, marker))

    async def _give_up(self, move: Move) -> None:
        if move.forget:
            await self._keep(Held(aside=self.held.aside))
        if move.act is Act.UNKNOWN:
            raise OutcomeUnknownError(move.detail, code="FILE_DELIVERY_UNKNOWN")
        raise FileTargetError(move.detail, code=move.code)

    # --- the temporary file -----------------------------------------------------------------------
    async def _claim(self, session: FileSession, move: Move) -> None:
        await self._keep(replace(self.held, claim=self._goal.temp))
        try:
            await session.rename(self.held.temp, self._goal.temp, replace=False)
        except FileTargetError:  # bytes under a name that another may still use are given up
            await self._discard(session, move)
        else:
            await self._claimed(session, move)

    async def _claimed(self, session: FileSession, move: Move) -> None:
        await self._keep(replace(self.held, temp=self.held.claim, claim=""))

    async def _create(self, session: FileSession, move: Move) -> None:
        kept = self.held
        await self._keep(Held(self._goal.temp, failures=kept.failures, aside=kept.aside))
        await self._write(session, move)

    async def _write(self, session: FileSession, move: Move) -> None:
        """Send, and store how far it is answered while the next step is on its way."""
        size, step = self._sealed.size_bytes, max(1, self._policy.block_bytes // 3)
        self._find(window=True)
        sent = session.write(
            self.held.temp, self._read, size_bytes=size, offset=move.offset, step_bytes=step
        )
        saving: asyncio.Task[None] | None = None
        try:
            async with aclosing(sent):
                async for acked in sent:
                    whole = acked == size  # told after the file was closed
                    failpoints.hit(
                        failpoints.BATCH_UPLOADED if whole else failpoints.BATCH_BLOCK_ACKED
                    )
                    self._context.progress(rows=0, size_bytes=acked, total_bytes=size)
                    if saving is not None:
                        await saving
                    state = replace(self.held, acked_bytes=acked, uploaded=whole)
                    saving = asyncio.create_task(self._keep(state))
                    if self._context.stopping:
                        raise StopAtCheckpoint
        finally:
            if saving is not None:
                await saving

    async def _check(self, session: FileSession, move: Move) -> None:
        start = max(0, move.offset - WINDOW_BYTES)
        readable = session.features.reads
        self._find(window=not readable or await self._equal(session, start, move.offset - start))

    async def _discard(self, session: FileSession, move: Move) -> None:
        await self._spoiled(self.held.failures)
        try:
            await session.remove(self.held.temp)
        except FileTargetError:  # it stays there, under a name that is not used again
            self._names += 1
            self._context.fact("send.left", self.held.temp)
        self._find(window=None)
        await self._keep(Held(failures=self.held.failures, aside=self.held.aside))

    async def _spoiled(self, failures: int) -> None:
        """What was sent is of no use: known before it is removed, as the answer may be lost."""
        kept = self.held
        if not kept.stale:
            await self._keep(Held(kept.temp, stale=True, failures=failures, aside=kept.aside))

    # --- verification -----------------------------------------------------------------------------
    async def _verify(self, session: FileSession, move: Move) -> None:
        there = self._found.temp
        level = await self._level(session, there) if there else None
        if level is None:
            self._context.fact("send.mismatches", self.held.failures + 1)
            await self._spoiled(self.held.failures + 1)
        else:
            self._context.fact("send.verified", level)
            await self._keep(replace(self.held, verified=True))
            failpoints.hit(failpoints.BATCH_VERIFIED)

    async def _level(self, session: FileSession, there: Remote) -> str | None:
        """How far the uploaded file was shown to be ours; None: it is not."""
        sealed, wanted = self._sealed, self._policy.verify
        if there.size_bytes != sealed.size_bytes:
            return None
        if wanted == "size":
            return wanted
        if wanted == "sha256" and (digest := await session.digest(self.held.temp)) is not None:
            return "server-hash" if digest == sealed.sha256 else None
        if not session.features.reads:
            text = f"the server shows no more than the size of {sealed.name}, not {wanted}"
            raise FileTargetError(text, code="FILE_VERIFY_UNSUPPORTED")
        size = min(WINDOW_BYTES, sealed.size_bytes) if wanted == "tail" else sealed.size_bytes
        same = await self._equal(session, sealed.size_bytes - size, size)
        return ("tail" if wanted == "tail" else "read-back") if same else None

    async def _equal(self, session: FileSession, offset: int, size: int) -> bool:
        span = range(offset, offset + size)
        return await matches(session, self.held.temp, self._read, span=span)

    async def _compare(self, session: FileSession, move: Move) -> None:
        """Judge the final name: the answer to a rename may have been lost."""
        name, sealed = self._sealed.name, self._sealed
        digest = await session.digest(name)
        if digest is not None:
            level, same = "server-hash", digest == sealed.sha256
        elif session.features.reads:
            whole = range(sealed.size_bytes)
            level, same = "read-back", await matches(session, name, self._read, span=whole)
        else:  # the size is ours, and what we had verified is gone from its own name
            level, same = "size", self.held.verified and self._found.temp is None
        self._find(same=same)
        if same:
            self._context.fact("send.verified", level)

    # --- the final name ---------------------------------------------------------------------------
    async def _adopt(self, session: FileSession, move: Move) -> None:
        if self._found.temp is not None:  # some servers rename by a second link
            await session.remove(self.held.temp)
        self._context.fact("send.published", "found")
        await self._published()

    async def _published(self) -> None:
        size = self._sealed.size_bytes
        await self._keep(replace(self.held, published=True, temp="", acked_bytes=size))

    async def _unmark(self, session: FileSession, move: Move) -> None:
        await self._keep(self.held)  # nobody has come after us, whose marker it would be
        await session.remove(self._goal.marker)

    async def _rename(self, session: FileSession, move: Move) -> None:
        way, name, taken = move.way, self._sealed.name, self._found.final is not None
        old, new = self.held.temp, name
        if way is Way.ASIDE:
            await self._keep(replace(self.held, aside=self._own_name("old")))
            old, new = name, self.held.aside
        self._find(same=None)
        try:
            await session.rename(old, new, replace=way is Way.ATOMIC)
        except FileTargetError:
            assert way is not None
            self._find(refused=self._found.refused | {(way, taken)})
            return
        if way is Way.ASIDE:
            return
        failpoints.hit(failpoints.BATCH_RENAMED)
        assert way is not None
        self._context.fact("send.published", "set aside" if self.held.aside else way.value)
        await self._published()

    async def _restore(self, session: FileSession, move: Move) -> None:
        await session.rename(self.held.aside, self._sealed.name, replace=False)
        await self._keep(replace(self.held, aside=""))

    async def _tidy(self, session: FileSession, move: Move) -> None:
        await session.remove(self.held.aside)
        await self._keep(replace(self.held, aside=""))

    async def _mark(self, session: FileSession, move: Move) -> None:
        """Write the marker. Nothing here takes away one that says the same: who wakes up late in
        the middle of it changes nothing.
        """
        marker, there = self._goal.marker, await session.look(self._goal.marker)
        if not await self._says(session, there):
            temp = await self._marker_file(session)
            replaces = session.features.replaces
            if there is not None and not replaces:
                await session.remove(marker)
            await self._keep(self.held)  # nobody has come after us
            await session.rename(temp, marker, replace=replaces and there is not None)
        failpoints.hit(failpoints.BATCH_MARKED)
        await self._keep(replace(self.held, marked=True))

    async def _marker_file(self, session: FileSession) -> str:
        """What becomes the marker, under a name of this attempt's."""
        temp, text = self._own_name("mark"), self._marker_text
        if self.held.temp not in ("", temp):
            await session.remove(self.held.temp)  # of the attempt before
        await self._keep(replace(self.held, temp=temp))
        sent = session.write(
            temp, _reader(text), size_bytes=len(text), offset=0, step_bytes=len(text)
        )
        async with aclosing(sent):
            async for _ in sent:
                pass
        return temp

    @property
    def _marker_text(self) -> bytes:
        return f"{self._sealed.sha256}  {self._sealed.name}\n".encode()

    async def _says(self, session: FileSession, there: Remote | None) -> bool:
        """Whether the marker is the one of this content; of a server that shows nothing, no."""
        text = self._marker_text
        if there is None or there.size_bytes != len(text) or not session.features.reads:
            return False
        try:
            return await matches(session, self._goal.marker, _reader(text), span=range(len(text)))
        except FileTargetError:  # the receiver has taken it
            return False


def _reader(text: bytes) -> ReadAt:
    return lambda offset, size: text[offset : offset + size]


async def matches(session: FileSession, name: str, read: ReadAt, *, span: range) -> bool:
    """Whether the bytes of a remote file over ``span`` are those of a local one."""
    place = span.start
    pieces = session.read(name, offset=place, size_bytes=len(span))
    async with aclosing(pieces):
        async for piece in pieces:
            if piece != read(place, len(piece)):
                return False
            place += len(piece)
    return place == span.stop
