"""The one thread that owns a connection to the log: runs jobs, renews leases, finds new messages,
stores positions.

Invariant: every statement runs here, so the event loop never waits for the disk and a blocked
handler never costs a lease.  Commits of others are seen by asking the store for its version, often
after something happened and seldom when idle, or at once where the store can be listened to.  A
broken file or connection loses nothing: everything held is void, the log is opened again, and the
readers go on from the stored positions.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from duly.brokers.embedded.jobs import Jobs
from duly.brokers.embedded.log import Log
from duly.brokers.embedded.reader import Reader
from duly.brokers.embedded.store import boot_seconds
from duly.errors import BrokerUnavailableError, DulyError
from duly.kernel.backoff import Retry
from duly.ports import Delivery

__all__ = ["Engine", "Feed"]

T = TypeVar("T")

FLUSH_SECONDS = 0.02
IDLE_SECONDS = 1.0
PING_SECONDS = 15.0
PRUNE_SECONDS = 60.0
JOBS_PER_TURN = 100
REOPEN_SECONDS = 0.5
REOPEN = Retry(base="50ms", max="5s")

_log = logging.getLogger("duly.brokers.embedded")


@dataclass(eq=False)
class Feed:
    """A reader and where its deliveries go. deliver: called in the engine's thread; False when
    nobody is there.
    """

    reader: Reader
    deliver: Callable[[list[Delivery]], bool]


class Engine:
    """The thread of one connection. connect: opens the log. name: of the log, for errors.
    lease_seconds: until a crashed reader's sources are free. retention_seconds: None to leave that
    to another engine.
    """

    def __init__(
        self,
        connect: Callable[[], Log],
        *,
        name: str,
        lease_seconds: float,
        retention_seconds: float | None,
    ) -> None:
        self.name = name
        self.lease_seconds = lease_seconds
        self._connect = connect
        self._retention_seconds = retention_seconds
        self._jobs = Jobs()
        self._thread = threading.Thread(target=self._run, name="duly-embedded", daemon=True)
        self._closing = threading.Event()
        self._log: Log | None = None
        self._failed: Exception = BrokerUnavailableError("the log is not open yet")
        self._failures = 0
        self._refused_until = 0.0
        self._feeds: list[Feed] = []
        self._version: object = None
        self._epoch = -1
        self._news = False
        self._poll_seconds = IDLE_SECONDS
        self._due = dict.fromkeys(("open", "renew", "flush", "ping", "prune"), 0.0)

    def start(self) -> None:
        """Start the thread; the log is opened there."""
        self._jobs.open()
        self._thread.start()

    def submit(self, work: Callable[[Log], T]) -> Future[T]:
        """Run ``work`` in the thread. The future raises what ``work`` raises, or why the log is not
        open.
        """
        future: Future[T] = Future()
        self._jobs.put(lambda: self._execute(work, future))
        return future

    def post(self, action: Callable[[], Any]) -> None:
        """Run something that needs no log and gives no answer, in the thread."""
        self._jobs.put(action)

    def stop(self) -> None:
        """Ask the thread to end: it runs what is queued, gives back every lease, closes the log."""
        self._closing.set()
        self._jobs.put(lambda: None)

    def close(self, timeout_seconds: float) -> None:
        """``stop``, and wait for it. Idempotent."""
        self.stop()
        if self._thread.is_alive():
            self._thread.join(max(0.0, timeout_seconds))

    @property
    def alive(self) -> bool:
        """Whether jobs are being run."""
        return self._thread.is_alive() and not self._closing.is_set()

    # --- in the thread ----------------------------------------------------------------------------
    def add(self, feed: Feed) -> None:
        """Begin to feed a reader; for use inside a job."""
        self._feeds.append(feed)
        self._due["renew"] = 0.0

    def remove(self, feed: Feed, log: Log) -> None:
        """Stop feeding a reader and give back what it holds; for use inside a job."""
        if feed in self._feeds:
            self._feeds.remove(feed)
            feed.reader.close(log)
            self._due["renew"] = 0.0

    def news(self) -> None:
        """This process has stored messages, which ``version`` need not show; for use inside a
        job.
        """
        self._version = None

    def _run(self) -> None:
        while not self._closing.is_set():
            self._turn()
        while job := self._jobs.take():
            self._perform(job)
        for feed in list(self._feeds):
            self._guard(lambda log, feed=feed: self.remove(feed, log))  # type: ignore[misc]
        if self._log is not None:
            self._log.close()
        self._jobs.close()

    def _turn(self) -> None:
        heard = self._log.store.descriptor if self._log is not None and self._feeds else None
        self._jobs.wait(self._wait_seconds(), heard)
        for _ in range(JOBS_PER_TURN):
            job = self._jobs.take()
            if job is None:
                break
            self._perform(job)
        now = boot_seconds()
        if self._log is None and now >= self._due["open"]:
            self._open(now)
        self._guard(lambda log: self._background(log, now))

    def _perform(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception:  # noqa: BLE001 - no job may end the thread
            _log.exception("a job failed")

    def _wait_seconds(self) -> float:
        if self._log is None:
            return min(IDLE_SECONDS, max(0.0, self._due["open"] - boot_seconds()))
        if not self._feeds:
            return IDLE_SECONDS
        if self._news:
            return 0.0
        unflushed = any(f.reader.unflushed for f in self._feeds)
        return min(self._poll_seconds, FLUSH_SECONDS) if unflushed else self._poll_seconds

    def _execute(self, work: Callable[[Log], T], future: Future[T]) -> None:
        now = boot_seconds()
        if self._log is None and now >= self._refused_until:
            self._open(now)
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work(self._opened()))
        except Exception as error:  # noqa: BLE001 - it is the caller's
            future.set_exception(error)
            if self._log is not None and self._log.store.lost:
                self._lose(error)

    def _opened(self) -> Log:
        if self._log is None:
            raise self._failed
        return self._log

    def _open(self, now: float) -> None:
        try:
            self._log = self._connect()
        except DulyError as error:
            if type(error) is not type(self._failed) or error.detail != getattr(
                self._failed, "detail", ""
            ):
                _log.warning("cannot open the log: %s", error)
            self._failed = error
            self._failures += 1
            delay = REOPEN.delay(self._failures, random.random())
            self._due["open"] = self._refused_until = boot_seconds() + delay
            return
        self._failures = 0
        self._version = None
        self._due |= {"renew": 0.0, "ping": now + PING_SECONDS}

    def _guard(self, work: Callable[[Log], None]) -> None:
        """Run background work; an error voids what is held and opens the log again later."""
        if self._log is None:
            return
        try:
            work(self._log)
        except Exception as error:  # noqa: BLE001 - a chunk that cannot be decoded, among others
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        known = isinstance(error, DulyError)
        _log.warning(
            "the log failed, opening it again: %s", error, exc_info=None if known else error
        )
        self._failed = error if known else BrokerUnavailableError(f"{self.name}: {error!r}")
        if self._log is not None:
            self._log.close()
        self._log = None
        self._due["open"] = boot_seconds() + REOPEN_SECONDS  # a job does not wait for that
        for feed in self._feeds:
            feed.reader.forget()

    def _background(self, log: Log, now: float) -> None:
        self._look(log)
        if now >= self._due["renew"]:
            self._due["renew"] = now + self.lease_seconds / 4
            for feed in self._feeds:
                feed.reader.renew(log, now)
            for feed in self._feeds:
                feed.reader.rebalance(log, now)
        for feed in list(self._feeds):
            self._feed(feed, log)
        if now >= self._due["flush"] and any(f.reader.unflushed for f in self._feeds):
            for feed in self._feeds:
                feed.reader.flush(log)
            self._due["flush"] = boot_seconds() + FLUSH_SECONDS
        if self._retention_seconds is not None and now >= self._due["prune"]:
            self._due["prune"] = now + (
                PRUNE_SECONDS if not log.prune(self._retention_seconds) else 1.0
            )
        if now >= self._due["ping"]:
            log.store.ping()
            self._due["ping"] = now + PING_SECONDS
        # What came in with the answer to a statement does not make the descriptor readable again.
        heard = log.store.descriptor is not None and bool(self._feeds)
        self._news = heard and log.store.version() != self._version

    def _feed(self, feed: Feed, log: Log) -> None:
        batch = feed.reader.fill(log)
        if batch:
            self._poll_seconds = log.store.pause_seconds[0]
            if not feed.deliver(batch):  # its event loop is gone
                self.remove(feed, log)

    def _look(self, log: Log) -> None:
        """See whether anybody committed, here or elsewhere."""
        if not self._feeds:
            return
        shortest, longest = log.store.pause_seconds
        version = log.store.version()
        if version == self._version:
            self._poll_seconds = min(self._poll_seconds * 1.5, longest)
            return
        self._version = version
        self._poll_seconds = shortest
        epoch = log.epoch()
        if epoch != self._epoch:
            self._epoch = epoch
            self._due["renew"] = 0.0
        for feed in self._feeds:
            feed.reader.look(log)
