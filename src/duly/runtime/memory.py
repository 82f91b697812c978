"""What a lane reader has in memory, and the rules by which rows come and go.

Every row in memory is ``busy`` from the read until it is settled, stored as failed, or put back.
Putting back is only forgetting: the row is still in its table, and the next read finds it.

    read --admit--> queued --take--> under way --judge--> settling   -> gone
                                                          failing    -> gone (its table knows)
                                                          put back   -> gone, read again
    a row whose key is held is not queued, or not taken: it goes to ``following`` and is marked

The invariants, on which order per key rests:

* a row of a held key is taken only when it was *drained* (read as due, or as the key's oldest);
* after a failure its followers leave the queue before the next row of the key could be taken;
* when a row is put back, everything that could overtake it is put back too, and a read that began
  before is void (``epoch``);
* rows of a lane are admitted only after the holds of that lane were learned;
* a row that stops being busy without being settled voids the reads that left it out for being busy,
  and what was not stored when the lanes were lost (``era``) is not stored under the next lease.

Pure: told what was read and how it ended, asked what may go.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from duly.kernel.waves import Waves
from duly.runtime.box import Key
from duly.runtime.floor import Floor
from duly.runtime.work import LaneWork, Row, Verdict, VerdictKind

__all__ = ["FACTS", "LaneMemory"]

K = VerdictKind
FACTS = (K.DONE, K.UNROUTED, K.SETTLED)
_DONE = K.DONE  # asked for every row, and an Enum answers slowly
_STORED = (K.RETRY, K.WAIT, K.FAILED, K.HELD)


class LaneMemory:
    """The rows of one lane reader. work: says what the order keys are."""

    def __init__(self, work: LaneWork) -> None:
        self._order_key = work.order_key
        self._waves: Waves[Row] = Waves(work.wave_key)
        self.floor = Floor()
        self.busy: dict[int, Row] = {}
        self.settling: list[tuple[Row, str]] = []
        self.failing: list[tuple[Row, Verdict]] = []
        self.following: list[Row] = []
        self.freeing: list[Row] = []  # settled by the work; what they blocked is not free yet
        self.epoch = self.era = 0
        self.look_ready = True
        self.look_due = self.look_held = False
        self._drained: set[int] = set()
        self._holds: set[Key] = set()
        self._known: frozenset[int] = frozenset()
        self._learning: frozenset[int] = frozenset()

    @property
    def queued(self) -> int:
        """How many rows wait for their turn."""
        return len(self._waves)

    @property
    def known_lanes(self) -> frozenset[int]:
        """The lanes whose holds were learned; no others may be read."""
        return self._known

    @property
    def holding(self) -> bool:
        """Whether keys are on hold: an owner before may yet settle what blocks them."""
        return bool(self._holds)

    @property
    def idle(self) -> bool:
        """Nothing is here, and nothing is known to be in the table."""
        return not (self.busy or self.look_ready or self.look_due or self.look_held)

    # --- reading ----------------------------------------------------------------------------------
    def look_everywhere(self, *, from_start: bool = False) -> None:
        """Whatever is in the table may have changed. from_start: also what reads left out."""
        if from_start:
            self.floor.reset()
        self.look_ready = self.look_due = self.look_held = True

    def admit(self, rows: Iterable[Row], *, drained: bool) -> None:
        """Queue what was read. drained: due retries and the oldest held rows of free keys."""
        unstored = self._in_question() if drained else ()
        fresh = [
            row
            for row in rows
            if row.id not in self.busy and not (unstored and self._order_key(row) in unstored)
        ]
        self.busy.update((row.id, row) for row in fresh)
        if drained:
            self._drained.update(row.id for row in fresh)
        elif self._holds:  # what follows a blocker never waits in the queue, however much it is
            self.following += [row for row in fresh if self._order_key(row) in self._holds]
            fresh = [row for row in fresh if self._order_key(row) not in self._holds]
        self._waves.offer(fresh)

    def put_back(self, rows: Sequence[Row]) -> None:
        """Forget rows that are not queued (any more)."""
        self._forget(rows)
        if rows:
            self.epoch += 1
            self.floor.lower(min(row.id for row in rows))
            self.look_everywhere()

    def put_back_queued(self, unwanted: Callable[[Row], bool] = lambda _: True) -> None:
        """Forget queued rows."""
        self.put_back(self._waves.forget(unwanted))

    # --- holds ------------------------------------------------------------------------------------
    def learning(self, lanes: Collection[int]) -> None:
        """The holds of these lanes are being asked for; one that goes meanwhile is not learned."""
        self._learning = frozenset(lanes)

    def learn_holds(self, holds: Iterable[tuple[str, str, int | None]]) -> None:
        """The holds of the lanes of ``learning``, as in the table now: (topic, key, blocker).

        What is queued goes back: a hold that is gone may have had a follower that is not here.
        """
        held = list(holds)
        self._holds = {(topic, key) for topic, key, _ in held} | self._in_question()
        self._known = self._learning
        self.epoch += 1
        self.put_back_queued()
        self.floor.reset()
        self.look_ready = self.look_due = True
        self.look_held = any(blocker is None for _, _, blocker in held)

    def forget_lanes(self) -> None:
        """All lanes are gone. What is under way ends and is settled by (id, message_id); everything
        else about these rows is up to their next owner.
        """
        self.put_back_queued()
        self._forget([row for row, _ in self.failing] + self.following)
        self.failing, self.following = [], []
        self.era += 1
        self.epoch += 1
        self.floor.forget()
        self._holds.clear()
        self._known = self._learning = frozenset()

    def keep(self, lanes: Collection[int]) -> None:
        """Only these lanes may be read now. What is being read of others is void, and should they
        come back, be it without ever having been given away, their holds are learned and their rows
        read anew: what was queued of them was put back, and reads have gone on above it.
        """
        readable = frozenset(lanes)
        self._learning &= readable
        if not self._known <= readable:
            self._known &= readable
            self.epoch += 1

    def holds_died(self, keys: Collection[Key]) -> None:
        """These holds are gone from the table, and others may be free to drain."""
        self._holds -= set(keys) - self._in_question()
        self.look_held = True

    @property
    def freeing_any(self) -> bool:
        """Whether ``is_held`` may be true of any row."""
        return bool(self._drained or self._holds)

    def is_held(self, row: Row) -> bool:
        """Whether settling this row may free others."""
        return row.key is not None and (
            row.id in self._drained or (row.topic, row.key) in self._holds
        )

    def _in_question(self) -> set[Key]:
        """Keys with a failure or follower not stored yet: held, whatever the table says."""
        rows = [row for row, _ in self.failing] + self.following
        return {key for row in rows if (key := self._order_key(row)) is not None}

    # --- going and ending -------------------------------------------------------------------------
    def take(self, most: int, *, ours: Callable[[int], bool] | None = None) -> list[Row]:
        """Rows that may go now. ours: whether a lane may still be worked on; None: all of them."""
        rows = self._waves.take(most)
        if not self._holds and ours is None:
            return rows
        going, lost = [], []
        for row in rows:
            key = self._order_key(row)
            if key is not None and key in self._holds and row.id not in self._drained:
                self.following.append(row)
            elif ours is not None and not ours(row.lane):
                lost.append(row)
            else:
                going.append(row)
                continue
            self._waves.finish([row])
        self.put_back(lost)
        return going

    def judge(self, rows: Sequence[Row], verdicts: Sequence[Verdict]) -> list[Row]:
        """Take in how rows ended; returns those that were put back."""
        later: list[Row] = []
        keys_over: set[Key] = set()  # of these nothing more is stored: what comes first is not done
        for row, verdict in zip(rows, verdicts, strict=True):
            if verdict.kind is _DONE:
                self.settling.append((row, "sent"))
            elif verdict.kind is K.UNROUTED:
                self.settling.append((row, "unrouted"))
            elif verdict.kind is K.SETTLED:
                self._settled(row)
            else:
                key = self._order_key(row)
                if verdict.kind in _STORED and key not in keys_over:
                    self._failed(row, verdict)
                else:
                    later.append(row)
                if key is not None:
                    keys_over.add(key)
        if later:
            topics = {row.topic for row in later}
            whole = any(verdict.kind is K.LATER for verdict in verdicts)
            self.put_back(later)
            self.put_back_queued(lambda row: whole or row.topic in topics)
        self._waves.finish(rows)
        return later

    def _settled(self, row: Row) -> None:
        if self.is_held(row):
            self.freeing.append(row)
        else:
            self._forget([row])

    def _failed(self, row: Row, verdict: Verdict) -> None:
        self.failing.append((row, verdict))
        key = self._order_key(row)
        if key is None:
            return
        self._holds.add(key)
        self.epoch += 1
        followers = self._waves.forget(lambda other: self._order_key(other) == key)
        self.following.extend(other for other in followers if other.id not in self._drained)
        self._forget(other for other in followers if other.id in self._drained)

    # --- stored -----------------------------------------------------------------------------------
    def settled(self, rows: Collection[Row]) -> None:
        """These rows of ``settling`` (the first ones) are settled in the table."""
        del self.settling[: len(rows)]
        self._forget(rows)

    def failure_stored(self, row: Row) -> None:
        """The first of ``failing`` is stored; an earlier drain may have read a follower."""
        if self.failing and self.failing[0][0] is row:  # else the lanes were lost meanwhile
            del self.failing[0]
            self._forget([row])
        self.epoch += 1
        self.look_held = True

    def followers_stored(self, rows: Sequence[Row]) -> None:
        """The first ones of ``following`` are marked, or their holds have died; what was drained
        of their keys meanwhile was not admitted.
        """
        if self.following and self.following[0] is rows[0]:
            del self.following[: len(rows)]
            self._forget(rows)
        self.epoch += 1
        self.look_held = True

    def freed(self, rows: Collection[Row], died: Collection[Key]) -> None:
        """What the first ones of ``freeing`` blocked is free."""
        del self.freeing[: len(rows)]
        self._forget(rows)
        self.holds_died(died)

    def _forget(self, rows: Iterable[Row]) -> None:
        pop, drained = self.busy.pop, self._drained
        for row in rows:
            pop(row.id, None)
            if drained:
                drained.discard(row.id)
