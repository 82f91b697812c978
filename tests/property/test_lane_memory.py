"""Order per key under every interleaving that chance finds, without a database or a clock.

The model: a table with statuses and holds as the SQL keeps them, and the reader's kinds of work cut
into their asynchronous halves (a read *begins* and *ends*; between the two anything may happen).
Writers draw ids and commit later, in any order - but one writer per key, as the stripe locks have
it.  A run picks halves at random, lets deliveries fail, be unknown or stall, sweeps, loses and
takes lanes, and must end with every row delivered, each key in the order of its ids.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from duly.runtime.floor import Writers
from duly.runtime.memory import LaneMemory
from duly.runtime.work import Row, Verdict, VerdictKind

LANES = 4
K = VerdictKind


class Keyed:
    """Work that is never called; only its keys are asked for."""

    box = scope = "outbox"
    group = ""
    batch_max = in_flight_max = 10

    def order_key(self, row: Row) -> tuple[str, str] | None:
        return None if row.key is None else (row.topic, row.key)

    wave_key = order_key


class World:
    """The table, the reader's memory, and what is under way."""

    def __init__(self, seed: int, *, forget_epoch: bool = False, by_cursor: bool = False) -> None:
        self.chance = random.Random(seed)
        self.memory = LaneMemory(Keyed())  # type: ignore[arg-type]
        self.rows: dict[int, Row] = {}
        self.holds: dict[tuple[str, str], int | None] = {}
        self.delivered: list[Row] = []
        self.next_id = 1
        self.reads: list[Callable[[], None]] = []
        self.waves: list[list[Row]] = []
        self.stores: list[Callable[[], None]] = []  # one writing connection: answers come in order
        self.storing: set[str] = set()
        self.forget_epoch, self.by_cursor = forget_epoch, by_cursor
        self.cursor = 0
        self.writing: dict[int, Row] = {}
        self.sweep_soon = False

    # --- the table --------------------------------------------------------------------------------
    def insert(self) -> bool:
        """Draw an id; the row is not visible before ``commit``. A key has one writer at a time."""
        key = self.chance.choice([None, "a", "b", "c", "d"])
        if key is not None and key in {row.key for row in self.writing.values()}:
            return False
        row = Row(
            self.next_id, f"m{self.next_id}", "t", "event", "t", key, 0, b"", "{}", "ready", 0
        )
        lane = hash(key) % LANES if key else self.next_id % LANES
        self.writing[self.next_id] = row._replace(lane=lane)
        self.next_id += 1
        return True

    def commit(self) -> None:
        number = self.chance.choice(list(self.writing))
        self.rows[number] = self.writing.pop(number)
        self.rows = dict(sorted(self.rows.items()))
        self.memory.look_ready = True

    def writers(self) -> Writers:
        flushes = {str(number) for number, row in self.writing.items() if row.key is not None}
        oldest = min(self.writing, default=self.next_id)
        return Writers(frozenset(flushes), oldest, self.next_id)

    def status(self, row: Row, status: str) -> None:
        if row.id in self.rows:
            self.rows[row.id] = self.rows[row.id]._replace(status=status)

    def free(self, rows: Sequence[Row]) -> set[tuple[str, str]]:
        died = set()
        for row in rows:
            key = (row.topic, row.key or "")
            if self.holds.get(key, "") == row.id:
                self.holds[key] = None
            held = any(r.key == row.key and r.status == "held" for r in self.rows.values())
            if self.holds.get(key, "") is None and not held:
                del self.holds[key]
                died.add(key)
        return died

    # --- reading ----------------------------------------------------------------------------------
    def begin_read(self) -> None:
        memory = self.memory
        if self.reads or "sweep" in self.storing:
            return
        lanes, busy = memory.known_lanes, set(memory.busy)
        found: list[Row] = []
        drained = False
        writers = self.writers() if self.chance.random() < 0.7 else None
        complete = True
        if memory.look_due:
            memory.look_due, drained = False, True
            found = [r for r in self.rows.values() if r.status == "retry"]
        elif memory.look_held:
            memory.look_held, drained = False, True
            free = {key for key, blocker in self.holds.items() if blocker is None}
            found = [
                r for r in self.rows.values() if r.status == "held" and (r.topic, r.key) in free
            ]
        elif memory.look_ready:
            memory.look_ready = False
            found = [r for r in self.rows.values() if r.status == "ready"]
            found = [r for r in found if r.id > memory.floor.after]
        else:
            return
        found = [r for r in found if r.lane in lanes and r.id not in busy]
        if not drained:
            limit = self.chance.randint(1, 8)
            complete = len(found) <= limit
            found = found[:limit]
            if self.by_cursor:
                found = [r for r in found if r.id > self.cursor]
        epoch = memory.epoch
        self.reads.append(
            lambda: self.end_read(found, epoch, writers=writers, complete=complete, drained=drained)
        )

    def end_read(
        self,
        found: list[Row],
        epoch: int,
        *,
        writers: Writers | None,
        complete: bool,
        drained: bool,
    ) -> None:
        memory = self.memory
        if epoch != memory.epoch and not self.forget_epoch:
            memory.look_everywhere()
            return
        memory.admit(found, drained=drained)
        if not drained:
            memory.look_ready = memory.look_ready or not complete
            highest = found[-1].id if found else None
            self.cursor = max(self.cursor, highest or 0)
            lowest = min(memory.busy, default=None)
            memory.floor.read(highest, writers, complete=complete, lowest_busy=lowest, now=0.0)

    def sweep(self) -> None:
        if self.reads or "sweep" in self.storing:
            return
        lanes = frozenset(range(LANES))
        held = {(r.topic, r.key) for r in self.rows.values() if r.status == "held"}
        for key in list(self.holds):
            blocker = self.holds[key]
            if blocker is not None and self.rows.get(blocker) is None:
                self.holds[key] = None
            if self.holds[key] is None and key not in held:
                del self.holds[key]
        known = [(topic, key, blocker) for (topic, key), blocker in self.holds.items()]
        self.later("sweep", lambda: self.memory.learn_holds(known, lanes))

    # --- delivering -------------------------------------------------------------------------------
    def take(self) -> None:
        rows = self.memory.take(self.chance.randint(1, 6))
        if rows:
            under_way = [row.key for wave in self.waves for row in wave if row.key]
            keys = [row.key for row in rows if row.key]
            assert len(set(keys)) == len(keys)
            assert not set(keys) & set(under_way)
            self.waves.append(rows)

    def judge(self) -> None:
        wave = self.waves.pop(self.chance.randrange(len(self.waves)))
        verdicts = []
        whole = self.chance.random() < 0.08
        for row in wave:
            kind = K.LATER if whole else self.chance.choices([K.DONE, K.RETRY], [4, 1])[0]
            if kind is K.DONE:
                self.delivered.append(row)
            verdicts.append(Verdict(kind, "X"))
        self.memory.judge(wave, verdicts)

    # --- storing ----------------------------------------------------------------------------------
    def store(self) -> None:
        """Each statement takes effect at once; what the reader learns of it comes later."""
        memory = self.memory
        if memory.settling and "settle" not in self.storing and self.chance.random() < 0.5:
            self.settle([row for row, _ in memory.settling])
        elif "failures" in self.storing:
            return
        elif memory.failing:
            self.fail(memory.failing[0][0])
        elif memory.following:
            self.follow(list(memory.following))

    def settle(self, rows: list[Row]) -> None:
        held = [row for row in rows if self.memory.is_held(row)]
        for row in rows:
            self.rows.pop(row.id, None)
        died = self.free(held)

        def learn() -> None:
            self.memory.holds_died(died)
            self.memory.settled(rows)

        self.later("settle", learn)

    def fail(self, row: Row) -> None:
        self.status(row, "retry")
        if row.key is not None:
            self.holds[row.topic, row.key] = row.id

        def learn() -> None:
            self.memory.failure_stored(row)
            self.memory.holds_died(set())

        self.later("failures", learn)

    def follow(self, rows: list[Row]) -> None:
        marked = [row for row in rows if (row.topic, row.key) in self.holds]
        for row in marked:
            self.status(row, "held")

        def learn() -> None:
            self.memory.followers_stored(rows)
            self.sweep_soon = self.sweep_soon or len(marked) < len(rows)

        self.later("failures", learn)

    def later(self, name: str, learn: Callable[[], None]) -> None:
        self.storing.add(name)

        def end() -> None:
            self.storing.discard(name)
            learn()

        self.stores.append(end)

    def lose_lanes(self) -> None:
        """Only while nothing is under way: the lease outlives every hand-over."""
        if not (self.waves or self.stores or self.memory.failing or self.memory.following):
            self.memory.forget_lanes()

    # --- a run ------------------------------------------------------------------------------------
    def step(self) -> None:
        act = self.chance.random()
        if act < 0.3:
            self.begin_read()
        elif act < 0.5 and self.reads:
            self.reads.pop(0)()
        elif act < 0.65:
            self.take()
        elif act < 0.8 and self.waves:
            self.judge()
        elif act < 0.9:
            self.store()
        elif act < 0.97 and self.stores:
            self.stores.pop(0)()
        elif act < 0.975 or self.sweep_soon:
            self.sweep_soon = False
            self.sweep()
        elif act < 0.98:
            self.lose_lanes()
        else:
            self.memory.look_everywhere()

    def run(self, rows: int) -> None:
        steps = 0
        while rows or self.writing or self.rows or self.memory.busy:
            if rows and self.chance.random() < 0.2:
                rows -= self.insert()
            if self.writing and self.chance.random() < 0.15:
                self.commit()
            self.step()
            steps += 1
            if steps % 500 == 0:
                self.sweep()
                self.cursor = 0
            assert steps < 200_000, f"stuck with {len(self.rows)} rows, holds {self.holds}"

    def order_breaks(self) -> int:
        last: dict[str, int] = {}
        breaks = 0
        for row in self.delivered:
            if row.key is not None:
                breaks += row.id < last.get(row.key, 0)
                last[row.key] = max(last.get(row.key, 0), row.id)
        return breaks


@pytest.mark.parametrize("seed", range(150))
def test_every_row_is_delivered_and_no_follower_overtakes(seed: int) -> None:
    world = World(seed)
    world.run(60)
    assert sorted({row.id for row in world.delivered}) == list(range(1, 61))
    assert world.order_breaks() == 0


@pytest.mark.parametrize("bug", ["forget_epoch", "by_cursor"])
def test_the_model_sees_a_planted_order_break(bug: str) -> None:
    """Reads that are not voided by a put-back; reads that begin at the highest id seen."""
    breaks = 0
    for seed in range(150):
        world = World(seed, **{bug: True})
        world.run(60)
        breaks += world.order_breaks()
    assert breaks > 0


def test_the_floor_moves_and_saves_reading() -> None:
    """Else the tests above would say nothing about it."""
    moved = 0
    for seed in range(20):
        world = World(seed)
        world.run(60)
        moved += world.memory.floor.after > 0 or world.memory.floor._floor > 0
    assert moved >= 8
