"""The thread that keeps this node alive in the eyes of the others.

A node holds everything through one row, its member row.  This thread renews it with one statement a
beat, in a connection of its own, so that no handler and no event loop can hold it up.  When a beat
comes back without the row, or does not come back in time, the node has lost everything it held: it
stops by its own clock, before the others may take over by the database's, and joins again under a
new name.

The same thread enforces hard deadlines: a handler that has not returned by then is not going to,
and its process can no longer be trusted to let go.  It dumps all stacks, stops renewing and ends
the process.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from uuid import uuid4

from duly.errors import DulyError
from duly.kernel import failpoints
from duly.kernel.lease import margin_seconds, safe_until
from duly.observe.facts import LeaseLost
from duly.observe.hooks import Hooks
from duly.ports import Clock, Connection, Database, Statement

__all__ = ["Beat", "Deadlines", "LeaseKeeper"]

EXPIRED_SECONDS = 0.05  # after a term is over, to be sure that the database thinks so too
EXIT_DEADLINE = 75  # EX_TEMPFAIL: the supervisor starts another one

_log = logging.getLogger("duly.lease")


class Beat(NamedTuple):
    """What one beat learned. members: the living, by scope; expired: somebody must be buried;
    next_expiry_seconds: when the next of them would expire if it has stopped renewing.

    due: boxes that have due retries; ready: boxes that have ready rows; pauses: what an operator
    has paused.
    """

    members: Mapping[str, Sequence[str]]
    expired: bool
    next_expiry_seconds: float
    due: frozenset[str]
    ready: frozenset[str]
    pauses: frozenset[str]


class Deadlines:
    """Hard deadlines of what runs now. Safe to use from any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._running: dict[int, tuple[float, str]] = {}
        self._next = 0
        self._lock = threading.Lock()

    def enter(self, label: str, seconds: float) -> int:
        """Something starts that must be over in ``seconds``; returns what ``leave`` wants."""
        with self._lock:
            self._next += 1
            self._running[self._next] = (self._clock.monotonic() + seconds, label)
            return self._next

    def leave(self, token: int) -> None:
        """It is over. Idempotent."""
        with self._lock:
            self._running.pop(token, None)

    def passed(self) -> list[str]:
        """The labels of what is past its deadline."""
        now = self._clock.monotonic()
        with self._lock:
            return [label for until, label in self._running.values() if until < now]

    def enforce(self) -> None:
        """End this process where something is past its deadline, with the stacks of all threads."""
        passed = self.passed()
        if passed:
            _log.critical("past its hard deadline: %s; ending this process", ", ".join(passed))
            faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
            sys.stderr.flush()
            os._exit(EXIT_DEADLINE)


@dataclass(frozen=True, kw_only=True)
class _Timing:
    ttl_seconds: float
    renew_seconds: float


class LeaseKeeper:
    """One node's membership. scopes: the lanes it wants a share of.

    on_beat: called after every successful beat, on_lost: when everything was lost; both in the
    keeper's thread.
    """

    def __init__(
        self,
        database: Database,
        scopes: Sequence[str],
        *,
        clock: Clock,
        hooks: Hooks,
        deadlines: Deadlines,
        on_beat: Callable[[Beat], None],
        on_lost: Callable[[], None],
        ttl_seconds: float = 5.0,
        renew_seconds: float = 1.5,
    ) -> None:
        self._database, self._scopes, self._clock, self._hooks = (
            database,
            list(scopes),
            clock,
            hooks,
        )
        self._on_beat, self._on_lost, self._deadlines = on_beat, on_lost, deadlines
        self._timing = _Timing(ttl_seconds=ttl_seconds, renew_seconds=renew_seconds)
        self.holder = ""
        self.asleep = False
        self._until = 0.0
        self._pause_seconds = renew_seconds
        self._connection: Connection | None = None
        self._forfeited = threading.Event()
        self._stop = threading.Event()
        self._poke = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="duly-lease", daemon=True)

    def start(self) -> None:
        """Join and begin to beat."""
        self._thread.start()

    def remaining(self) -> float:
        """The seconds for which this node may still act; 0 when it holds nothing."""
        return max(0.0, self._until - self._clock.monotonic())

    @property
    def until(self) -> float:
        """Until when, by the clock's ``monotonic``, this node may act."""
        return self._until

    def forfeit(self) -> None:
        """Hold nothing any more and join under a new name: nobody knows what this one holds.

        The old name is left to expire, so that what is still under way ends before others begin.
        """
        self._forfeited.set()
        self._poke.set()

    def poke(self) -> None:
        """Beat now instead of at the next turn."""
        self._poke.set()

    def stop(self, timeout_seconds: float = 5.0) -> None:
        """Leave, so that the others take over at once, and end the thread. Idempotent."""
        self._stop.set()
        self._poke.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds)

    def _serve(self) -> None:
        while not self._stop.is_set():
            self._deadlines.enforce()
            if self._forfeited.is_set():
                self._forfeited.clear()
                if self.holder:
                    self._lose()
            try:
                self._turn()
            except DulyError as error:
                _log.warning("lease beat failed: %s", error, extra={"code": error.code})
                self._drop_connection()
            if self.holder and self.remaining() == 0.0:
                self._lose()
            self._poke.wait(self._pause_seconds)
            self._poke.clear()
        self._leave()

    def _turn(self) -> None:
        if self._connection is None:
            self._connection = self._database.connect()
        if not self.holder:
            self._join(self._connection)
        asked = self._clock.monotonic()
        values = {
            "name": f"member/{self.holder}",
            "ttl_seconds": self._timing.ttl_seconds,
            "asleep": self.asleep,
        }
        row = self._connection.ask(Statement("lease.beat", values)).rows[0]
        failpoints.hit(failpoints.LEASE_RENEWED)
        if not row[0]:
            self._lose()
            self._poke.set()
            return
        ttl = self._timing.ttl_seconds
        self._until = safe_until(asked, ttl, margin_seconds(ttl))
        beat = _beat(row)
        if beat.expired:
            self._connection.ask(Statement("lease.bury"))
        # A member that missed its beats is looked at again in the moment when it expires.
        self._pause_seconds = min(
            self._timing.renew_seconds, beat.next_expiry_seconds + EXPIRED_SECONDS
        )
        self._on_beat(beat)

    def _join(self, connection: Connection) -> None:
        self.holder = f"{os.getpid()}-{uuid4().hex[:12]}"
        values = {
            "name": f"member/{self.holder}",
            "holder": self.holder,
            "scopes": json.dumps(self._scopes),
            "ttl_seconds": self._timing.ttl_seconds,
        }
        connection.ask(Statement("lease.join", values))

    def _lose(self) -> None:
        lost, self.holder, self._until = self.holder, "", 0.0
        self._hooks.emit(LeaseLost(what="member", names=(lost,)))
        self._on_lost()

    def _leave(self) -> None:
        holder, self.holder, self._until = self.holder, "", 0.0
        try:
            if holder and self._connection is not None:
                self._connection.ask(
                    Statement("lease.leave", {"name": f"member/{holder}", "holder": holder})
                )
        except DulyError as error:
            _log.warning(
                "could not leave; the lease runs out by itself: %s",
                error,
                extra={"code": error.code},
            )
        self._drop_connection()

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _beat(row: tuple[object, ...]) -> Beat:
    _, members, outbox_due, outbox_ready, inbox_due, inbox_ready, pauses = row
    living: dict[str, list[str]] = {}
    expired = False
    soonest = float("inf")
    for name, scopes, left_seconds in json.loads(str(members)):
        if left_seconds <= 0:
            expired = True
            continue
        soonest = min(soonest, left_seconds)
        for scope in json.loads(scopes):
            living.setdefault(scope, []).append(name.removeprefix("member/"))
    due = {box for box, some in (("outbox", outbox_due), ("inbox", inbox_due)) if some}
    ready = {box for box, some in (("outbox", outbox_ready), ("inbox", inbox_ready)) if some}
    return Beat(
        living,
        expired,
        soonest,
        frozenset(due),
        frozenset(ready),
        frozenset(name for name, _ in json.loads(str(pauses))),
    )
