"""Roles as children of one supervisor.

A role is started, restarted with back-off when it crashes, and drained when the App stops.  The
invariants: a role that died is never silent (logged, counted in health), one role's crash does not
end the others, and stopping has an end: what has not drained in time is cancelled, and its work is
found again in the tables.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

from duly.errors import ConfigurationError, SchemaError, error_code
from duly.kernel import failpoints
from duly.kernel.backoff import Retry
from duly.observe.health import Health

__all__ = ["Role", "Supervisor"]

_log = logging.getLogger("duly.supervisor")
_RESTART = Retry(attempts=10_000, base="200ms", max="10s")
STALL_SECONDS = 30.0


class Role(Protocol):
    """Something that runs until it is told to stop."""

    async def run(self) -> None:
        """Run until done, or until ``stop`` was called and what was under way has ended."""
        ...

    def stop(self) -> None:
        """Begin to drain; ``run`` returns soon. Idempotent."""
        ...


class Supervisor:
    """Runs roles by name. A role is made anew by its factory each time it is started."""

    def __init__(self, health: Health, *, drain_seconds: float) -> None:
        self._health, self._drain_seconds = health, drain_seconds
        self._factories: list[tuple[str, Callable[[], Role]]] = []
        self._running: dict[str, Role] = {}
        self._stopping = asyncio.Event()

    def add(self, name: str, make: Callable[[], Role]) -> None:
        """Add a role before ``run``."""
        self._factories.append((name, make))

    def roles(self) -> Sequence[Role]:
        """The roles that run now."""
        return list(self._running.values())

    def stop(self) -> None:
        """Begin to drain every role. Idempotent; from the loop's thread."""
        if not self._stopping.is_set():
            failpoints.hit(failpoints.DRAIN_STARTED)
            self._stopping.set()
            for role in self._running.values():
                role.stop()

    async def run(self) -> None:
        """Run all roles until ``stop``; past the drain time what is left is cancelled.

        Raises ConfigurationError of a role: that is not cured by starting it again.
        """
        tasks = [
            asyncio.create_task(self._keep(name, make), name=f"duly {name}")
            for name, make in self._factories
        ]
        stopper = asyncio.create_task(self._stopping.wait())
        try:
            await self._until_stopped_or_failed(tasks, stopper)
            self.stop()
            if tasks:
                await asyncio.wait(tasks, timeout=self._drain_seconds)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            stopper.cancel()
            for task in tasks:
                if not task.done():
                    _log.warning(
                        "%s did not drain in %.1f s and is cancelled",
                        task.get_name(),
                        self._drain_seconds,
                    )
                    task.cancel()
            await asyncio.gather(*tasks, stopper, return_exceptions=True)

    async def _until_stopped_or_failed(
        self, tasks: Sequence[asyncio.Task[None]], stopper: asyncio.Task[Literal[True]]
    ) -> None:
        """Roles may end by themselves; only a failure of one, or ``stop``, ends them all."""
        waiting: set[asyncio.Task[Any]] = {*tasks, stopper}
        while stopper in waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if any(task.exception() is not None for task in done):
                return

    async def _keep(self, name: str, make: Callable[[], Role]) -> None:
        crashes, finished = 0, False
        self._health.expect(name, within_seconds=STALL_SECONDS)
        watch = asyncio.create_task(self._turn(name))
        try:
            while not self._stopping.is_set():
                role = self._running[name] = make()
                try:
                    await role.run()
                    finished = not self._stopping.is_set()
                    return
                except (ConfigurationError, SchemaError):
                    raise
                except Exception as error:  # noqa: BLE001  # logged, counted, started again
                    crashes += 1
                    delay = _RESTART.delay(crashes, random.random())
                    _log.exception(
                        "role %s crashed (%s); again in %.1f s", name, error_code(error), delay
                    )
                    self._health.turned(name, code=error_code(error))
                    await self._pause(delay)
        finally:
            watch.cancel()
            self._running.pop(name, None)
            if finished:
                self._health.finished(name)
            else:
                self._health.stopped(name)

    async def _turn(self, name: str) -> None:
        while True:
            self._health.turned(name)
            await asyncio.sleep(1.0)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass  # time to start it again
