"""The reading thread of a subscription: what is free to claim first, then what is new.

``Reader`` serves groups without order: many receivers share the streams, and what one of them has
left idle for a lease is claimed. ``OrderedReader`` reads a stream only while it holds the lease on
it, in one step with the proof that it does, and begins with all that is pending, in order.
Invariant: no more is read than the hand has room for.  Leaves out acknowledging (``keeper``).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from duly.brokers.redis.entries import Part
from duly.brokers.redis.hand import Hand
from duly.brokers.redis.lane import Arrived, Lane, Source
from duly.brokers.redis.link import CALL_SECONDS, Link, boot_seconds
from duly.brokers.redis.scripts import ACQUIRE, FENCED, SURRENDER, run
from duly.errors import DulyError

__all__ = ["OrderedReader", "Reader", "make_reader"]

Deliver = Callable[[list[Arrived]], None]
PAUSE_SECONDS = 2.0
RETRY_SECONDS = 0.2
WAIT_SECONDS = 1.0
COUNT_MAX = 1_000
_START = b"0-0"

_log = logging.getLogger("duly.brokers.redis")


class Reader:
    """Reads for a group without order. deliver: called in the thread with what came."""

    def __init__(self, lane: Lane, hand: Hand, deliver: Deliver) -> None:
        self._lane, self._hand, self._deliver = lane, hand, deliver
        self._link = Link(lane.settings, purpose=f"reading for {lane.group}")
        self._lease_seconds = lane.settings.lease_seconds
        self._each_seconds = min(WAIT_SECONDS, self._lease_seconds / 3)
        self._claim_at = 0.0
        self._paused_until = 0.0
        self._turn = 0
        self._stopping = threading.Event()
        name = f"duly-redis-read-{lane.group}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def pause(self) -> None:
        """Leave what was given back to others for a moment; from any thread."""
        self._paused_until = boot_seconds() + PAUSE_SECONDS

    def stop(self, timeout_seconds: float) -> None:
        """Read nothing more; from any other thread. Idempotent."""
        self._stopping.set()
        self._link.interrupt()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._link.open()
                self._pass()
            except DulyError as error:
                if not self._stopping.is_set():
                    _log.debug("%s: %s", self._lane.group, error.detail)
                self._stopping.wait(RETRY_SECONDS)
            except Exception:  # noqa: BLE001  # a fault of ours: told, and the thread lives
                _log.exception("reading for %s failed unexpectedly", self._lane.group)
                self._link.drop()
                self._stopping.wait(WAIT_SECONDS)
        self._link.drop()

    def _pass(self) -> None:
        now = boot_seconds()
        if now < self._paused_until:
            self._stopping.wait(min(self._paused_until - now, WAIT_SECONDS))
            return
        room = self._hand.wait_for_room(self._each_seconds)
        if room > 0 and now >= self._claim_at:
            room = self._claim(room, now)
        if room > 0 and not self._stopping.is_set():
            self._read(room)

    # --- claiming ---------------------------------------------------------------------------------
    def _claim(self, room: int, now: float) -> int:
        """Take over what has been idle for a lease; gives the room that is left."""
        for source in self._lane.sources:
            cursor = _START
            while room > 0:
                cursor = self._claim_some(source, cursor, room)
                room = self._hand.room
                if cursor == _START:
                    break
            else:
                return 0  # the rest next time, before anything new
        self._claim_at = now + self._each_seconds
        return room

    def _claim_some(self, source: Source, cursor: bytes, room: int) -> bytes:
        lane, began = self._lane, boot_seconds()
        idle = int(self._lease_seconds * 1000)
        count = min(room, COUNT_MAX)
        asked: list[Part] = [
            *("XAUTOCLAIM", source.stream, lane.group, lane.consumer),
            *(idle, cursor, "COUNT", count),
        ]
        answer = self._link.ask_all([asked], timeout_seconds=CALL_SECONDS)[0]
        got = lane.answer(self._link, answer)
        if got is None:
            return _START
        self._take(source, got[1], until=began + self._lease_seconds, again=True)
        self._missing(source, got)
        return bytes(got[0])

    def _missing(self, source: Source, claimed: Sequence[Any]) -> None:
        """Entries that are pending and not there: the server of 7.0 names them, an older one gives
        nil for them and keeps them pending.
        """
        empty = [entry for entry in claimed[1] if entry is None or entry[1] is None]
        gone = [entry[0] for entry in empty if entry is not None]
        if gone:
            self._link.ask("XACK", source.stream, self._lane.group, *gone)
        self._lane.lost(source, len(empty) + (len(claimed[2]) if len(claimed) > 2 else 0))

    # --- reading ----------------------------------------------------------------------------------
    def _read(self, room: int) -> None:
        lane, sources = self._lane, list(self._lane.sources)
        self._turn += 1
        if room < len(sources):  # a few of them, others the next time
            start = self._turn % len(sources)
            sources = (sources[start:] + sources[:start])[:room]
        began = boot_seconds()
        block = max(0.001, min(self._each_seconds, self._claim_at - began))
        asked: list[Part] = [
            *("XREADGROUP", "GROUP", lane.group, lane.consumer),
            *("COUNT", max(1, min(room // len(sources), COUNT_MAX)), "BLOCK", int(block * 1000)),
            *("STREAMS", *[source.stream for source in sources], *[">"] * len(sources)),
        ]
        answer = self._link.ask_all([asked], timeout_seconds=block + CALL_SECONDS)[0]
        by_stream = {source.stream.encode(): source for source in sources}
        for stream, entries in lane.answer(self._link, answer) or ():
            until = began + self._lease_seconds
            self._take(by_stream[stream], entries, until=until, again=False)

    def _take(
        self, source: Source, entries: Sequence[Any], *, until: float, again: bool, epoch: int = 0
    ) -> int:
        """Put entries into the hand and deliver those that are new there; gives how many."""
        there = [entry for entry in entries if entry is not None and entry[1] is not None]
        fresh = self._hand.take(
            source.number,
            [entry[0] for entry in there],
            until=until,
            epoch=epoch,
        )
        arrived = [
            Arrived(source.number, entry[0], entry[1], again, epoch)
            for entry in there
            if entry[0] in fresh
        ]
        if arrived:
            self._deliver(arrived)
        return len(arrived)


class _Held:
    """The state of an ordered source. cursor: how far the pending entries are taken over, None when
    all are. seen: the newest entry that the group has been given.
    """

    def __init__(self) -> None:
        self.until = 0.0
        self.cursor: bytes | None = _START
        self.seen = _START
        self.epoch = 0
        self.paused_until = 0.0

    @property
    def held(self) -> bool:
        return self.until > 0


class OrderedReader(Reader):
    """Reads for a group with order: one receiver per stream."""

    def __init__(self, lane: Lane, hand: Hand, deliver: Deliver) -> None:
        super().__init__(lane, hand, deliver)
        self._states = {source: _Held() for source in lane.sources}
        self._renew_at = 0.0

    def _pass(self) -> None:
        self._lease()
        room = self._hand.wait_for_room(self._each_seconds / 2)
        held = [source for source, state in self._states.items() if state.held]
        if room <= 0 or not held:
            self._stopping.wait(0.0 if held else self._each_seconds / 4)
            return
        got = sum([self._read_held(source, self._states[source]) for source in held])
        if not got and self._hand.room > 0:
            self._listen([source for source in held if self._states[source].held])

    # --- leases -----------------------------------------------------------------------------------
    def _lease(self) -> None:
        """Renew what is held, try to get what is not, give up what others have ended."""
        now = boot_seconds()
        turned = [
            source
            for source, state in self._states.items()
            if state.held and self._hand.epoch(source.number) != state.epoch
        ]
        for source in turned:
            self._states[source].paused_until = now + PAUSE_SECONDS
            self._states[source].until = 0.0
            run(self._link, SURRENDER, (source.lease,), self._lane.consumer)
        if now >= self._renew_at:
            for source, state in self._states.items():
                if now >= state.paused_until:
                    self._acquire(source, state, now)
            whole = all(state.held for state in self._states.values())
            self._renew_at = now + (self._lease_seconds / 3 if whole else self._each_seconds / 4)

    def _acquire(self, source: Source, state: _Held, now: float) -> None:
        if state.held and now >= state.until:
            self._lose(source, state)  # somebody may have had it meanwhile
        milliseconds = int(self._lease_seconds * 1000)
        if not run(self._link, ACQUIRE, (source.lease,), self._lane.consumer, milliseconds):
            if state.held:
                self._lose(source, state)
            return
        if not state.held:
            state.cursor, state.epoch = _START, self._hand.epoch(source.number)
            state.seen = self._delivered(source)
        state.until = now + self._lease_seconds
        self._hand.hold(source.number, state.until)

    def _lose(self, source: Source, state: _Held) -> None:
        state.until = 0.0
        self._hand.turn(source.number)
        _log.info("the lease on %s of %s was lost", source.stream, self._lane.group)

    def _delivered(self, source: Source) -> bytes:
        """The newest entry that the group has been given."""
        answer = self._link.ask_all([("XINFO", "GROUPS", source.stream)], timeout_seconds=5.0)[0]
        for row in answer if isinstance(answer, list) else ():
            facts = dict(zip(row[::2], row[1::2], strict=True))
            if facts[b"name"] == self._lane.group.encode():
                return bytes(facts[b"last-delivered-id"])
        self._lane.restore(self._link)
        return _START

    # --- reading ----------------------------------------------------------------------------------
    def _read_held(self, source: Source, state: _Held) -> int:
        room = min(self._hand.room, COUNT_MAX)
        if room <= 0:
            return 0
        lane, pending = self._lane, state.cursor is not None
        try:
            got = run(
                *(self._link, FENCED, (source.lease, source.stream)),
                *(lane.consumer, lane.group, lane.consumer, room, state.cursor or ""),
            )
        except DulyError as error:
            if "NOGROUP" not in error.detail:
                raise
            lane.restore(self._link)
            return 0
        if got == 0:
            self._lose(source, state)
            return 0
        if pending:
            state.cursor = None if got[0] == _START else bytes(got[0])
            self._missing(source, got)
        elif got[1]:
            state.seen = bytes(got[1][-1][0])
        # No end of their own: the lease on the whole stream is theirs.
        until = float("inf")
        return pending + self._take(source, got[1], until=until, again=pending, epoch=state.epoch)

    def _listen(self, sources: Sequence[Source]) -> None:
        """Wait for something new without reading it."""
        if not sources:
            return
        block = self._each_seconds / 2
        asked: list[Part] = [
            *("XREAD", "COUNT", 1, "BLOCK", int(block * 1000), "STREAMS"),
            *[source.stream for source in sources],
            *[self._states[source].seen for source in sources],
        ]
        answer = self._link.ask_all([asked], timeout_seconds=block + CALL_SECONDS)[0]
        self._lane.answer(self._link, answer)


def make_reader(lane: Lane, hand: Hand, deliver: Deliver) -> Reader:
    """The reader for a lane."""
    return (OrderedReader if lane.ordered else Reader)(lane, hand, deliver)
