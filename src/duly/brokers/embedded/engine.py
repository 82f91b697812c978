"""The one thread that owns the file: runs jobs, renews leases, finds new messages, stores
positions.

Invariant: every statement runs here, so the event loop never waits for the disk and a blocked
handler never costs a lease. Other processes' commits are seen by polling ``PRAGMA data_version`` (a
read of shared memory), often after something happened and seldom when idle. A broken file loses
nothing: everything held is void, the file is opened again, and the readers go on from the stored
positions.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from duly.brokers.embedded.log import Log
from duly.brokers.embedded.reader import Reader
from duly.brokers.embedded.schema import boot_seconds
from duly.errors import BrokerUnavailableError, DulyError
from duly.ports import Delivery

__all__ = ["Engine", "Feed"]

T = TypeVar("T")

POLL_SECONDS_MIN = 0.002
POLL_SECONDS_MAX = 0.02
FLUSH_SECONDS = 0.02
REOPEN_SECONDS = 0.5
PRUNE_SECONDS = 60.0
JOBS_PER_TURN = 100

_log = logging.getLogger("duly.brokers.embedded")


@dataclass(eq=False)
class Feed:
    """A reader and where its deliveries go. deliver: called in the engine's thread; False when
    nobody is there.
    """

    reader: Reader
    deliver: Callable[[list[Delivery]], bool]


class Engine:
    """The thread of one broker object. path: of the file. lease_seconds: until a crashed reader's
    sources are free.
    """

    def __init__(self, path: str, *, lease_seconds: float, retention_seconds: float) -> None:
        self.path = path
        self.lease_seconds = lease_seconds
        self._retention_seconds = retention_seconds
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="duly-embedded", daemon=True)
        self._closing = threading.Event()
        self._log: Log | None = None
        self._failed: Exception = BrokerUnavailableError("the file is not open yet")
        self._feeds: list[Feed] = []
        self._version = self._epoch = -1
        self._poll_seconds = POLL_SECONDS_MIN
        self._due = dict.fromkeys(("open", "renew", "flush", "prune"), 0.0)

    def start(self) -> None:
        """Start the thread; the file is opened there."""
        self._thread.start()

    def submit(self, work: Callable[[Log], T]) -> Future[T]:
        """Run ``work`` in the thread. The future raises what ``work`` raises, or why the file is
        not open.
        """
        future: Future[T] = Future()
        self._jobs.put(lambda: self._execute(work, future))
        return future

    def post(self, action: Callable[[], Any]) -> None:
        """Run something that needs no file and gives no answer, in the thread."""
        self._jobs.put(action)

    def close(self, timeout_seconds: float) -> None:
        """Run what is queued, give back every lease, close the file, end the thread. Idempotent."""
        self._closing.set()
        self._jobs.put(lambda: None)
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

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

    def _run(self) -> None:
        while not self._closing.is_set():
            self._turn(self._wait_seconds())
        while not self._jobs.empty():
            self._perform(self._jobs.get())
        if self._log is not None:
            for feed in list(self._feeds):
                self._guard(lambda log, feed=feed: self.remove(feed, log))  # type: ignore[misc]
        if self._log is not None:
            self._log.close()

    def _turn(self, wait_seconds: float) -> None:
        try:
            self._perform(self._jobs.get(timeout=wait_seconds))
            for _ in range(JOBS_PER_TURN):
                self._perform(self._jobs.get_nowait())
        except queue.Empty:
            pass
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
            return min(0.05, REOPEN_SECONDS)
        if not self._feeds:
            return 1.0
        flush = FLUSH_SECONDS if any(f.reader.unflushed for f in self._feeds) else POLL_SECONDS_MAX
        return min(self._poll_seconds, flush)

    def _execute(self, work: Callable[[Log], T], future: Future[T]) -> None:
        if self._log is None:
            self._open(boot_seconds())
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work(self._opened()))
        except Exception as error:  # noqa: BLE001 - it is the caller's
            future.set_exception(error)

    def _opened(self) -> Log:
        if self._log is None:
            raise self._failed
        return self._log

    def _open(self, now: float) -> None:
        self._due["open"] = now + REOPEN_SECONDS
        try:
            self._log = Log(self.path)
            self._due["renew"] = 0.0
        except DulyError as error:
            if type(error) is not type(self._failed) or error.detail != getattr(
                self._failed, "detail", ""
            ):
                _log.warning("cannot open the log: %s", error)
            self._failed = error

    def _guard(self, work: Callable[[Log], None]) -> None:
        """Run background work; an error of the file voids what is held and opens the file again
        later.
        """
        if self._log is None:
            return
        try:
            work(self._log)
        except Exception as error:  # noqa: BLE001 - a chunk that cannot be decoded, among others
            known = isinstance(error, DulyError)
            _log.warning("the log failed, opening it again: %s", error, exc_info=not known)
            self._failed = error if known else BrokerUnavailableError(f"{self.path}: {error!r}")
            self._log.close()
            self._log = None
            self._due["open"] = boot_seconds() + REOPEN_SECONDS
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
        if now >= self._due["prune"]:
            self._due["prune"] = now + (
                PRUNE_SECONDS if not log.prune(self._retention_seconds) else 1.0
            )

    def _feed(self, feed: Feed, log: Log) -> None:
        batch = feed.reader.fill(log)
        if batch:
            self._poll_seconds = POLL_SECONDS_MIN
            if not feed.deliver(batch):  # its event loop is gone
                self.remove(feed, log)

    def _look(self, log: Log) -> None:
        """See whether anybody committed, here or elsewhere."""
        if not self._feeds:
            return
        version = log.version()
        if version == self._version:
            self._poll_seconds = min(self._poll_seconds * 1.5, POLL_SECONDS_MAX)
            return
        self._version = version
        self._poll_seconds = POLL_SECONDS_MIN
        epoch = log.epoch()
        if epoch != self._epoch:
            self._epoch = epoch
            self._due["renew"] = 0.0
        for feed in self._feeds:
            feed.reader.look(log)

    def published(self) -> None:
        """Our own connection has stored messages, which ``data_version`` does not show; for use
        inside a job.
        """
        self._version = -1
