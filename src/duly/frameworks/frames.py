"""What every join shares: the buffer of one transaction frame, and the three moments of its life.

*Resolve* computes late values while SQL is legal, *write* stores the messages of all Apps as the
last statements of the transaction, *finish* runs what waited for the commit.  The invariant: an
entry sits in exactly one buffer, and entries leave in the order in which they were published,
however frames were merged on the way.  Which frame an entry belongs to, and when the three moments
come, is each join's own business.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

from duly.errors import ConfigurationError
from duly.ports import Outlet, Pending, Result, Statement, Steps

__all__ = ["ROUNDS_MAX", "Item", "by_outlet", "drive", "finish", "item", "resolve", "write"]

T = TypeVar("T")
ROUNDS_MAX = 100  # as SQLAlchemy's own limit of flushes in one commit

_order = itertools.count()


class Item(NamedTuple):
    """An entry and its place in the order of publishing (process-wide, so that merged frames can be
    sorted).
    """

    order: int
    entry: Pending


def item(entry: Pending) -> Item:
    """Number an entry."""
    return Item(next(_order), entry)


def resolve(items: Callable[[], Iterable[Item]]) -> None:
    """Resolve until nothing is late any more; a late value may publish again.

    Raises ConfigurationError (PUBLISH_NEVER_ENDS) after 100 rounds, and whatever a late value
    raises.
    """
    for _ in range(ROUNDS_MAX):
        late = [found.entry for found in items() if not found.entry.frozen]
        if not late:
            return
        for entry in late:
            entry.resolve()
    raise ConfigurationError(
        "late-bound messages publish new late-bound messages", code="PUBLISH_NEVER_ENDS"
    )


def by_outlet(items: Iterable[Item]) -> dict[Outlet, list[Pending]]:
    """The entries that are to be stored, in order of publishing, by App."""
    found: dict[Outlet, list[Pending]] = {}
    for one in sorted(items):
        if one.entry.outlet is not None:
            found.setdefault(one.entry.outlet, []).append(one.entry)
    return found


def drive(steps: Steps[T], run: Callable[[Statement], Result]) -> T:
    """Run the statements of ``steps`` one by one and give back what it returns."""
    try:
        statement = next(steps)
        while True:
            statement = steps.send(run(statement))
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


def write(
    items: Iterable[Item], run: Callable[[Outlet, Statement], Result], *, last: bool = True
) -> None:
    """Store the messages of all Apps. last: as ``Outlet.write``."""
    for outlet, entries in by_outlet(items).items():
        drive(outlet.write(entries, last=last), lambda statement, to=outlet: run(to, statement))  # type: ignore[misc]


def finish(items: Sequence[Item], end: Callable[[bool], None]) -> None:
    """After the outermost commit: wake the relays, then run what waited, each in its own
    transaction.

    end: commits (True) or rolls back (False) what an entry left open on the user's session or
    connection; does nothing when it left nothing.  An entry that raises is told so, and the next
    ones still run: the commit *has* succeeded, and an exception out of ``commit()`` would make the
    caller repeat it.
    """
    for outlet, entries in by_outlet(items).items():
        outlet.committed(entries)
    for one in sorted(items):
        try:
            try:
                one.entry.committed()
            except BaseException:
                end(False)
                raise
            end(True)
        except Exception as error:  # noqa: BLE001  # reported by the entry; must not look like a failed commit
            one.entry.failed(error)
