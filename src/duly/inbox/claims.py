"""The first statement of a handler's transaction: the one that lets it be handled once.

Owns what the database's answer means.  Insert first, look afterwards: of two transactions that
claim one message the second waits for the first, and then finds its row (or, after a rollback,
claims it itself).  The invariant: after NEW the commit of this transaction and the record that the
message is done are one thing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from duly.errors import TransactionConflictError
from duly.inbox.ending import End, Ending
from duly.inbox.identity import Identity
from duly.kernel.lease import LeaseTerm
from duly.message import Message
from duly.ports import Statement, Steps
from duly.runtime.work import Row

__all__ = ["BatchClaim", "Claim", "FreshClaim", "RowClaim", "judged"]

_FINISHED = frozenset({"done", "skipped", "dropped"})
_encode = msgspec.json.Encoder().encode


class Claim(Protocol):
    """Claims messages in the open transaction."""

    def steps(self) -> Steps[Ending | None]:
        """None when the handler may go on, else how it has ended already."""
        ...


class FreshClaim(NamedTuple):
    """A message from the broker: its row is inserted as done."""

    identity: Identity
    message: Message

    def steps(self) -> Steps[Ending | None]:
        """Insert; when there is a row already, that one decides."""
        values = claim_values(self.identity, self.message)
        inserted = yield Statement("inbox.claim", values)
        if inserted.count == 1:
            return None
        found = yield Statement("inbox.look", values)
        if not found.rows:
            raise TransactionConflictError("the row in the way is gone")
        return judged(found.rows[0][0], found.rows[0][1], self.message.id)


class RowClaim(NamedTuple):
    """A stored row: it becomes done, as long as the lane is ours and nobody has finished it."""

    row: Row
    term: LeaseTerm

    def steps(self) -> Steps[Ending | None]:
        """Update under the lane's token; no row means somebody else's."""
        settled = yield row_statement("inbox.finish", self.row, self.term)
        return None if settled.count == 1 else Ending(End.STALE)


class BatchClaim:
    """Many messages of one handler. endings: those that are not for the handler, by place; after
    ``steps``.
    """

    def __init__(self, identities: Sequence[Identity], messages: Sequence[Message]) -> None:
        self._identities, self._messages = identities, messages
        self._where = {"group": identities[0].group, "handler": identities[0].handler}
        self.endings: dict[int, Ending] = {}

    def steps(self) -> Steps[Ending | None]:
        """Insert all; only when some were there already, undo that and find out which. None unless
        not one is new.
        """
        places: dict[str, int] = {}
        for place, identity in enumerate(self._identities):
            key = identity.dedupe_key
            if places.setdefault(key, place) != place:
                self.endings[place] = Ending(End.DUPLICATE)  # twice in one batch
        order = [place for _, place in sorted(places.items())]  # one order for all: no deadlocks
        parts = self._parts(order)
        inserted = 0
        for values in parts:
            inserted += (yield Statement("inbox.claim_all", values)).count
        if inserted < len(order):
            yield Statement("inbox.unwind")
            yield from self._sort_out(places, parts)
        return Ending(End.DUPLICATE) if len(self.endings) == len(self._messages) else None

    def _sort_out(self, places: dict[str, int], parts: Sequence[dict[str, Any]]) -> Steps[None]:
        fresh: set[str] = set()
        for values in parts:
            inserted = yield Statement("inbox.claim_many", values)
            fresh.update(key for (key,) in inserted.rows)
        known = yield from self._look([key for key in places if key not in fresh])
        for key, place in places.items():
            if key not in fresh:
                message_id, status = known[key]
                self.endings[place] = judged(message_id, status, self._messages[place].id)

    def _parts(self, order: Sequence[int]) -> list[dict[str, Any]]:
        """The values of the inserts: what all rows have in common is said once, so nearly always
        there is one.
        """
        messages = self._messages
        parts: dict[tuple[str, str, str], list[int]] = {}
        for place in order:
            m = messages[place]
            parts.setdefault((m.type, m.kind, m.topic), []).append(place)
        return [
            {
                **self._where,
                "message_type": type_,
                "kind": kind,
                "topic": topic,
                "rows": self._rows(places),
            }
            for (type_, kind, topic), places in parts.items()
        ]

    def _rows(self, places: Sequence[int]) -> str:
        identities, messages = self._identities, self._messages
        rows = [(identities[p].dedupe_key, messages[p].id, messages[p].key) for p in places]
        return _encode(rows).decode()

    def _look(self, keys: Collection[str]) -> Steps[dict[str, tuple[str, str]]]:
        found = yield Statement("inbox.seen", {**self._where, "dedupe_keys": list(keys)})
        known = {key: (message_id, status) for key, message_id, status in found.rows}
        if len(known) < len(keys):
            raise TransactionConflictError("a row in the way is gone")
        return known


def claim_values(identity: Identity, message: Message) -> dict[str, Any]:
    """The values of a row that is done; it needs no payload."""
    return {
        "group": identity.group,
        "handler": identity.handler,
        "dedupe_key": identity.dedupe_key,
        "message_id": message.id,
        "message_type": message.type,
        "kind": message.kind,
        "topic": message.topic,
        "key": message.key,
    }


def judged(found_id: str, status: str, message_id: str) -> Ending:
    """What a row with the same identity means for a message."""
    if status in _FINISHED:
        return Ending(End.DUPLICATE)
    if found_id == message_id:
        return Ending(End.OWNED)
    return Ending(End.BUSY, "DEDUPE_KEY_BUSY: another message with this key is not finished")


def row_statement(name: str, row: Row, term: LeaseTerm, **values: Any) -> Statement:
    """A change of a stored row under the token of its lane."""
    fence = {"lease": term.name, "token": term.token}
    return Statement(name, {"id": row.id, "message_id": row.message_id, **fence, **values})
