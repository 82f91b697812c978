"""The operator's service: what a person may see of the boxes, and what they may do about it.

One service for outbox and inbox alike, behind the command line now and other faces later.  It is
synchronous: each call uses a private connection in the calling thread and returns when its
transaction is committed.  What a verb means for a row, its key and its hold is ``verbs``'; here are
reading, doing it to many, pausing, and telling the hooks.  The invariant: nothing is changed
without a line in the audit that says who and why, and nothing in bulk that was not counted before.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from duly.errors import (
    OperatorError,
    PayloadTooLargeError,
    TransactionConflictError,
    UndecodableError,
    WrongStatusError,
)
from duly.kernel.lifecycle import INBOX, INBOX_STATUSES, OUTBOX, OUTBOX_STATUSES, VERBS
from duly.kernel.names import check_name
from duly.message import HEADER_VERSION, Registry, is_plain_text
from duly.observe.facts import OperatorActed
from duly.observe.hooks import Hooks
from duly.outbox.verbs import Acted, Change, StoredRow, act, audit, read_row
from duly.ports import Connection, Result, Statement, Steps
from duly.runtime.aside import note_name, noted

__all__ = [
    "BULK_MAX",
    "Audited",
    "By",
    "Detail",
    "Effect",
    "Line",
    "Operator",
    "Refused",
    "Scope",
    "Stat",
    "Stuck",
    "Swept",
    "check_by",
]

BULK_MAX = 10_000  # rows one bulk verb may touch; a wider scope must be narrowed
LIST_MAX = 1_000
_BATCH = 100
_TRIES = 5
_KEPT = frozenset({"retry", "held", "failed"})  # what the small index holds
_STATUSES = {OUTBOX: OUTBOX_STATUSES, INBOX: INBOX_STATUSES}
_AUDIT_SHOWN = 50

T = TypeVar("T")


class By(NamedTuple):
    """Who acts and why, as the audit keeps it: an actor of 1 to 200 bytes, a reason of up to
    1,000.
    """

    actor: str
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Which rows: all conditions together. error: how the stored error begins, usually a code.
    since: seconds since 1970. group: inbox only. Empty: no condition.
    """

    statuses: tuple[str, ...] = ("failed", "held")
    topic: str = ""
    group: str = ""
    error: str = ""
    since: float = 0.0


class Line(NamedTuple):
    """A message as it is listed; times in seconds since 1970."""

    id: int
    message_id: str
    type: str
    kind: str
    topic: str
    key: str | None
    group: str
    handler: str
    status: str
    attempts: int
    due_at: float | None
    error: str | None
    created_at: float
    settled_at: float | None


class Effect(NamedTuple):
    """A call to the outside that a handler recorded."""

    step: str
    state: str
    provider_key: str
    created_at: float
    settled_at: float | None


class Audited(NamedTuple):
    """A line of the audit, newest first."""

    id: int
    created_at: float
    actor: str
    verb: str
    target: str
    message_id: str | None
    reason: str
    detail: dict[str, Any]


class Detail(NamedTuple):
    """All of one message. payload: decoded JSON, or ``{"base64": ...}``; None where none is kept.
    waits_for: the id of the row that blocks its key, its own where it is the blocker.
    """

    line: Line
    headers: dict[str, str]
    payload: Any
    waits_for: int | None
    effects: tuple[Effect, ...]
    audit: tuple[Audited, ...]


class Stat(NamedTuple):
    """How many rows of a topic (and group) have a status. oldest_at: seconds since 1970."""

    group: str
    topic: str
    status: str
    rows: int
    oldest_at: float


class Stuck(NamedTuple):
    """A topic whose messages wait because its destination does not take them, such as a command
    that nobody has a queue for. since: seconds since 1970; tries: since then.
    """

    topic: str
    error: str
    since: float
    tries: int
    rows: int


class Refused(NamedTuple):
    """A row that a bulk verb left alone."""

    id: int
    code: str
    detail: str


class Swept(NamedTuple):
    """What a bulk verb did. changed: rows; refused: those it left alone, with the reason."""

    changed: int
    refused: tuple[Refused, ...]


class Operator:
    """The operator's verbs over the outbox and the inbox of one App.

    connection_factory: opens a private connection (``Database.connect``). registry: where given, an
    edited payload must fit its message type. All methods raise DatabaseUnavailableError and
    SchemaError of the database. Verbs act on ``failed`` and ``held`` rows only and are idempotent:
    repeated, they change nothing while the row is where that very verb has put it (once it was sent
    and deleted, NotFoundError).
    """

    def __init__(
        self,
        connection_factory: Callable[[], Connection],
        *,
        hooks: Hooks | None = None,
        registry: Registry | None = None,
        payload_bytes_max: int = 1_000_000,
    ) -> None:
        self._connect = connection_factory
        self._hooks = hooks or Hooks()
        self._registry = registry
        self._payload_bytes_max = payload_bytes_max

    # --- looking ----------------------------------------------------------------------------------
    def find(self, box: str, scope: Scope, *, limit: int = 100, after: int = 0) -> list[Line]:
        """Up to ``limit`` (at most 1,000) messages of a scope, by id, behind the id ``after``."""
        values = _values(box, scope) | {"limit": min(max(limit, 1), LIST_MAX), "after": after}
        name = "kept" if _KEPT.issuperset(scope.statuses) else "list"
        rows = self._ask(Statement(f"operator.{box}_{name}", values)).rows
        return [Line._make(row) for row in rows]

    def count(self, box: str, scope: Scope) -> int:
        """How many messages a scope holds now."""
        name = "count_kept" if _KEPT.issuperset(scope.statuses) else "count"
        result = self._ask(Statement(f"operator.{box}_{name}", _values(box, scope)))
        return int(result.rows[0][0])

    def stats(self, box: str) -> list[Stat]:
        """Counts by group, topic and status; reads the whole box."""
        _check_box(box)
        rows = self._ask(Statement(f"operator.{box}_stats")).rows
        return [Stat._make(row) for row in rows]

    def show(self, box: str, row_id: int) -> Detail:
        """Everything known of one message. Raises NotFoundError."""
        _check_box(box)
        return self._run(lambda: _show(box, row_id))

    def history(self, target: str, *, limit: int = _AUDIT_SHOWN) -> list[Audited]:
        """The audit of a target (``outbox/12``, ``pause/inbox/billing`` ...), newest first."""
        rows = self._ask(Statement("audit.of", {"target": target, "limit": limit})).rows
        return [_audited(row) for row in rows]

    # --- acting on one message --------------------------------------------------------------------
    def act(
        self,
        verb: str,
        box: str,
        row_id: int,
        *,
        by: By,
        message_id: str | None = None,
        out_of_order: bool = False,
    ) -> Acted:
        """Carry out ``retry``, ``resend``, ``reprocess``, ``skip`` or ``drop`` on one message.

        retry: back to work, attempts from 0. resend (outbox): back to work under the same id with
        the attempts it has, so that one more failure is the last. reprocess (inbox): as if it had
        never been received; its effects are kept. skip, drop: never again; its key goes on.
        message_id: refuse when the row holds another message by now. out_of_order: accept that
        messages behind it have gone before.

        Guarantee: row, hold and audit change together or not at all; what is in flight is not
        touched. On failure: nothing is changed.
        Raises NotFoundError, WrongStatusError, OperatorError, TransactionConflictError.
        """
        if verb == "edit":
            raise OperatorError("an edit brings a payload: use edit()")
        change = Change(
            _check_verb(verb, box), box, *check_by(by), message_id, out_of_order=out_of_order
        )
        return self._acted(change, row_id)

    def edit(
        self,
        box: str,
        row_id: int,
        payload: bytes,
        *,
        by: By,
        message_id: str | None = None,
        out_of_order: bool = False,
    ) -> Acted:
        """Replace the payload and put the message back to work in its position.

        It gets a new id, the old one stands in its header ``dulyreplaces``; its effects stay its
        own. payload: JSON of at most ``payload_bytes_max`` bytes. The audit keeps digests of both
        payloads, not the old contents. Otherwise as ``act``.
        Raises UndecodableError, PayloadTooLargeError too.
        """
        change = Change(
            _check_verb("edit", box), box, *check_by(by), message_id, payload, out_of_order
        )
        self._check_payload(box, row_id, payload)
        return self._acted(change, row_id)

    # --- acting on many ---------------------------------------------------------------------------
    def act_on_all(
        self,
        verb: str,
        box: str,
        scope: Scope,
        *,
        by: By,
        expected: int,
        out_of_order: bool = False,
    ) -> Swept:
        """Carry out a verb on every message of a scope, in the order of ids.

        expected: what ``count`` said; when the scope holds another number now, nothing is done.
        Guarantee: each 100 messages are one transaction. On failure: what was committed stays; the
        rest is untouched. Rows to which the verb does not apply are left alone and reported.
        Raises WrongStatusError (COUNT_CHANGED), OperatorError (SCOPE_TOO_WIDE).
        """
        if verb == "edit":
            raise OperatorError("an edit brings one payload for one message")
        change = Change(_check_verb(verb, box), box, *check_by(by), out_of_order=out_of_order)
        ids = self._ids(box, scope)
        if len(ids) != expected:
            text = f"the scope held {expected} messages and holds {len(ids)} now"
            raise WrongStatusError(text, code="COUNT_CHANGED")
        changed, refused = 0, []
        for start in range(0, len(ids), _BATCH):
            part = ids[start : start + _BATCH]
            done, left = self._run(lambda part=part: _act_on(change, part))  # type: ignore[misc]
            changed += done
            refused += left
            self._tell(change, done)
        return Swept(changed, tuple(refused))

    # --- pausing ----------------------------------------------------------------------------------
    def pause(self, box: str, name: str, *, by: By) -> bool:
        """Stop sending a topic (outbox) or handling for a group (inbox) until ``resume``.

        Nothing is lost: what is in flight ends, the rest waits. Every process sees it with its next
        beat, within seconds. Returns False when it was paused already.
        """
        return self._switch("pause", box, name, by=by)

    def resume(self, box: str, name: str, *, by: By) -> bool:
        """Undo ``pause``. Returns False when it was not paused."""
        return self._switch("resume", box, name, by=by)

    def paused(self, box: str) -> list[str]:
        """The topics or groups that are paused."""
        prefix = f"pause/{_check_box(box)}/"
        rows = self._ask(Statement("meta.all")).rows
        return sorted(name.removeprefix(prefix) for name, _ in rows if name.startswith(prefix))

    def stuck(self, box: str) -> list[Stuck]:
        """The topics that are set aside at the moment, as their relays have noted it."""
        metas = dict(self._ask(Statement("meta.all")).rows)
        found = []
        for topic in sorted(noted(metas, _check_box(box))):
            told = json.loads(metas[note_name(box, topic)])
            rows = self.count(box, Scope(statuses=("ready",), topic=topic))
            if rows:  # the rest was skipped or dropped by hand
                found.append(Stuck(topic, told["error"], told["since"], told["tries"], rows))
        return found

    # --- inside -----------------------------------------------------------------------------------
    def _acted(self, change: Change, row_id: int) -> Acted:
        acted = self._run(lambda: act(change, row_id))
        self._tell(change, int(acted.changed))
        return acted

    def _tell(self, change: Change, count: int) -> None:
        if count:
            self._hooks.emit(
                OperatorActed(box=change.box, verb=change.verb, actor=change.actor, count=count)
            )

    def _ids(self, box: str, scope: Scope) -> list[int]:
        ids: list[int] = []
        with closing(self._connect()) as connection:
            while True:
                values = _values(box, scope) | {"limit": LIST_MAX, "after": ids[-1] if ids else 0}
                name = "kept" if _KEPT.issuperset(scope.statuses) else "list"
                rows = connection.ask(Statement(f"operator.{box}_{name}", values)).rows
                ids += [row[0] for row in rows]
                if len(ids) > BULK_MAX:
                    text = f"more than {BULK_MAX} messages; narrow it"
                    raise OperatorError(text, code="SCOPE_TOO_WIDE")
                if len(rows) < LIST_MAX:
                    return ids

    def _switch(self, verb: str, box: str, name: str, *, by: By) -> bool:
        check_name(name, "topic" if _check_box(box) == OUTBOX else "group")
        change = Change(verb, box, *check_by(by))
        changed = self._run(lambda: _switch(change, f"pause/{box}/{name}"))
        self._tell(change, int(changed))
        return changed

    def _check_payload(self, box: str, row_id: int, payload: bytes) -> None:
        if len(payload) > self._payload_bytes_max:
            text = f"{len(payload)} bytes, the cap is {self._payload_bytes_max}"
            raise PayloadTooLargeError(text)
        try:
            json.loads(payload, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise UndecodableError(f"the new payload is not JSON: {str(error)[:100]}") from error
        if self._registry is None:
            return
        row = self._run(lambda: read_row(box, row_id))
        version = json.loads(row.headers).get(HEADER_VERSION, "1")
        if spec := self._registry.find(row.message_type, int(version)):
            self._registry.decode(spec, payload)

    def _ask(self, statement: Statement) -> Result:
        with closing(self._connect()) as connection:
            return connection.ask(statement)

    def _run(self, steps: Callable[[], Steps[T]]) -> T:
        """Run steps in one transaction, again a few times when somebody else was in the way."""
        with closing(self._connect()) as connection:
            for _ in range(_TRIES - 1):
                try:
                    return connection.run(steps())
                except TransactionConflictError:
                    continue
            return connection.run(steps())


def _show(box: str, row_id: int) -> Steps[Detail]:
    row = yield from read_row(box, row_id)
    effects: list[tuple[Any, ...]] = []
    if box == INBOX:
        values = {"group": row.group, "handler": row.handler, "dedupe_key": row.dedupe_key}
        effects = (yield Statement("operator.effects", values)).rows
    waits_for = None
    if row.key is not None:
        scope = f"inbox:{row.group}" if box == INBOX else box
        keys = {"scope": scope, "topics": [row.topic], "keys": [row.key]}
        holds = (yield Statement("hold.lock", keys)).rows
        waits_for = holds[0][2] if holds else None
    audit_values = {"target": f"{box}/{row_id}", "limit": _AUDIT_SHOWN}
    audited = (yield Statement("audit.of", audit_values)).rows
    return Detail(
        Line._make(row[:14]),
        json.loads(row.headers),
        _payload(row),
        waits_for,
        tuple(Effect._make(effect) for effect in effects),
        tuple(_audited(line) for line in audited),
    )


def _act_on(change: Change, ids: list[int]) -> Steps[tuple[int, list[Refused]]]:
    changed, refused = 0, []
    for row_id in ids:
        try:
            changed += (yield from act(change, row_id)).changed
        except OperatorError as error:  # raised before anything of this row was changed
            refused.append(Refused(row_id, error.code, error.detail))
    return changed, refused


def _switch(change: Change, name: str) -> Steps[bool]:
    if change.verb == "pause":
        value = json.dumps({"actor": change.actor, "reason": change.reason})
        switched = yield Statement("meta.put_new", {"name": name, "value": value})
    else:
        switched = yield Statement("meta.drop", {"name": name})
    if not switched.count:
        return False
    yield audit(change, name, message_id=None, detail={})
    return True


def _audited(row: tuple[Any, ...]) -> Audited:
    return Audited._make((*row[:7], json.loads(row[7])))


def _payload(row: StoredRow) -> Any:
    if row.payload is None:
        return None
    try:
        return json.loads(row.payload)
    except (ValueError, RecursionError):
        return {"base64": b64encode(row.payload).decode()}


def _values(box: str, scope: Scope) -> dict[str, Any]:
    known = _STATUSES[_check_box(box)]
    for status in scope.statuses:
        if status not in known:
            text = f"{status!r:.40} is no status of the {box}; they are {', '.join(sorted(known))}"
            raise OperatorError(text)
    if scope.group and box == OUTBOX:
        raise OperatorError("the outbox has no groups")
    return {
        "statuses": list(scope.statuses),
        "topic": scope.topic,
        "group": scope.group,
        "error": scope.error,
        "since": scope.since,
    }


def _check_box(box: str) -> str:
    if box not in VERBS:
        raise OperatorError(f"{box!r:.40} is no box; it is 'outbox' or 'inbox'")
    return box


def _check_verb(verb: str, box: str) -> str:
    if verb not in VERBS[_check_box(box)]:
        raise OperatorError(f"{verb!r:.40} is no verb of the {box}")
    return verb


def check_by(by: By) -> By:
    """Return ``by`` when the audit can keep it. Raises OperatorError."""
    if not is_plain_text(by.actor, bytes_max=200):
        raise OperatorError("actor must be text of 1 to 200 bytes without control characters")
    if by.reason and not is_plain_text(by.reason, bytes_max=1_000):
        raise OperatorError("reason must be text of up to 1,000 bytes without control characters")
    return by


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
