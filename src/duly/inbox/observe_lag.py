"""How far a group is: waiting until messages were handled, and what it has yet to do.

Owns what can be said exactly from the inbox's rows, and refuses the rest: a handler with a business
key lets copies go without a row of their own, so "handled" cannot be seen by message id.  What is
still in the broker is the broker's to tell (``Broker.topics``).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection
from typing import NamedTuple

from duly.errors import NotObservableError
from duly.inbox.handlers import HandlerRegistry
from duly.ports import Clock, Statement
from duly.runtime.connection import ConnectionThread

__all__ = ["GroupLag", "lag_of", "wait_for"]

POLL_SECONDS = 0.05
IDS_MAX = 10_000
_FINISHED = frozenset({"done", "skipped", "dropped"})


class GroupLag(NamedTuple):
    """What a group has stored and not finished, by status, and the age of the oldest of it."""

    ready: int
    retry: int
    held: int
    failed: int
    oldest_seconds: float


async def lag_of(connection: ConnectionThread, group: str) -> GroupLag:
    """The unfinished rows of a group. Raises RetryableError."""
    rows = (await connection.ask(Statement("inbox.lag", {"group": group}))).rows
    counts = {status: int(count) for status, count, _ in rows}
    oldest = max((float(age) for _, _, age in rows), default=0.0)
    ready, retry, held, failed = (
        counts.get(name, 0) for name in ("ready", "retry", "held", "failed")
    )
    return GroupLag(ready, retry, held, failed, oldest)


async def wait_for(
    ids: Collection[str],
    *,
    group: str,
    handlers: HandlerRegistry,
    connection: ConnectionThread,
    clock: Clock,
    timeout_seconds: float = 10.0,
) -> None:
    """Wait until a group has handled these messages (or an operator has skipped or dropped them).

    ids: 1 to 10,000 message ids. Raises NotObservableError (a group that is not handled here, or
    with a business key), TimeoutError, whose text counts what the others are.
    """
    names = _observable(handlers, group)
    if len(ids) > IDS_MAX:
        raise NotObservableError(f"{len(ids)} ids, at most {IDS_MAX} at once")
    waiting = set(ids)
    until = time.monotonic() + timeout_seconds
    while waiting:
        values = {"group": group, "handlers": names, "message_ids": sorted(waiting)}
        rows = (await connection.ask(Statement("inbox.of_message", values))).rows
        waiting -= {message_id for message_id, status in rows if status in _FINISHED}
        if waiting and time.monotonic() >= until:
            raise TimeoutError(
                f"group {group}: {_counted(rows, waiting)} after {timeout_seconds:g} s"
            )
        if waiting:
            await clock.sleep(POLL_SECONDS)


def _observable(handlers: HandlerRegistry, group: str) -> list[str]:
    found = handlers.of_group(group)
    if not found:
        raise NotObservableError(f"group {group} has no handler in this App")
    keyed = sorted({handler.name for handler in found if handler.dedupe is not None})
    if keyed:
        raise NotObservableError(f"group {group}: {', '.join(keyed)} dedupes by a business key")
    return sorted({handler.name for handler in found})


def _counted(rows: Collection[tuple[str, str]], waiting: Collection[str]) -> str:
    best: dict[str, str] = {}
    for message_id, status in rows:
        if message_id in waiting:
            best[message_id] = status or best.get(message_id, "")
    counts = Counter(status or "not received" for status in best.values())
    return ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
