"""The relay: from the outbox to the broker.

Owns what the lane reader does not know: how a row becomes a message, what is checked before
anything is sent, and what the broker's outcomes mean for a row.  Order, holds, attempts and
settling are the lane reader's (``runtime.lanes``).

    outcome      verdict      because
    confirmed    DONE         a confirmed message is a fact
    unrouted     UNROUTED     an event that nobody is bound to - unless its route requires groups
                 TOPIC_LATER  a command must have its queue: the route waits, no attempt is used up
    refused      RETRY        this message was turned down; after the last attempt it is failed
    impossible   FAILED       it will never be taken
    unavailable  LATER        nothing was sent
    unknown      LATER        sent, no answer: sent again under the same id

A broker that stores a batch whole or not at all (``atomic_batch``) is asked again without what it
refused and what follows that in its key.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from duly.kernel import failpoints
from duly.kernel.backoff import Retry
from duly.message import Message
from duly.observe.facts import Relayed, Unrouted
from duly.observe.hooks import Hooks
from duly.outbox.routes import Routes
from duly.outbox.send import send
from duly.ports import Broker, Outcome, OutcomeKind
from duly.runtime.work import LaneTerms, Row, Verdict, VerdictKind

__all__ = ["RelayWork", "message_of"]

O = OutcomeKind  # noqa: E741  # one letter in the table below reads better
_HEADERS = msgspec.json.Decoder(dict[str, str])
_DONE = Verdict(VerdictKind.DONE)
_UNROUTED = Verdict(VerdictKind.UNROUTED)
_CONFIRMED = O.CONFIRMED  # asked for every message, and an Enum answers slowly
_NOT_READY = Verdict(VerdictKind.LATER, "BROKER_UNAVAILABLE: topics are not declared yet")
_REFUSED = (O.REFUSED, O.IMPOSSIBLE)
_BEHIND = Verdict(VerdictKind.STALE, "BEHIND_A_FAILURE")


class RelayWork:
    """The work behind the outbox's lanes. batch_max: messages that are read together; a publish has
    half of them, or all where the broker stores a batch whole. ready: whether topics and groups are
    declared, so that nothing is sent past them. in_flight_max: publishes at once.
    """

    box = "outbox"
    scope = "outbox"
    group = ""

    def __init__(
        self,
        broker: Broker,
        routes: Routes,
        *,
        hooks: Hooks,
        batch_max: int = 1000,
        in_flight_max: int = 4,
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        self._broker, self._routes, self._hooks, self._ready = broker, routes, hooks, ready
        self._atomic, self._pipelined = broker.features.atomic_batch, routes.pipelined
        # Halves, so that the broker has the next while the last is settled and its keys are free.
        self.batch_max = batch_max if self._atomic else max(1, batch_max // 2)
        self.in_flight_max = 1 if self._atomic else in_flight_max

    def order_key(self, row: Row) -> tuple[str, str] | None:
        """(topic, key), None for keyless rows and pipelined routes."""
        if row.key is None or row.topic in self._pipelined:
            return None
        return (row.topic, row.key)

    def wave_key(self, row: Row) -> tuple[str, str] | None:
        """None where the broker stores a batch whole and in order: then one publish may hold many
        rows of a key.
        """
        if self._atomic or row.key is None or row.topic in self._pipelined:
            return None
        return (row.topic, row.key)

    def retry_of(self, row: Row) -> Retry:
        """The retry policy of the row's route."""
        return self._routes.of(row.topic).retry

    def blocks(self, row: Row) -> bool:
        """Whether a failed row keeps its key blocked."""
        return self._routes.of(row.topic).on_exhausted == "block"

    async def deliver(
        self, rows: Sequence[Row], *, deadline_seconds: float, terms: LaneTerms
    ) -> Sequence[Verdict]:
        """Publish rows and translate the outcomes."""
        if not self._ready():
            return [_NOT_READY] * len(rows)
        began = time.monotonic()
        verdicts, sending = self._check(rows)
        failpoints.hit(failpoints.RELAY_READ)
        while sending:
            left = began + deadline_seconds - time.monotonic()
            messages = [message for _, message in sending]
            outcomes = await send(self._broker.publish, messages, deadline_seconds=max(0.0, left))
            answered = zip(sending, outcomes, strict=True)
            others = [pair for pair in answered if pair[1].kind is not _CONFIRMED]
            for (place, _), outcome in others:
                verdicts[place] = self._verdict(rows[place], outcome)
            refused = self._atomic and any(outcome.kind in _REFUSED for _, outcome in others)
            unsent = [one for one, outcome in others if outcome.kind is O.UNAVAILABLE]
            sending = self._torn(rows, verdicts, unsent) if refused else []
        failpoints.hit(failpoints.RELAY_CONFIRMED)
        self._report(rows, verdicts, time.monotonic() - began)
        return verdicts

    def _torn(
        self, rows: Sequence[Row], verdicts: list[Verdict], unsent: list[tuple[int, Message]]
    ) -> list[tuple[int, Message]]:
        """What to send again at once: a broker that stores a batch whole stored none of it, for one
        message that it refused. What follows that one in its key waits behind it; the others must
        not come back with it for ever.
        """
        failed: dict[tuple[str, str] | None, int] = {}
        for place in reversed(range(len(rows))):
            if verdicts[place].kind in (VerdictKind.RETRY, VerdictKind.FAILED):
                failed[self.order_key(rows[place])] = place
        again: list[tuple[int, Message]] = []
        for place, message in unsent:
            key = self.order_key(rows[place])
            if key is not None and failed.get(key, place) < place:
                verdicts[place] = _BEHIND
            else:
                verdicts[place] = _DONE  # unless the next answer says otherwise
                again.append((place, message))
        return again

    def _check(self, rows: Sequence[Row]) -> tuple[list[Verdict], list[tuple[int, Message]]]:
        """What can be checked here is checked before the send; what follows a failure of its key
        waits for it.
        """
        verdicts = [_DONE] * len(rows)
        sending: list[tuple[int, Message]] = []
        failed: set[tuple[str, str] | None] = set()
        cap = self._broker.features.payload_bytes_max
        for place, row in enumerate(rows):
            if failed and (key := self.order_key(row)) is not None and key in failed:
                verdicts[place] = _BEHIND
                continue
            try:
                if cap is not None and len(row.payload) > cap:
                    raise ValueError(f"{len(row.payload)} bytes, the broker takes {cap}")
                sending.append((place, message_of(row)))
            except (ValueError, msgspec.MsgspecError) as error:
                verdicts[place] = Verdict(VerdictKind.FAILED, f"NOT_SENDABLE: {error}"[:300])
                failed.add(self.order_key(row))
        return verdicts, sending

    def _verdict(self, row: Row, outcome: Outcome) -> Verdict:
        kind, error = outcome
        if kind is O.UNROUTED:
            if row.kind == "event" and not self._routes.of(row.topic).require_groups:
                return _UNROUTED
            return Verdict(VerdictKind.TOPIC_LATER, f"UNROUTED: nobody is bound to {row.topic}")
        if kind is O.REFUSED:
            return Verdict(VerdictKind.RETRY, f"REFUSED: {error}")
        if kind is O.IMPOSSIBLE:
            return Verdict(VerdictKind.FAILED, f"IMPOSSIBLE: {error}")
        word = "OUTCOME_UNKNOWN" if kind is O.UNKNOWN else "BROKER_UNAVAILABLE"
        return Verdict(VerdictKind.LATER, f"{word}: {error}")

    def _report(self, rows: Sequence[Row], verdicts: Sequence[Verdict], seconds: float) -> None:
        done = Counter(
            [row.topic for row, verdict in zip(rows, verdicts, strict=True) if verdict is _DONE]
        )
        for topic, count in done.items():
            self._hooks.emit(Relayed(topic=topic, count=count, seconds=seconds))
        if len(rows) == done.total():
            return
        lost = Counter(
            row.topic for row, verdict in zip(rows, verdicts, strict=True) if verdict is _UNROUTED
        )
        for topic, count in lost.items():
            self._hooks.emit(Unrouted(topic=topic, count=count))


def message_of(row: Row) -> Message:
    """The envelope of an outbox row. Raises msgspec.MsgspecError for headers that are not text by
    text.
    """
    headers = _HEADERS.decode(row.headers)
    return Message(
        row.message_id, row.message_type, row.kind, row.topic, row.key, bytes(row.payload), headers
    )
