"""A database connection that lives in a thread of its own.

The event loop never touches a driver: it hands over steps and awaits the answer, one hop per batch.
The thread owns the connection, opens it when first needed and again after it was lost.  What failed
is not repeated here: only the caller knows whether that is safe.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from duly.errors import DatabaseUnavailableError, OutcomeUnknownError
from duly.ports import Connection, Database, Result, Statement, Steps

__all__ = ["ConnectionThread"]

T = TypeVar("T")
Job = tuple[Callable[[Connection], Any], "Future[Any]"]


class ConnectionThread:
    """One connection and the thread that drives it. name: of the thread, for stack dumps."""

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._connection: Connection | None = None
        self._thread = threading.Thread(target=self._serve, name=f"duly-{name}", daemon=True)
        self._started = threading.Lock()
        self._closed = False

    async def run(self, steps: Callable[[], Steps[T]]) -> T:
        """Run steps in one transaction. Raises what the database's ``map_error`` makes of its
        failures.
        """
        return await asyncio.wrap_future(self.submit(lambda connection: connection.run(steps())))

    async def ask(self, statement: Statement) -> Result:
        """Run one statement by itself."""
        return await asyncio.wrap_future(self.submit(lambda connection: connection.ask(statement)))

    def submit(self, job: Callable[[Connection], T]) -> Future[T]:
        """Hand a job to the thread, from any thread. Raises RuntimeError after ``close``."""
        if self._closed:
            raise RuntimeError("this connection thread is closed")
        if self._thread.ident is None:
            with self._started:
                if self._thread.ident is None:
                    self._thread.start()
        future: Future[T] = Future()
        self._jobs.put((job, future))
        return future

    def close(self, timeout_seconds: float = 5.0) -> None:
        """Finish the jobs in hand, close the connection, end the thread. Idempotent."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_seconds)

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, future = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                answer = work(self._open())
            except BaseException as error:  # noqa: BLE001  # handed to whoever waits
                if isinstance(error, DatabaseUnavailableError | OutcomeUnknownError):
                    self._drop()
                future.set_exception(error)
            else:
                future.set_result(answer)
        self._drop()

    def _open(self) -> Connection:
        if self._connection is None:
            self._connection = self._database.connect()
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
