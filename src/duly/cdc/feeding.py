"""A stream that feeds a sink: what is put there, and which copy it goes on with.

Owns the projection of items to operations, the decision at the start of a reading whether the copy
in the sink is the one that this stream made, and the one thread in which the sink is asked.  The
invariants: a place that the sink says it has is not applied again, and never goes back; a sink that
has less than it was given, or nothing, is filled anew under a later epoch; one that was fed by a
stream that is further than this one is left alone.  Storing the stream's own position, behind the
sink, is the follower's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from msgspec import structs

from duly.cdc.intake import Item, position_of, weight_of
from duly.cdc.offsets import Offset, SnapshotState, State
from duly.cdc.outgoing import Evaluated
from duly.cdc.registry import StreamRules
from duly.errors import GapError, PermanentError, SinkUnavailableError
from duly.kernel.changes import Change, SnapshotChunk, Transaction
from duly.kernel.rules import projected, seen_by
from duly.kernel.upserts import Operation, operations
from duly.sink import Batch, Feed, Sink

__all__ = ["Feeding"]

T = TypeVar("T")
_log = logging.getLogger("duly.cdc")


class Feeding:
    """Feeds the sink of one stream. lazy: from how many changes on a transaction is projected while
    it is applied.
    """

    def __init__(self, rules: StreamRules, sink: Sink, *, lazy: int) -> None:
        self._rules, self._sink, self._lazy = rules, sink, lazy
        (self._rule,) = rules.rules
        self._naming = rules.naming
        self._had = ""  # what the sink said that it has
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"duly-sink-{rules.name}")

    # --- which copy -------------------------------------------------------------------------------
    async def begun(self, offset: Offset) -> State:
        """The state to go on with: of the copy that is there, or of one that is made anew.

        Raises GapError (SINK_AHEAD), SinkUnavailableError, ConfigurationError.
        """
        fed = await self._ask(lambda: self._sink.look(self._rules.name))
        state = offset.state
        if state.fed == 0:  # it begins, and rules over whatever was fed before
            return structs.replace(state, epoch=max(state.epoch, fed.epoch + 1))
        if fed.epoch > state.epoch:
            text = f"{self._sink.place} was fed by a stream {self._rules.name} that was further"
            raise GapError(f"{text}; begin anew by `duly cdc rewind APP start`", code="SINK_AHEAD")
        behind = fed.epoch == state.epoch and fed.place and fed.place < offset.position
        if fed.epoch < state.fed or behind:
            return self._anew(state)
        return state

    def _anew(self, state: State) -> State:
        text = "%s: %s has less than it was given; it is filled anew"
        _log.warning(text, self._rules.name, self._sink.place)
        tables = {**state.tables, **{name: SnapshotState() for name in self._rules.initial()}}
        return structs.replace(state, tables=tables, epoch=state.epoch + 1)

    @property
    def had(self) -> str:
        """What the sink had when it was told who feeds it; nothing of a copy that begins anew."""
        return self._had

    async def open(self, offset: Offset) -> State:
        """Be the one that feeds the sink, for now with the copy that is there if there is one;
        returns the state that says so.

        Raises StaleLeaseError, SinkUnavailableError, ConfigurationError.
        """
        state = offset.state
        fed = await self._ask(lambda: self._sink.look(self._rules.name))
        is_there = state.fed and fed.epoch == state.fed
        return await self._tell(offset, state.fed if is_there else state.epoch)

    async def renew(self, offset: Offset) -> State:
        """Begin the copy that is due: only where the stream has stored that it is as far as the
        sink, which knows from then on of no place. Raises as ``open``.
        """
        return await self._tell(offset, offset.state.epoch)

    async def _tell(self, offset: Offset, epoch: int) -> State:
        feed = Feed(self._rules.name, offset.token, epoch)
        await self._ask(lambda: self._sink.open(feed))
        fed = await self._ask(lambda: self._sink.look(feed.name))  # an older reader is out by now
        self._had = fed.place if fed.epoch == epoch else ""
        return structs.replace(offset.state, fed=epoch)

    # --- putting ----------------------------------------------------------------------------------
    async def apply(self, items: Sequence[Item]) -> Evaluated:
        """Put items into the sink, all at once; where it refuses that, one by one up to the one
        that it does not take. Of those that it has, and others behind them, only the former are
        done. Raises SinkLostError, StaleLeaseError, GapError.
        """
        known = next((n for n, item in enumerate(items) if not self.knows(item)), len(items))
        return await self._ask(lambda: self._apply(items[:known] or items))

    def knows(self, item: Item) -> bool:
        """Whether the sink has it. A chunk is read after all that was applied; what it says is
        never of the past.
        """
        return not isinstance(item, SnapshotChunk) and position_of(item) <= self._had

    async def pass_by(self, position: str) -> None:
        """Tell the sink of a place that is left out."""
        await self._ask(lambda: self._sink.apply(Batch((), position)))

    def close(self) -> None:
        """Let go of the sink, after what is under way."""
        self._thread.submit(self._sink.close)
        self._thread.shutdown(wait=False)

    async def _ask(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _apply(self, items: Sequence[Item]) -> Evaluated:
        try:
            self._put(items)
        except SinkUnavailableError as error:
            return Evaluated((), (), error)
        except PermanentError as error:
            if len(items) == 1:
                return Evaluated((), (), error)
        else:
            return Evaluated(items, ())
        for number in range(len(items)):
            done = self._apply(items[number : number + 1])
            if done.failed is not None:
                return Evaluated(items[:number], (), done.failed)
        return Evaluated(items, ())

    def _put(self, items: Sequence[Item]) -> None:
        chunks = [item for item in items if isinstance(item, SnapshotChunk)]
        complete = any(chunk.done and self._naming.of(chunk.table) for chunk in chunks)
        given = self._operations(items)
        if sum(map(weight_of, items)) < self._lazy:
            given = iter(list(given))  # nothing is begun where a projection raises
        # Killed again on the way to what it has, a sink would not know of the rest any more.
        place = max(position_of(items[-1]), self._had)
        self._sink.apply(Batch(given, place, complete))

    def _operations(self, items: Sequence[Item]) -> Iterator[Operation]:
        for item in items:
            if isinstance(item, str) or self.knows(item):
                continue
            changes = item.changes if isinstance(item, Transaction) else item.rows
            seen = seen_by(self._rule, changes, self._naming)
            yield from operations(seen, self._project)

    def _project(self, change: Change) -> Mapping[str, Any] | None:
        return projected(self._rule, change)
