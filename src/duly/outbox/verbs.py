"""What an operator's verb does to one row, as steps of one transaction.

A verb acts on ``failed`` and ``held`` rows, by compare-and-set on (id, message_id, status).  Two
kinds of rows are ``held``: with an error they wait for a person; without one they are followers,
which wait in the queue of their key.  A follower may be touched only while another row blocks its
key, because from a key that nothing blocks the lane's owner may have it in flight.

Order.  A row with a key keeps its place only while the hold of its key names it as the blocker.
Otherwise the key has moved on - messages behind it may have gone - and putting it back to work is
out of order, which the operator must say.  Then it waits like everybody else: where the key has a
queue it becomes a follower in it (the queue is drained in the order of ids), where it has none the
row becomes the blocker of a new one.  Rows of an inbox group with order ``none`` are free of this.

The invariant: the row, its hold and its line in the audit change in one transaction, and none of
them when the verb does not apply.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any, NamedTuple

from duly.errors import NotFoundError, TransactionConflictError, WrongStatusError
from duly.kernel.lifecycle import INBOX, next_status
from duly.message import HEADER_REPLACES, HEADER_UNDECODABLE, new_id
from duly.ports import Result, Statement, Steps

__all__ = ["Acted", "Change", "StoredRow", "act", "audit", "read_row"]


class StoredRow(NamedTuple):
    """A row as ``operator.BOX_show`` reads it. group, handler, dedupe_key: "" in the outbox; times:
    seconds since 1970.
    """

    id: int
    message_id: str
    message_type: str
    kind: str
    topic: str
    key: str | None
    group: str
    handler: str
    status: str
    attempts: int
    due_at: float | None
    last_error: str | None
    created_at: float
    settled_at: float | None
    lane: int
    payload: bytes | None
    headers: str
    dedupe_key: str


class Change(NamedTuple):
    """What an operator asks for. message_id: the one they looked at, None where only the row id is
    given. payload: of an edit. out_of_order: accepted for a row whose key has moved on.
    """

    verb: str
    box: str
    actor: str
    reason: str
    message_id: str | None = None
    payload: bytes | None = None
    out_of_order: bool = False


class Acted(NamedTuple):
    """What became of a row. status: the one it has now. message_id: as it is now (an edit gives a
    new one). changed: False when the same verb had already done it.
    """

    id: int
    message_id: str
    status: str
    changed: bool


class _Move(NamedTuple):
    status: str
    error: str | None
    frees: bool = False
    blocks: bool = False


def act(change: Change, row_id: int) -> Steps[Acted]:
    """Carry out a verb on one row.

    Raises NotFoundError; WrongStatusError, with the codes MESSAGE_CHANGED, KEY_WAITS and
    KEY_MOVED_ON for its finer reasons; TransactionConflictError when the row changed meanwhile.
    Idempotence: repeated by the same verb, it changes nothing while the row is where that verb put
    it.
    """
    row = yield from read_row(change.box, row_id)
    if (yield from _is_done(change, row)):
        return Acted(row.id, row.message_id, row.status, changed=False)
    if change.message_id not in (None, row.message_id):
        text = f"{_target(change.box, row.id)} is message {row.message_id} now"
        raise WrongStatusError(text, code="MESSAGE_CHANGED")
    wanted = next_status(change.box, change.verb, row.status)
    ordered = yield from _is_ordered(change.box, row)
    hold = (yield from _lock_hold(change.box, row)) if ordered else None
    move = _decide(change, row, wanted=wanted, ordered=ordered, hold=hold)
    if move.blocks:
        values = {"scope": _scope(change.box, row), "id": row.id}
        if not (yield Statement(f"operator.{change.box}_block", values)).count:
            raise TransactionConflictError(f"the key of message {row.message_id} got a hold")
    yield from _move(change, row, move)
    if move.frees:
        yield _free(change.box, row)
    message_id = row.message_id
    detail: dict[str, Any] = {"was": row.status}
    if change.verb == "edit":
        message_id = new_id()
        detail |= yield from _edit(change, row, message_id)
    yield audit(change, _target(change.box, row.id), message_id=row.message_id, detail=detail)
    return Acted(row.id, message_id, move.status, changed=True)


def read_row(box: str, row_id: int) -> Steps[StoredRow]:
    """The row. Raises NotFoundError."""
    found: Result = yield Statement(f"operator.{box}_show", {"id": row_id})
    if not found.rows:
        raise NotFoundError(f"{_target(box, row_id)} is not there (settled rows may be deleted)")
    return StoredRow._make(found.rows[0])


def audit(
    change: Change, target: str, *, message_id: str | None, detail: dict[str, Any]
) -> Statement:
    """The line of the audit that goes into the transaction of the change."""
    values = {
        "actor": change.actor,
        "verb": change.verb,
        "target": target,
        "message_id": message_id,
        "reason": change.reason,
        "detail": json.dumps(detail),
    }
    return Statement("audit.add", values)


def _is_done(change: Change, row: StoredRow) -> Steps[bool]:
    """Whether the last thing done to this row was this very verb, and it is still where that put
    it.
    """
    waits = row.status == "held" and row.last_error is None
    if row.status not in ("retry", "skipped", "dropped") and not waits:
        return False
    found = yield Statement("audit.of", {"target": _target(change.box, row.id), "limit": 1})
    if not found.rows or found.rows[0][3] != change.verb:
        return False
    if change.message_id in (None, row.message_id):
        return change.verb != "edit" or row.payload == change.payload
    replaced = json.loads(row.headers).get(HEADER_REPLACES)
    return change.message_id == replaced and row.payload == change.payload


def _is_ordered(box: str, row: StoredRow) -> Steps[bool]:
    if row.key is None:
        return False
    if box != INBOX:
        return True
    meta = dict((yield Statement("meta.all")).rows)
    return meta.get(f"group/{row.group}") != "none"


def _lock_hold(box: str, row: StoredRow) -> Steps[tuple[int | None] | None]:
    """(blocker id,) of the key's hold, None where it has none. Locked, so that the lane's owner
    cannot free it.
    """
    values = {"scope": _scope(box, row), "topics": [row.topic], "keys": [row.key]}
    found: Result = yield Statement("hold.lock", values)
    return (found.rows[0][2],) if found.rows else None


def _decide(
    change: Change,
    row: StoredRow,
    *,
    wanted: str,
    ordered: bool,
    hold: tuple[int | None] | None,
) -> _Move:
    is_blocker = hold == (row.id,)
    if row.status == "held" and row.last_error is None:
        return _decide_follower(change, row, wanted=wanted, hold=hold)
    if wanted != "retry":
        return _Move(wanted, row.last_error, frees=is_blocker)
    error = None if change.verb in ("edit", "reprocess") else row.last_error
    if not ordered or is_blocker:
        return _Move("retry", error)
    if not change.out_of_order:
        raise WrongStatusError(
            f"the key of message {row.message_id} has moved on; --out-of-order sends it anyway",
            code="KEY_MOVED_ON",
        )
    return _Move("retry", error, blocks=True) if hold is None else _Move("held", None)


def _decide_follower(
    change: Change, row: StoredRow, *, wanted: str, hold: tuple[int | None] | None
) -> _Move:
    if hold is None or hold == (None,):
        raise WrongStatusError(
            f"message {row.message_id} is about to go by itself", code="KEY_WAITS"
        )
    if wanted != "retry":
        return _Move(wanted, None)
    if change.verb != "edit":
        raise WrongStatusError(
            f"message {row.message_id} waits behind row {hold[0]}; act on that one",
            code="KEY_WAITS",
        )
    return _Move("held", None)


def _move(change: Change, row: StoredRow, move: _Move) -> Steps[None]:
    values = {
        "id": row.id,
        "message_id": row.message_id,
        "was": row.status,
        "follower": row.last_error is None,
        "status": move.status,
        "attempts": row.attempts if change.verb in ("resend", "skip", "drop") else 0,
        "error": move.error,
        "final": move.status in ("skipped", "dropped"),
    }
    moved = yield Statement(f"operator.{change.box}_move", values)
    if not moved.count:
        raise TransactionConflictError(f"{_target(change.box, row.id)} changed meanwhile")


def _edit(change: Change, row: StoredRow, message_id: str) -> Steps[dict[str, Any]]:
    """Give the row its new payload and id; the audit keeps the digests, not the contents."""
    assert change.payload is not None, "an edit brings a payload"
    headers = {**json.loads(row.headers), HEADER_REPLACES: row.message_id}
    headers.pop(HEADER_UNDECODABLE, None)  # a person has looked at the envelope, too
    values = {
        "id": row.id,
        "message_id": row.message_id,
        "new_id": message_id,
        "payload": change.payload,
        "headers": json.dumps(headers),
    }
    yield Statement(f"operator.{change.box}_edit", values)
    return {
        "new_id": message_id,
        "sha256_was": sha256(row.payload or b"").hexdigest(),
        "sha256": sha256(change.payload).hexdigest(),
    }


def _free(box: str, row: StoredRow) -> Statement:
    values = {
        "scope": _scope(box, row),
        "group": row.group,
        "topics": [row.topic],
        "keys": [row.key],
        "ids": [row.id],
    }
    return Statement(f"{box}.free_holds", values)


def _scope(box: str, row: StoredRow) -> str:
    return f"inbox:{row.group}" if box == INBOX else box


def _target(box: str, row_id: int) -> str:
    return f"{box}/{row_id}"
