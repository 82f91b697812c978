"""Sending without the outbox: what each policy does when the broker does not confirm."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from duly.databases.sqlite.database import SqliteDatabase
from duly.errors import ConfigurationError
from duly.kernel.backoff import Retry
from duly.message import Message
from duly.observe.facts import DroppedByPolicy, Fact
from duly.observe.hooks import Hooks
from duly.outbox.after_commit import FailureLog, Ignore
from duly.outbox.schema import Schema
from duly.outbox.unstored import UnstoredSender
from duly.ports import Outcome, OutcomeKind

CONFIRMED = Outcome(OutcomeKind.CONFIRMED)
REFUSED = Outcome(OutcomeKind.REFUSED, "no")


class Scripted:
    """A broker that answers from a list, and cannot start at all when it is told so."""

    def __init__(self, outcomes: Sequence[Outcome], *, broken: bool = False) -> None:
        self.outcomes, self.broken = list(outcomes), broken
        self.sent: list[str] = []

    async def start(self) -> None:
        if self.broken:
            raise ConfigurationError("no such folder")

    async def publish(
        self, messages: Sequence[Message], *, deadline_seconds: float
    ) -> Sequence[Outcome]:
        self.sent.extend(message.id for message in messages)
        return [self.outcomes.pop(0) for _ in messages]

    async def close(self) -> None:
        """Nothing is open."""


class World:
    """A sender, its broker, its failure log and what it told."""

    def __init__(self, folder: Path, broker: Scripted) -> None:
        self.database = SqliteDatabase(f"sqlite:///{folder}/duly.db")
        Schema(self.database, "shop").start()
        self.facts: list[Fact] = []
        hooks = Hooks()
        hooks.add(self.facts.append)
        self.broker = broker
        self.sender = UnstoredSender(
            lambda: broker,  # type: ignore[arg-type, return-value]
            self.database,
            hooks=hooks,
            send_timeout_seconds=1.0,
        )

    def logged(self) -> list[tuple[str, str]]:
        with sqlite3.connect(self.database.path) as raw:
            return raw.execute("SELECT message_id, error FROM duly_failure").fetchall()

    def dropped(self) -> list[str]:
        return [fact.code for fact in self.facts if isinstance(fact, DroppedByPolicy)]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Callable[[Scripted], World]]:
    made: list[World] = []

    def make(broker: Scripted) -> World:
        made.append(World(tmp_path, broker))
        return made[-1]

    yield make
    for one in made:
        one.sender.close()


def message(number: int = 1) -> Message:
    return Message(f"m{number}", "order.placed", "event", "orders", None, b"{}", {})


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)  # the sender works in a thread of its own


def test_a_confirmed_message_leaves_no_trace(world: Callable[[Scripted], World]) -> None:
    here = world(Scripted([CONFIRMED]))
    here.sender.deliver(message(), FailureLog())
    here.sender.close()
    assert here.broker.sent == ["m1"]
    assert (here.logged(), here.dropped()) == ([], [])


def test_ignore_counts_what_is_lost(world: Callable[[Scripted], World]) -> None:
    here = world(Scripted([REFUSED]))
    here.sender.deliver(message(), Ignore())
    until(here.dropped)
    assert (here.dropped(), here.logged()) == (["REFUSED"], [])


def test_retry_sends_the_same_id_again(world: Callable[[Scripted], World]) -> None:
    here = world(Scripted([REFUSED, REFUSED, CONFIRMED]))
    here.sender.deliver(message(), Retry(attempts=5, base="1ms", max="2ms"))
    until(lambda: len(here.broker.sent) == 3)
    here.sender.close()
    assert here.broker.sent == ["m1", "m1", "m1"]
    assert here.dropped() == []


def test_retry_gives_up_and_counts(world: Callable[[Scripted], World]) -> None:
    here = world(Scripted([REFUSED] * 2))
    here.sender.deliver(message(), Retry(attempts=2, base="1ms", max="2ms"))
    until(here.dropped)
    assert here.broker.sent == ["m1", "m1"]


def test_the_failure_log_keeps_it(world: Callable[[Scripted], World]) -> None:
    here = world(Scripted([REFUSED]))
    here.sender.deliver(message(), FailureLog())
    until(here.logged)
    assert here.logged() == [("m1", "REFUSED: no")]
    assert here.dropped() == []


def test_a_broker_that_cannot_start_loses_nothing(world: Callable[[Scripted], World]) -> None:
    """The first message as well as the later ones."""
    here = world(Scripted([], broken=True))
    here.sender.deliver(message(1), FailureLog())
    here.sender.deliver(message(2), FailureLog())
    until(lambda: len(here.logged()) == 2)
    assert {error for _, error in here.logged()} == {"UNAVAILABLE: CONFIGURATION: no such folder"}


def test_too_many_at_once_are_the_policys_business(
    world: Callable[[Scripted], World], tmp_path: Path
) -> None:
    here = world(Scripted([]))
    full = UnstoredSender(
        lambda: here.broker,  # type: ignore[arg-type, return-value]
        here.database,
        hooks=Hooks(),
        send_timeout_seconds=1.0,
        in_flight_max=0,
    )
    full.deliver(message(), FailureLog())
    until(here.logged)
    full.close()
    assert here.logged() == [("m1", "UNAVAILABLE: TOO_MANY_IN_FLIGHT")]
    assert here.broker.sent == []
