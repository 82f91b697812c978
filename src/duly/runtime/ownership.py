"""Which lanes of one scope this node holds, and the slow dance of giving and taking them.

Owns the lane rows of ``duly_lease`` for this node.  A lane is given back only when nothing of it is
under way any more; it is taken only when it is free, which ``kernel.lanes.plan`` decides from the
members alive.  The invariant: ``terms`` answers with a term only while both the member row and the
lane row were ours by the last thing the database said.  Where it did not answer, nobody here knows
whose the lanes are now: the node holds nothing any more and joins anew.
"""

from __future__ import annotations

from collections.abc import Collection

from duly.errors import DatabaseUnavailableError, DulyError, OutcomeUnknownError
from duly.kernel.lanes import fair_share, plan
from duly.kernel.lease import LeaseTerm
from duly.kernel.names import LANES
from duly.observe.facts import LeaseTaken
from duly.observe.hooks import Hooks
from duly.ports import Statement
from duly.runtime.connection import ConnectionThread
from duly.runtime.leases import Beat, LeaseKeeper

__all__ = ["LaneOwnership"]

CHECK_EVERY_BEATS = 20  # a look at the lane rows even when the membership stands still


class LaneOwnership:
    """The lanes of one scope in this node's hands."""

    def __init__(
        self, scope: str, *, keeper: LeaseKeeper, connection: ConnectionThread, hooks: Hooks
    ) -> None:
        self.scope = scope
        self._keeper, self._connection, self._hooks = keeper, connection, hooks
        self._tokens: dict[int, int] = {}
        self._leaving: set[int] = set()
        self._members: tuple[str, ...] = ()
        self._holder = ""
        self._beats = 0
        self._seeded = False

    @property
    def readable(self) -> frozenset[int]:
        """The lanes to read: held and not about to be given back."""
        return frozenset(self._tokens.keys() - self._leaving)

    @property
    def leaving(self) -> frozenset[int]:
        """Lanes that wait to be given back once nothing of them is under way."""
        return frozenset(self._leaving)

    def term(self, lane: int) -> LeaseTerm | None:
        """The term of a lane now, None when it is not ours (any more)."""
        token = self._tokens.get(lane)
        if token is None or self._holder != self._keeper.holder or self._keeper.remaining() == 0.0:
            return None
        return LeaseTerm(f"lane/{self.scope}/{lane}", token, self._keeper.until)

    def remaining(self) -> float:
        """For how many seconds what is held may still be acted on."""
        return self._keeper.remaining() if self._holder == self._keeper.holder else 0.0

    @property
    def holder(self) -> str:
        """Under which name the lanes are held."""
        return self._holder

    def drop_all(self) -> frozenset[int]:
        """Everything was lost; returns what it was."""
        lost = frozenset(self._tokens)
        self._tokens.clear()
        self._leaving.clear()
        self._members = ()
        return lost

    async def rebalance(self, beat: Beat) -> None:
        """After a beat: mark surplus lanes as leaving, take free ones."""
        members = tuple(sorted(beat.members.get(self.scope, ())))
        self._beats += 1
        if members == self._members and self._beats % CHECK_EVERY_BEATS:
            return
        holder = self._keeper.holder
        if not holder or holder not in members:
            return
        self._members = ()  # looked at again unless all goes well
        if not self._seeded:
            await self._connection.ask(
                Statement("lease.seed", {"scope": self.scope, "lanes": LANES})
            )
            self._seeded = True
        rows = (await self._connection.ask(Statement("lease.lanes", {"scope": self.scope}))).rows
        owners = {lane: owner if owner in members else None for lane, owner, _ in rows}
        self._adopt(holder, {lane: token for lane, owner, token in rows if owner == holder})
        steps = plan(frozenset(self._tokens), owners, members, me=holder)
        self._leaving = set(steps.release)
        await self._take(holder, steps.take)
        # What is missing may be on its way: nobody tells when another one has let it go.
        settled = len(self._tokens) == fair_share(len(rows), members, holder)
        self._members = members if settled else ()

    def let_go(self, lanes: Collection[int]) -> Statement:
        """Stop holding lanes of which nothing is under way; returns what ``release`` wants."""
        for lane in lanes:
            self._tokens.pop(lane, None)
            self._leaving.discard(lane)
        values = {"scope": self.scope, "lanes": list(lanes), "holder": self._holder}
        return Statement("lease.release", values)

    async def release(self, let_go: Statement) -> None:
        """Tell the others of lanes that were let go."""
        try:
            await self._connection.ask(let_go)
        except DulyError:
            self._keeper.forfeit()
            raise

    def _adopt(self, holder: str, tokens: dict[int, int]) -> None:
        if holder != self._holder:
            self._holder, self._tokens = holder, {}
            self._leaving.clear()
        self._tokens = {
            lane: token for lane, token in self._tokens.items() if tokens.get(lane) == token
        }

    async def _take(self, holder: str, lanes: Collection[int]) -> None:
        if not lanes:
            return
        values = {"scope": self.scope, "lanes": list(lanes), "holder": holder}
        try:
            rows = (await self._connection.ask(Statement("lease.take", values))).rows
        except (DatabaseUnavailableError, OutcomeUnknownError):
            self._keeper.forfeit()
            raise
        taken = dict(rows)
        if holder != self._keeper.holder:
            return  # lost while asking; they are free for the others as soon as we are buried
        self._tokens |= taken
        if taken:
            self._hooks.emit(
                LeaseTaken(
                    what="lane", names=tuple(f"{self.scope}/{lane}" for lane in sorted(taken))
                )
            )
