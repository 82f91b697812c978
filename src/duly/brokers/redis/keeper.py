"""The answering thread of a subscription: acknowledges, gives back, and keeps what is in the hand.

Invariants: an entry leaves the hand after its XACK was answered, not before, so that what is
unanswered stays bounded; the heartbeat goes only to what is in the hand and still ours, so that a
slow handler is not robbed and a lost answer is not kept from everybody.  Trims the streams too.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from duly.brokers.redis.entries import Part
from duly.brokers.redis.hand import Hand, Token
from duly.brokers.redis.lane import Lane, Source
from duly.brokers.redis.link import CALL_SECONDS, Link, boot_seconds, raised
from duly.brokers.redis.scripts import CONSUMER, LEAVE, MOVE, REAP, RELEASED, SURRENDER, TRIM, run
from duly.brokers.redis.settings import Settings
from duly.errors import DulyError

__all__ = ["Keeper"]

IDS_MAX = 1_000
RETRY_SECONDS = 0.2
TRIM_EVERY_SECONDS = 20.0
GIVEN_BACK_IDLE_MS = 3_600_000  # longer than any lease: whoever looks next may claim it
REAP_IDLE_MS = 3_600_000

_log = logging.getLogger("duly.brokers.redis")


class Keeper:
    """The thread behind one subscription's answers."""

    def __init__(self, settings: Settings, lanes: Sequence[Lane], hand: Hand) -> None:
        self._settings, self._lanes, self._hand = settings, lanes, hand
        self._link = Link(settings, purpose="acknowledging")
        self._lane_of = {s.number: (lane, s) for lane in lanes for s in lane.sources}
        self._acks: deque[Token] = deque()
        self._given_back: deque[Token] = deque()
        self._wake = threading.Event()
        self._closing: Callable[[], None] | None = None
        self._beat_at = boot_seconds() + settings.lease_seconds / 3
        self._trim_at = boot_seconds() + 1.0
        self._thread = threading.Thread(target=self._run, name="duly-redis-keep", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def ack(self, tokens: Sequence[Token]) -> None:
        """These are done; from any thread."""
        self._acks.extend(tokens)
        self._wake.set()

    def give_back(self, tokens: Sequence[Token]) -> None:
        """These are for others; from any thread."""
        self._given_back.extend(tokens)
        self._wake.set()

    def stop(self, timeout_seconds: float, *, before: Callable[[], None]) -> None:
        """Answer what waits, give back the rest, leave; ``before`` ends the reading. Idempotent."""
        self._closing = before
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds / 2)
        if self._thread.is_alive():  # the server does not answer
            self._link.interrupt()
            self._thread.join(timeout_seconds / 2)

    # --- the thread -------------------------------------------------------------------------------
    def _run(self) -> None:
        while self._closing is None:
            now = boot_seconds()
            self._wake.wait(max(0.0, min(self._beat_at, self._trim_at) - now))
            self._wake.clear()
            try:
                self._link.open()
                self._work(boot_seconds())
            except DulyError as error:
                _log.debug("acknowledging: %s", error.detail)
                self._wait_a_moment()
            except Exception:  # noqa: BLE001  # a fault of ours: told, and the thread lives
                _log.exception("acknowledging failed unexpectedly")
                self._link.drop()
                self._wait_a_moment()
        self._closing()
        with suppress(DulyError):  # what is left is claimed when its lease has run out
            self._link.open()
            self._answer()
            self._leave()
        self._link.drop()

    def _wait_a_moment(self) -> None:
        if self._closing is None:
            self._wake.wait(RETRY_SECONDS)
            self._wake.set()  # what is queued is still to be done

    def _work(self, now: float) -> None:
        self._answer()
        if now >= self._beat_at:
            self._beat(now)
            self._beat_at = now + self._settings.lease_seconds / 3
        if now >= self._trim_at:
            self._trim_at = now + TRIM_EVERY_SECONDS
            self._tidy()

    # --- answers ----------------------------------------------------------------------------------
    def _answer(self) -> None:
        while acks := list(self._acks):
            commands: list[Sequence[Part]] = [
                ("XACK", source.stream, lane.group, *ids)
                for lane, source, ids in self._by_source(acks)
            ]
            answers = self._link.ask_all(commands, timeout_seconds=CALL_SECONDS)
            for answer in answers:
                raised(self._link, answer)
            self._hand.drop(acks)
            for _ in acks:
                self._acks.popleft()
        while tokens := list(self._given_back):
            for lane, source, ids in self._by_source(tokens):
                self._move(lane, source, ids, to=RELEASED, idle_ms=GIVEN_BACK_IDLE_MS)
            self._hand.drop(tokens)
            for _ in tokens:
                self._given_back.popleft()

    def _by_source(self, tokens: Iterable[Token]) -> list[tuple[Lane, Source, list[bytes]]]:
        ids: dict[int, list[bytes]] = {}
        for token in tokens:
            ids.setdefault(token.source, []).append(token.id)
        return [
            (*self._lane_of[number], some[start : start + IDS_MAX])
            for number, some in ids.items()
            for start in range(0, len(some), IDS_MAX)
        ]

    def _move(
        self, lane: Lane, source: Source, ids: Sequence[bytes], *, to: str, idle_ms: int
    ) -> set[bytes]:
        """Those of the ids that were still pending under us."""
        given = (lane.group, lane.consumer, to, idle_ms)
        return set(run(self._link, MOVE, (source.stream,), *given, *ids))

    # --- keeping ----------------------------------------------------------------------------------
    def _beat(self, now: float) -> None:
        """Keep others from claiming what is being worked on; what they have claimed is theirs."""
        for lane, source in self._lane_of.values():
            if lane.ordered:
                continue
            ids = self._hand.ids(source.number)
            for start in range(0, len(ids), IDS_MAX):
                some = ids[start : start + IDS_MAX]
                kept = self._move(lane, source, some, to=lane.consumer, idle_ms=0)
                until = now + self._settings.lease_seconds
                lost = self._hand.renewed(source.number, asked=some, kept=kept, until=until)
                if lost:
                    _log.info("%d entries of %s were claimed by others", lost, source.stream)

    def _tidy(self) -> None:
        """Trim what every group has done and is old enough; forget receivers that are long gone."""
        seconds, micros = self._link.ask("TIME")
        old = int(seconds) * 1000 + int(micros) // 1000
        old -= int(self._settings.retention_seconds * 1000)
        for lane, source in self._lane_of.values():
            run(self._link, TRIM, (source.stream,), f"{max(0, old)}-0")
            run(self._link, REAP, (source.stream,), lane.group, CONSUMER, REAP_IDLE_MS)

    def _leave(self) -> None:
        for lane, source in self._lane_of.values():
            given = (lane.group, lane.consumer, RELEASED, GIVEN_BACK_IDLE_MS)
            run(self._link, LEAVE, (source.stream,), *given)
            if lane.ordered:
                run(self._link, SURRENDER, (source.lease,), lane.consumer)
