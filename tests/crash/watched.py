"""A broker that keeps the harness's own record of what went through it, and refuses on request.

Wraps any ``Broker``: what was handed to it, what it confirmed, what was received and acked.  A
message whose payload says ``"refuse":true`` is refused at this door for some time, as a full queue
would do; where the broker stores a batch whole, the rest of the batch is then not stored either.
Invariant: the record of a send is on the disk before the send, and that of an ack after it, so that
the record never claims less open work than there was."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from duly.kernel import failpoints
from duly.ports import CONFIRMED, Delivery, Outcome, OutcomeKind, Subscription, SubscriptionSpec
from duly.testing.journal import Journal
from tests.crash.stage import PULSE_SECONDS

REFUSE = b'"refuse":true'
POISON = b'"poison":true'
REFUSE_CHANCE = 0.5
RECENT_SENDS = 8
_REFUSED = Outcome(OutcomeKind.REFUSED, "the harness refused it")
_BESIDE = Outcome(
    OutcomeKind.UNAVAILABLE, "stored whole or not at all, and a message of it was refused"
)


def pulse(journal: Journal) -> None:
    """Write a line every ``PULSE_SECONDS``, as long as the process lives: what is missing between
    two of them is time in which none of its threads may have run."""

    def beat() -> None:
        while True:
            journal.append("pulse")
            time.sleep(PULSE_SECONDS)

    threading.Thread(target=beat, name="crash-pulse", daemon=True).start()


class Watch:
    """What this process has open, and its journal."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.sends: deque[list[str]] = deque(maxlen=RECENT_SENDS)
        self.unacked: Counter[str] = Counter()
        self.effects: set[str] = set()

    def passed(self, name: str) -> None:
        """A failpoint was passed; a renewal is written down, because its absence explains a
        stall."""
        if name == failpoints.LEASE_RENEWED:
            self.journal.append("beat")

    def dying(self, name: str) -> None:
        """The last line before the process dies at a failpoint: what is open in it."""
        self.journal.append(
            "dying",
            point=name,
            sent=sum(len(ids) for ids in self.sends),
            unacked={group: count for group, count in self.unacked.items() if count},
            effects=sorted(self.effects),
        )


class WatchedBroker:
    """``inner`` with a record. healed: poison is refused until this file is there. chance: of the
    other messages that ask for it, to be refused."""

    def __init__(
        self, inner: Any, watch: Watch, *, healed: Path, chance: float = REFUSE_CHANCE
    ) -> None:
        self._inner, self._watch, self._healed, self._chance = inner, watch, healed, chance
        self.features = inner.features

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def publish(
        self, messages: Sequence[Any], *, deadline_seconds: float
    ) -> Sequence[Outcome]:
        """Record, refuse or send, record."""
        refused = {i for i, m in enumerate(messages) if self._refuses(m.payload)}
        if refused:
            self._watch.journal.append("refuse", ids=[messages[i].id for i in sorted(refused)])
        if refused and self.features.atomic_batch:
            return [_REFUSED if i in refused else _BESIDE for i in range(len(messages))]
        sending = [m for i, m in enumerate(messages) if i not in refused]
        ids = [m.id for m in sending]
        self._watch.sends.append(ids)
        self._watch.journal.append("send", ids=ids)
        outcomes = iter(await self._send(sending, deadline_seconds))
        return [_REFUSED if i in refused else next(outcomes) for i in range(len(messages))]

    def _refuses(self, payload: bytes) -> bool:
        if POISON in payload:
            return not self._healed.exists()
        return REFUSE in payload and random.random() < self._chance

    async def _send(self, messages: Sequence[Any], deadline_seconds: float) -> Sequence[Outcome]:
        if not messages:
            return []
        outcomes: Sequence[Outcome] = await self._inner.publish(
            messages, deadline_seconds=deadline_seconds
        )
        odd = {
            m.id: o.kind.value
            for m, o in zip(messages, outcomes, strict=True)
            if o is not CONFIRMED and o.kind is not OutcomeKind.CONFIRMED
        }
        self._watch.journal.append("answer", count=len(messages), odd=odd)
        return outcomes

    async def subscribe(self, spec: SubscriptionSpec) -> Subscription:
        """A watched subscription."""
        return WatchedSubscription(await self._inner.subscribe(spec), spec.group, self._watch)


class WatchedSubscription:
    """A subscription with a record."""

    def __init__(self, inner: Subscription, group: str, watch: Watch) -> None:
        self._inner, self._group, self._watch = inner, group, watch
        self._open: dict[int, Delivery] = {}  # by its token's identity; the token is kept alive

    async def batches(self) -> AsyncIterator[list[Delivery]]:
        """As the inner one, each batch recorded before it is handed on."""
        async for batch in self._inner.batches():
            self._open |= {id(d.token): d for d in batch}
            self._watch.unacked[self._group] += len(batch)
            self._watch.journal.append(
                "recv", group=self._group, got=[[d.message.id, d.source, d.position] for d in batch]
            )
            yield batch

    async def ack(self, tokens: Sequence[Any]) -> None:
        """Acks, then records it."""
        await self._inner.ack(tokens)
        self._note("ack", tokens)

    async def release(self, tokens: Sequence[Any]) -> None:
        """Gives back, then records it."""
        await self._inner.release(tokens)
        self._note("release", tokens)

    async def close(self) -> None:
        """Closes; what is unacked goes back."""
        self._watch.journal.append("closing", group=self._group)
        await self._inner.close()
        back = [d.message.id for d in self._open.values()]
        self._watch.journal.append("release", group=self._group, ids=back)
        self._watch.journal.append("closed", group=self._group)

    def _note(self, what: str, tokens: Sequence[Any]) -> None:
        known = [self._open.pop(id(token), None) for token in tokens]
        found = [d for d in known if d is not None]
        self._watch.unacked[self._group] -= len(found)
        places = [[d.source, d.position] for d in found]
        ids = [d.message.id for d in found]
        self._watch.journal.append(what, group=self._group, ids=ids, places=places)
