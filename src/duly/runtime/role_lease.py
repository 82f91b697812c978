"""A role that one node holds while it works: a stream of changes, a run of a batch job.

Owns the row ``role/NAME`` as its holder sees it; which process holds it may be told from the
holder's name.  The lease only says who should work; what protects the data is a token of the work's
own row, taken under ``lease.guard``.  The invariant: a lease is taken before its end only from a
process of this machine that is certainly gone - its number is free or has another process by now -
so that a restart does not wait for the lease of the process it replaces.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from duly.errors import RetryableError
from duly.kernel.lease import margin_seconds, safe_until
from duly.message import new_id
from duly.ports import Clock, Database, Statement, Steps
from duly.runtime.connection import ConnectionThread

__all__ = ["RoleLease", "is_gone", "process_mark"]

_PROC = Path("/proc")


def process_mark() -> str:
    """This process as another one on this machine can find it; "" where that cannot be told."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        space = (_PROC / "self/ns/pid").stat().st_ino
        return f"{boot}.{space}.{os.getpid()}.{_started(os.getpid())}"
    except (OSError, ValueError, IndexError):  # not Linux, or /proc is closed
        return ""


def is_gone(mark: str) -> bool:
    """Whether the process of a mark is certainly over; False for one of another machine."""
    mine, theirs = process_mark().split("."), mark.split(".")
    if len(mine) != 4 or len(theirs) != 4 or mine[:2] != theirs[:2] or not theirs[2].isdigit():
        return False
    try:
        os.kill(int(theirs[2]), 0)
        return _started(int(theirs[2])) != theirs[3]
    except ProcessLookupError:
        return True
    except (OSError, ValueError, IndexError):  # it is there and hidden from us
        return False


def _started(pid: int) -> str:
    """When a process began, in ticks since the boot; a zombie has ended, though not its number."""
    fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return "ended" if fields[0] in "ZX" else fields[19]


class RoleLease:
    """The lease of one role in the hands of this process; used from the loop's thread. name: of the
    role, such as ``cdc/STREAM``. connection: shared with others, who close it; its own otherwise.
    """

    def __init__(
        self,
        name: str,
        *,
        database: Database,
        clock: Clock,
        ttl_seconds: float,
        connection: ConnectionThread | None = None,
    ) -> None:
        self._name, self._ttl_seconds, self._clock = f"role/{name}", ttl_seconds, clock
        self._shared = connection is not None
        self.connection = connection or ConnectionThread(database, f"lease-{name}")
        self._holder = f"{process_mark()}/{new_id()}"
        self._token = 0
        self._until = 0.0

    @property
    def remaining_seconds(self) -> float:
        """For how long this process may be sure of it."""
        return max(0.0, self._until - self._clock.monotonic())

    def values(self) -> dict[str, Any]:
        """What ``lease.guard`` compares."""
        return {"name": self._name, "holder": self._holder, "token": self._token}

    async def take(self) -> bool:
        """Take it, or prolong it; False while it is another's. Raises RetryableError."""
        asked_at = self._clock.monotonic()
        token = await self.connection.run(self._take)
        if token is None:
            return False
        self._token = token
        self._until = safe_until(asked_at, self._ttl_seconds, margin_seconds(self._ttl_seconds))
        return True

    async def leave(self) -> None:
        """Give it back and close its own connection; what cannot be given back runs out."""
        self._until = 0.0
        values = {"name": self._name, "holder": self._holder}
        try:
            if self._token:
                await self.connection.ask(Statement("role.leave", values))
        except RetryableError:
            pass  # it runs out by itself
        if not self._shared:
            await asyncio.to_thread(self.connection.close)

    def _take(self) -> Steps[int | None]:
        values = {"name": self._name, "holder": self._holder, "ttl_seconds": self._ttl_seconds}
        taken = (yield Statement("role.take", values)).rows
        if not taken:
            held = (yield Statement("role.holder", {"name": self._name})).rows
            holder = str(held[0][0]) if held else ""
            if not is_gone(holder.partition("/")[0]):
                return None
            yield Statement("role.leave", {"name": self._name, "holder": holder})
            taken = (yield Statement("role.take", values)).rows
        return int(taken[0][0]) if taken else None
