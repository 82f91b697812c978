"""The failure log: what could not be handed over and has no row in the outbox.

Owns ``duly_failure``.  A message gets here when it was sent after the commit under the policy
``FailureLog`` and the broker did not take it, or from any other part that gives something up.  An
entry is ``open`` until it was sent (``resolved``), settled by a person (``resolved``, ``dropped``),
and is tried again by itself while it has a due time; when its attempts are used up it has none and
waits, open, for a person.

Several processes never send one entry at the same time: only the node that holds the lease of the
retrier's role sends, one batch after the other, and begins none that could outlast the lease.  What
a broker confirmed is settled whoever holds the lease by then - a confirmed message is a fact;
counting attempts is fenced by the lease's token.  An entry that a person touched meanwhile keeps
what they decided.
"""

from __future__ import annotations

import json
import random
from base64 import b64encode
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

from duly.errors import NotFoundError, OperatorError, StaleLeaseError, WrongStatusError
from duly.kernel.backoff import Retry
from duly.kernel.lease import may_act
from duly.kernel.names import check_name
from duly.message import Message
from duly.observe.facts import OperatorActed
from duly.observe.hooks import Hooks
from duly.outbox.operator import BULK_MAX, Audited, By, Refused, Swept, check_by
from duly.outbox.send import Send, send
from duly.outbox.sole import Pass
from duly.ports import Clock, Connection, Outcome, OutcomeKind, Result, Statement, Steps

__all__ = [
    "STATES",
    "FailureDetail",
    "FailureLine",
    "FailureRetrier",
    "FailureScope",
    "FailureStore",
    "add_failure",
]

STATES = frozenset({"open", "resolved", "dropped"})
_ERROR_CHARACTERS_MAX = 1_000
_LIST_MAX = 1_000
_BATCH = 100
_AFTER = {"retry": "open", "resolve": "resolved", "drop": "dropped"}
_NO_ATTEMPT_SECONDS = 5.0  # until a batch that met no broker is tried again


class FailureLine(NamedTuple):
    """An entry as it is listed; times in seconds since 1970. due_at: None where nothing tries it
    by itself.
    """

    id: int
    source: str
    message_id: str
    type: str
    kind: str
    topic: str
    key: str | None
    state: str
    attempts: int
    due_at: float | None
    error: str | None
    created_at: float
    settled_at: float | None


class FailureDetail(NamedTuple):
    """All of one entry. payload: decoded JSON, or ``{"base64": ...}``."""

    line: FailureLine
    headers: dict[str, str]
    payload: Any
    audit: tuple[Audited, ...]


@dataclass(frozen=True, kw_only=True)
class FailureScope:
    """Which entries: all conditions together. error: how the error begins. since: seconds since
    1970.
    """

    states: tuple[str, ...] = ("open",)
    source: str = ""
    topic: str = ""
    error: str = ""
    since: float = 0.0


def add_failure(
    source: str, message: Message, error: str, *, delay_seconds: float | None
) -> Steps[int]:
    """Add an entry; returns its id.

    source: the name of the part that gave up. error: ``CODE: text`` without payloads or secrets,
    cut at 1,000 characters. delay_seconds: until it is tried by itself, None for never.
    Idempotence: none; each call is an entry.
    """
    values = {
        "source": check_name(source, "source"),
        "message_id": message.id,
        "message_type": message.type,
        "kind": message.kind,
        "topic": message.topic,
        "key": message.key,
        "payload": message.payload,
        "headers": json.dumps(message.headers),
        "error": error[:_ERROR_CHARACTERS_MAX],
        "delay_seconds": delay_seconds,
    }
    added: Result = yield Statement("failure.add", values)
    return int(added.rows[0][0])


class FailureStore:
    """The failure log for sync callers: each call uses a private connection and is committed when
    it returns. Raises what the database raises.
    """

    def __init__(
        self, connection_factory: Callable[[], Connection], *, hooks: Hooks | None = None
    ) -> None:
        self._connect = connection_factory
        self._hooks = hooks or Hooks()

    def add(
        self, source: str, message: Message, error: str, *, delay_seconds: float | None = None
    ) -> int:
        """As ``add_failure``."""
        with closing(self._connect()) as connection:
            return connection.run(add_failure(source, message, error, delay_seconds=delay_seconds))

    def find(self, scope: FailureScope, *, limit: int = 100, after: int = 0) -> list[FailureLine]:
        """Up to ``limit`` (at most 1,000) entries of a scope, by id, behind the id ``after``."""
        values = _values(scope) | {"limit": min(max(limit, 1), _LIST_MAX), "after": after}
        with closing(self._connect()) as connection:
            rows = connection.ask(Statement("failure.list", values)).rows
        return [FailureLine._make(row) for row in rows]

    def count(self, scope: FailureScope) -> int:
        """How many entries a scope holds now."""
        with closing(self._connect()) as connection:
            result = connection.ask(Statement("failure.count", _values(scope)))
        return int(result.rows[0][0])

    def show(self, failure_id: int) -> FailureDetail:
        """Everything known of one entry. Raises NotFoundError."""
        with closing(self._connect()) as connection:
            return connection.run(_show(failure_id))

    def act(self, verb: str, failure_id: int, *, by: By) -> bool:
        """``retry`` (due now, attempts from 0), ``resolve`` (settled by hand) or ``drop`` an entry.

        Guarantee: the change and its line in the audit are one transaction. Idempotence: False when
        it was resolved or dropped already by the same verb; a retry may be asked for again.
        Raises NotFoundError, WrongStatusError (it is settled the other way), OperatorError.
        """
        _check(verb, by)
        with closing(self._connect()) as connection:
            changed = connection.run(_act(verb, failure_id, by))
        self._tell(verb, by, int(changed))
        return changed

    def act_on_all(self, verb: str, scope: FailureScope, *, by: By, expected: int) -> Swept:
        """A verb on every entry of a scope. expected: what ``count`` said.

        Guarantee: each 100 entries are one transaction. Raises WrongStatusError (COUNT_CHANGED),
        OperatorError (SCOPE_TOO_WIDE).
        """
        _check(verb, by)
        ids = self._ids(scope)
        if len(ids) != expected:
            text = f"the scope held {expected} entries and holds {len(ids)} now"
            raise WrongStatusError(text, code="COUNT_CHANGED")
        changed, refused = 0, []
        with closing(self._connect()) as connection:
            for start in range(0, len(ids), _BATCH):
                part = ids[start : start + _BATCH]
                done, left = connection.run(_act_on(verb, part, by))
                changed += done
                refused += left
                self._tell(verb, by, done)
        return Swept(changed, tuple(refused))

    def _ids(self, scope: FailureScope) -> list[int]:
        ids: list[int] = []
        while True:
            lines = self.find(scope, limit=_LIST_MAX, after=ids[-1] if ids else 0)
            ids += [line.id for line in lines]
            if len(ids) > BULK_MAX:
                text = f"more than {BULK_MAX} entries; narrow it"
                raise OperatorError(text, code="SCOPE_TOO_WIDE")
            if len(lines) < _LIST_MAX:
                return ids

    def _tell(self, verb: str, by: By, count: int) -> None:
        if count:
            self._hooks.emit(OperatorActed(box="failures", verb=verb, actor=by.actor, count=count))


class FailureRetrier:
    """Sends the due entries of one source again; the work of a ``SoleRole`` named ``failures``.

    source: whose entries. send: ``Broker.publish``. retry: how often and when; after the last
    attempt the entry waits for a person. send_timeout_seconds: of one batch, below the lease.
    """

    def __init__(
        self,
        source: str,
        send: Send,
        *,
        clock: Clock,
        retry: Retry | None = None,
        send_timeout_seconds: float = 3.0,
    ) -> None:
        self._source, self._send, self._clock = source, send, clock
        self._retry = retry or Retry(attempts=20, base="5s", max="10m")
        self._send_timeout_seconds = send_timeout_seconds

    async def work(self, turn: Pass) -> bool:
        """Send one batch of due entries; True when there may be more.

        Guarantee: an entry is settled only after its confirm. On failure: it is due again later.
        Raises StaleLeaseError when attempts could not be counted under this lease any more.
        """
        values = {"source": self._source, "limit": _BATCH}
        due = (await turn.connection.ask(Statement("failure.due", values))).rows
        if not due or not may_act(turn.term, self._clock.monotonic(), self._send_timeout_seconds):
            return False
        messages = [
            Message(message_id, name, kind, topic, key, bytes(payload), json.loads(headers))
            for _, message_id, name, kind, topic, key, payload, headers, _ in due
        ]
        limit = self._send_timeout_seconds
        outcomes = await send(self._send, messages, deadline_seconds=limit)
        sent = [row for row, outcome in zip(due, outcomes, strict=True) if _is_sent(row, outcome)]
        left = [
            (row, outcome)
            for row, outcome in zip(due, outcomes, strict=True)
            if not _is_sent(row, outcome)
        ]
        if sent:
            await turn.connection.run(lambda: _resolve(sent))
        if left:
            await turn.connection.run(lambda: self._postpone(turn, left))
        return len(due) == _BATCH and not left

    def _postpone(self, turn: Pass, left: Sequence[tuple[Any, Outcome]]) -> Steps[None]:
        guard = {"name": turn.term.name, "holder": turn.holder, "token": turn.term.token}
        if not (yield Statement("lease.guard", guard)).rows:
            raise StaleLeaseError(f"{turn.term.name} has another owner")
        for row, outcome in left:
            attempts, delay = self._next(row[-1], outcome)
            values = {
                "id": row[0],
                "was": row[-1],
                "attempts": attempts,
                "error": f"{outcome.kind.name}: {outcome.error}"[:_ERROR_CHARACTERS_MAX],
                "delay_seconds": delay,
            }
            yield Statement("failure.postpone", values)

    def _next(self, attempts: int, outcome: Outcome) -> tuple[int, float | None]:
        """The attempts used and the seconds until the next; None for a person's decision."""
        if outcome.kind in (OutcomeKind.UNAVAILABLE, OutcomeKind.UNKNOWN):
            return attempts, _NO_ATTEMPT_SECONDS
        attempts += 1
        if outcome.kind is OutcomeKind.IMPOSSIBLE or self._retry.exhausted(attempts):
            return attempts, None
        return attempts, self._retry.delay(attempts, random.random())


def _is_sent(row: Any, outcome: Outcome) -> bool:
    """An event that nobody is bound to has been sent; a command has not."""
    unrouted_event = outcome.kind is OutcomeKind.UNROUTED and row[3] == "event"
    return outcome.kind is OutcomeKind.CONFIRMED or unrouted_event


def _resolve(rows: Sequence[Any]) -> Steps[None]:
    many = [{"id": row[0], "message_id": row[1], "state": "resolved"} for row in rows]
    yield Statement("failure.settle", many=many)


def _read(failure_id: int) -> Steps[tuple[Any, ...]]:
    found: Result = yield Statement("failure.show", {"id": failure_id})
    if not found.rows:
        raise NotFoundError(f"failure {failure_id} is not there (settled ones may be deleted)")
    return found.rows[0]


def _show(failure_id: int) -> Steps[FailureDetail]:
    row = yield from _read(failure_id)
    target = {"target": f"failure/{failure_id}", "limit": 50}
    audited = (yield Statement("audit.of", target)).rows
    try:
        payload = json.loads(row[13])
    except (ValueError, RecursionError):
        payload = {"base64": b64encode(row[13]).decode()}
    lines = tuple(Audited._make((*line[:7], json.loads(line[7]))) for line in audited)
    return FailureDetail(FailureLine._make(row[:13]), json.loads(row[14]), payload, lines)


def _act(verb: str, failure_id: int, by: By) -> Steps[bool]:
    line = FailureLine._make((yield from _read(failure_id))[:13])
    if line.state != "open":
        if line.state == _AFTER[verb]:
            return False
        raise WrongStatusError(f"{verb} of failure {failure_id}, which is {line.state}")
    values: dict[str, Any] = {"id": failure_id, "message_id": line.message_id}
    if verb == "retry":
        changed = yield Statement("failure.again", values)
    else:
        changed = yield Statement("failure.settle", many=[{**values, "state": _AFTER[verb]}])
    if not changed.count:
        raise WrongStatusError(f"failure {failure_id} changed meanwhile")
    yield Statement(
        "audit.add",
        {
            "actor": by.actor,
            "verb": verb,
            "target": f"failure/{failure_id}",
            "message_id": line.message_id,
            "reason": by.reason,
            "detail": json.dumps({"attempts": line.attempts}),
        },
    )
    return True


def _act_on(verb: str, ids: Sequence[int], by: By) -> Steps[tuple[int, list[Refused]]]:
    changed, refused = 0, []
    for failure_id in ids:
        try:
            changed += yield from _act(verb, failure_id, by)
        except OperatorError as error:  # raised before anything of this entry was changed
            refused.append(Refused(failure_id, error.code, error.detail))
    return changed, refused


def _values(scope: FailureScope) -> dict[str, Any]:
    for state in scope.states:
        if state not in STATES:
            raise OperatorError(f"{state!r:.40} is no state; they are {', '.join(sorted(STATES))}")
    return {
        "states": list(scope.states),
        "source": scope.source,
        "topic": scope.topic,
        "error": scope.error,
        "since": scope.since,
    }


def _check(verb: str, by: By) -> None:
    if verb not in _AFTER:
        raise OperatorError(f"{verb!r:.40} is no verb of the failure log")
    check_by(by)
