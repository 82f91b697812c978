"""The suite that a sink must pass; public, so that anybody can certify one.

Derive a class, give it a fixture named ``target``, and run it with pytest and pytest-asyncio in
auto mode::

    class TestMySink(SinkConformance):
        @pytest.fixture
        def target(self, my_server):
            return Target(make=lambda: MySink(my_server.url), rows=..., empty=..., away=...)

The table has a key ``id`` and the columns ``name`` and ``n``; the sink is fed with all three.  The
invariant: whatever is killed, repeated, late, rewound, lost or emptied on the way, once a stream
has caught up the target holds what the source holds, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

import pytest
from msgspec import structs

from duly.cdc.feeding import Feeding
from duly.cdc.intake import Item, position_of
from duly.cdc.offsets import Offset, SnapshotState, State
from duly.cdc.registry import StreamRules
from duly.errors import GapError, SinkRefusedError, SinkUnavailableError, StaleLeaseError
from duly.kernel.changes import ABSENT, Change, SnapshotChunk, Transaction
from duly.kernel.rules import Rule
from duly.kernel.upserts import Clear, Put, Remove
from duly.sink import Batch, Fed, Feed, Sink
from duly.testing.changes import created, deleted, emptied, snapshot_row, updated

__all__ = ["SinkConformance", "Target"]

TABLE, STREAM = "items", "conformance"
STEPS, IDS = 30, 8
CHUNK = 2
LAZY = 4
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is tested: a target that was never fed.

    make: a sink of it; each one knows nothing of the others. rows: what it holds, each row with
    ``id``, ``name`` and ``n``. empty: take everything from it, as a server does that comes back
    with nothing. away: a sink whose server is not there, with the password ``s3cret``. exact: rows
    and place are stored together. keeps: a value that the log did not carry stays as it is.
    """

    make: Callable[[], Sink]
    rows: Callable[[], Sequence[Row]]
    empty: Callable[[], None]
    away: Callable[[], Sink]
    exact: bool = True
    keeps: bool = False


def row(id_: int, name: str | None, n: int = 0) -> dict[str, Any]:
    """A row of the table."""
    return {"id": id_, "name": name, "n": n}


def project(change: Change) -> Row | None:
    """What the target has of a row: nothing where ``n`` is negative."""
    return change.after if change.after and change.after["n"] >= 0 else None


def held(target: Target) -> list[Row]:
    """The rows of the target by their id."""
    return sorted((dict(one) for one in target.rows()), key=lambda one: int(one["id"]))


def put(id_: int, name: str | None = "a", n: int = 0) -> Put:
    """A whole row."""
    return Put({"id": id_}, row(id_, name, n))


class SinkConformance:
    """The tests. A subclass gives ``target``; histories: how many are tried, each by its seed."""

    histories: ClassVar[int] = 1

    @pytest.fixture
    def target(self) -> Target:
        raise NotImplementedError("give the suite a target")

    async def test_after_any_history_the_target_holds_what_the_source_holds(
        self, target: Target
    ) -> None:
        for seed in range(self.histories):
            history = _History(target, seed)
            await history.play()
            assert held(target) == history.expected(), f"seed {seed}: {history.told}"

    def test_what_is_applied_is_told_with_its_place(self, target: Target) -> None:
        sink = target.make()
        assert sink.look(STREAM) == Fed()
        sink.open(Feed(STREAM, token=1, epoch=3))
        sink.apply(Batch([put(1), put(2), Remove({"id": 1}), put(3, None)], "0007"))
        assert held(target) == [row(2, "a"), row(3, None)]
        assert sink.look(STREAM) == Fed(3, "0007")
        sink.close()
        assert target.make().look(STREAM) == Fed(3, "0007")

    def test_a_clearing_leaves_what_comes_behind_it(self, target: Target) -> None:
        sink = target.make()
        sink.open(Feed(STREAM, token=1, epoch=1))
        sink.apply(Batch([put(1)], "0001"))
        sink.apply(Batch([put(2), Clear(), put(3)], "0002"))
        assert held(target) == [row(3, "a")]

    def test_many_rows_are_one_batch(self, target: Target) -> None:
        sink = target.make()
        sink.open(Feed(STREAM, token=1, epoch=1))
        sink.apply(Batch((put(number, f"{number}") for number in range(1_200)), "0001"))
        assert held(target) == [row(number, f"{number}") for number in range(1_200)]
        sink.apply(Batch([Clear()], "0002"))
        assert held(target) == []

    def test_what_only_an_earlier_epoch_brought_is_swept(self, target: Target) -> None:
        sink = target.make()
        sink.open(Feed(STREAM, token=1, epoch=1))
        sink.apply(Batch([put(1), put(2), put(3)], "0005"))
        sink.open(Feed(STREAM, token=1, epoch=2))
        assert sink.look(STREAM).epoch == 2
        sink.apply(Batch([put(2, "b")], "0001"))
        assert held(target) == [row(1, "a"), row(2, "b"), row(3, "a")]
        sink.apply(Batch([put(3, "c")], "0002", complete=True))
        assert held(target) == [row(2, "b"), row(3, "c")]

    def test_an_older_reader_changes_nothing(self, target: Target) -> None:
        older, newer = target.make(), target.make()
        older.open(Feed(STREAM, token=1, epoch=1))
        older.apply(Batch([put(1, "old")], "0001"))
        newer.open(Feed(STREAM, token=2, epoch=1))
        newer.apply(Batch([put(1, "new"), Remove({"id": 2})], "0002"))
        with pytest.raises((StaleLeaseError, SinkUnavailableError)):
            older.apply(Batch([put(1, "late"), put(2, "late")], "0003"))
        newer.apply(Batch([Remove({"id": 2})], "0003"))
        assert held(target) == [row(1, "new")]
        with pytest.raises(StaleLeaseError):
            older.open(Feed(STREAM, token=1, epoch=1))
        assert newer.look(STREAM) == Fed(1, "0003")

    def test_a_later_epoch_rules_over_a_higher_token(self, target: Target) -> None:
        older, newer = target.make(), target.make()
        older.open(Feed(STREAM, token=9, epoch=1))
        newer.open(Feed(STREAM, token=1, epoch=2))
        newer.apply(Batch([put(1)], "0001"))
        with pytest.raises(StaleLeaseError):
            older.apply(Batch([put(1, "late")], "0002"))
        assert held(target) == [row(1, "a")]

    async def test_a_stream_that_is_not_as_far_is_refused(self, target: Target) -> None:
        target.make().open(Feed(STREAM, token=1, epoch=5))
        feeding = _feeding(target)
        with pytest.raises(GapError) as refused:
            await feeding.begun(Offset("0001", 1, State(epoch=4, fed=4)))
        assert refused.value.code == "SINK_AHEAD"
        for begun in (State(), State(epoch=4, fed=4).anew()):
            assert (await feeding.begun(Offset("0001", 1, begun))).epoch == 6
        feeding.close()

    def test_a_batch_that_breaks_off_can_be_applied_again(self, target: Target) -> None:
        def broken() -> Iterator[Put]:
            yield from (put(number, "b") for number in range(1_200))
            raise ZeroDivisionError

        sink = target.make()
        sink.open(Feed(STREAM, token=1, epoch=1))
        sink.apply(Batch([put(1)], "0001"))
        with pytest.raises(ZeroDivisionError):
            sink.apply(Batch(broken(), "0002"))
        assert target.make().look(STREAM) == Fed(1, "0001")
        if target.exact:
            assert held(target) == [row(1, "a")]
        sink.apply(Batch([Clear(), put(1, "b")], "0002"))
        assert held(target) == [row(1, "b")]

    def test_a_value_that_was_not_carried_is_never_taken_for_null(self, target: Target) -> None:
        sink = target.make()
        sink.open(Feed(STREAM, token=1, epoch=1))
        sink.apply(Batch([put(1, "kept", 1)], "0001"))
        partial = Put({"id": 1}, {"id": 1, "name": ABSENT, "n": 2})
        if target.keeps:
            sink.apply(Batch([partial], "0002"))
            assert held(target) == [row(1, "kept", 2)]
            partial = Put({"id": 2}, partial.row)  # of a row that is not there
        with pytest.raises(SinkRefusedError) as refused:
            sink.apply(Batch([partial], "0003"))
        assert refused.value.code == "ABSENT_VALUE"

    def test_a_sink_that_is_away_says_so_without_secrets(self, target: Target) -> None:
        sink = target.away()
        with pytest.raises(SinkUnavailableError) as away:
            sink.look(STREAM)
        assert "s3cret" not in f"{away.value} {sink.place} {sink!r}"
        sink.close()
        sink.close()


def _feeding(target: Target) -> Feeding:
    rule = Rule("copy", project, (TABLE,), on_snapshot=True)
    sink = target.make()
    return Feeding(StreamRules(STREAM, None, (rule,), sink), sink, lazy=LAZY)


class _History:
    """A source, its log, the row of a stream, and what happens to them, by chance of a seed."""

    def __init__(self, target: Target, seed: int) -> None:
        self._target, self._chance = target, Random(seed)
        self._table: dict[int, dict[str, Any]] = {}
        self._log: list[Transaction] = []
        self._row = Offset("00000000", 0, State(tables={TABLE: SnapshotState()}))
        self._feeding: Feeding | None = None
        self._kept_from = 0  # what was lost cannot be told again
        self.told: list[str] = []

    def expected(self) -> list[Row]:
        """What the target has to hold."""
        return [one for _, one in sorted(self._table.items()) if one["n"] >= 0]

    async def play(self) -> None:
        """Steps by chance, then until all is fed."""
        self._target.empty()
        weighted = {
            self._commit: 8, self._feed: 8, self._kill: 2, self._rewind: 1, self._ask: 1,
            self._lose: 1, self._emptied: 1,
        }  # fmt: skip
        steps = self._chance.choices(list(weighted), list(weighted.values()), k=STEPS)
        for step in steps:
            self.told.append(step.__name__)
            await step()
        while not (self._caught_up() and self._done()):
            await self._feed()
        assert self._feeding is not None
        self._feeding.close()

    # --- the source -------------------------------------------------------------------------------
    async def _commit(self) -> None:
        place = f"{len(self._log) + 1:08d}"
        many = self._chance.choice([1, 1, 2, 3, 6])  # the last is walked while it is applied
        changes = [self._change() for _ in range(many)]
        placed = [structs.replace(c, position=place, ordinal=n) for n, c in enumerate(changes)]
        self._log.append(Transaction("test", place, place, "", None, placed))

    def _change(self) -> Change:
        id_, table = self._chance.randrange(IDS), self._table
        new = row(id_, self._chance.choice(["a", "b", None, "ü'\""]), self._chance.randint(-1, 3))
        if self._chance.random() < 0.03:
            table.clear()
            return emptied(TABLE)
        if id_ not in table:
            table[id_] = new
            return created(TABLE, new)
        before = table.pop(id_)
        if self._chance.random() < 0.3:
            return deleted(TABLE, before)
        other = (id_ + 1) % IDS
        if other not in table and self._chance.random() < 0.4:
            new["id"] = other  # the key changes
        table[new["id"]] = new
        return updated(TABLE, before, new)

    # --- the stream -------------------------------------------------------------------------------
    async def _opened(self) -> Feeding:
        if self._feeding is None:
            feeding = self._feeding = _feeding(self._target)
            self._row = self._row._replace(token=self._row.token + 1)
            self._row = self._row._replace(state=await feeding.begun(self._row))
            self._row = self._row._replace(state=await feeding.open(self._row))
            await self._renew(feeding)
        return self._feeding

    async def _renew(self, feeding: Feeding) -> None:
        """A copy that is due is begun once the stream is as far as the sink."""
        state = self._row.state
        if state.epoch != state.fed and self._row.position >= feeding.had:
            self._row = self._row._replace(state=await feeding.renew(self._row))

    def _caught_up(self) -> bool:
        return int(self._row.position) == len(self._log)

    def _done(self) -> bool:
        return self._row.state.tables[TABLE].done

    async def _feed(self) -> None:
        feeding = await self._opened()
        items: list[Item] = list(self._log[int(self._row.position) :][: self._chance.randint(1, 4)])
        if not items and not self._done():
            chunk = self._chunk()
            items = [chunk]
        if items:
            if not feeding.knows(items[0]):
                self._row = self._row._replace(position=max(self._row.position, feeding.had))
                await self._renew(feeding)
            done = await feeding.apply(items)
            assert done.failed is None, done.failed
            if self._chance.random() < 0.2:
                await self._kill()  # applied, and not stored
                return
            self._stored(done.items[-1])

    def _stored(self, last: Item) -> None:
        state = self._row.state
        if isinstance(last, SnapshotChunk):
            state = state.with_table(TABLE, SnapshotState(last.cursor, last.done))
        self._row = self._row._replace(position=position_of(last), state=state)

    def _chunk(self) -> SnapshotChunk:
        cursor = self._row.state.tables[TABLE].cursor
        last = int(cursor or -1)
        there = [one for id_, one in sorted(self._table.items()) if id_ > last]
        rows, cursor = there[:CHUNK], str(there[:CHUNK][-1]["id"]) if there else cursor
        changes = [snapshot_row(TABLE, dict(one)) for one in rows]
        return SnapshotChunk(TABLE, self._row.position, changes, cursor, len(there) <= CHUNK)

    async def _kill(self) -> None:
        """What the row says is all that is left; the old reader's next write comes late."""
        older, self._feeding = self._feeding, None
        if older is None:
            return
        late = self._log[int(self._row.position) :][:2]
        await self._opened()
        if late:
            with pytest.raises(StaleLeaseError):
                await older.apply(late)
        older.close()

    async def _rewind(self) -> None:
        place = self._chance.randint(self._kept_from, int(self._row.position))
        self._row = self._row._replace(position=f"{place:08d}", state=self._row.state.rewound())
        await self._kill()

    async def _ask(self) -> None:
        """An operator asks for the rows as they are."""
        feeding = await self._opened()
        state = self._row.state.with_table(TABLE, SnapshotState())
        self._row = self._row._replace(state=structs.replace(state, epoch=state.anew().epoch))
        await self._renew(feeding)

    async def _lose(self) -> None:
        """History is lost, and the stream begins anew at the present."""
        for id_ in list(self._table)[::2]:
            del self._table[id_]
        state = structs.replace(self._row.state.anew(), tables={TABLE: SnapshotState()})
        self._kept_from = len(self._log)
        self._row = self._row._replace(position=f"{self._kept_from:08d}", state=state)
        await self._kill()

    async def _emptied(self) -> None:
        self._target.empty()
        self._feeding = None
        await self._opened()
