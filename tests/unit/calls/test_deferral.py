from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

import pytest
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.orm import Session

from duly import App, AsyncTx, Tx
from duly.calls import Answer, Breaker, Deferred, NotFound, Retry
from duly.errors import ConfigurationError, NotSerializableError, OutcomeUnknownError
from duly.observe.facts import CallDeferred, CallFailed
from duly.outbox.operator import Scope
from duly.testing.app_test import AppTest


class DownError(Exception):
    pass


@dataclass
class Card:
    number: str


class Place(BaseModel):
    city: str


class Peer:
    """Answers one call after the other, and remembers by what key."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def __call__(self, *asked):
        self.asked.append(asked)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer


@pytest.fixture
def app():
    return App("shop")


@pytest.fixture
def done():
    return []


def charging(app, peer, done, **options):
    """A keyed call."""

    options = {"retry": Retry(attempts=1, on=(DownError,)), "key_as": "key", **options}

    @app.call(name="charge", deadline="5s", **options)
    def charge(amount: Decimal, key: str = "") -> Decimal:
        return peer(amount, key)

    @charge.done
    def charged(answer: Answer[Decimal], tx: Tx) -> None:
        tx.session.execute(text("INSERT INTO paid VALUES (:key)"), {"key": answer.key})
        done.append((answer.value, answer.key, dict(answer.arguments)))

    return charge


@pytest.fixture
def here(tmp_path):
    def start(app):
        test = AppTest(app, tmp_path)
        test.__enter__()
        started.append(test)
        with test.engine.begin() as connection:
            connection.execute(text("CREATE TABLE paid (key TEXT)"))
        return test

    started: list[AppTest] = []
    yield start
    for test in started:
        test.__exit__(None, None, None)


def paid(test):
    with test.engine.connect() as connection:
        return [row[0] for row in connection.execute(text("SELECT key FROM paid"))]


def test_a_call_that_can_be_made_now_is(app, here, done):
    peer = Peer(Decimal("1.50"))
    charge, test = charging(app, peer, done), here(app)
    with Session(test.engine) as session, session.begin():
        assert charge.deferrable(session)(Decimal(3)) == Decimal("1.50")
    assert test.drain().relayed == 0
    assert done == []


def test_one_that_cannot_is_made_later_under_the_same_key(app, here, done):
    peer = Peer(DownError(), Decimal("1.50"))
    charge, test, told = charging(app, peer, done), here(app), []
    app.hooks.add(told.append)
    with Session(test.engine) as session, session.begin():
        found = charge.deferrable(session)(Decimal("3.10"))
    assert isinstance(found, Deferred)
    assert found.code == "DownError"
    test.drain()
    assert len(peer.asked) == 2
    assert peer.asked[0] == peer.asked[1] == (Decimal("3.10"), found.key)
    arguments = {"amount": Decimal("3.10"), "key": found.key}
    assert done == [(Decimal("1.50"), found.key, arguments)]
    assert paid(test) == [found.key]
    facts = [fact for fact in told if isinstance(fact, CallFailed | CallDeferred)]
    assert [getattr(fact, "choice", fact.name) for fact in facts] == ["defer", "calls.deferred"]


def test_a_rolled_back_transaction_leaves_no_call_behind(app, here, done):
    peer = Peer(DownError(), Decimal(1))
    charge, test = charging(app, peer, done), here(app)
    with Session(test.engine) as session:
        assert isinstance(charge.deferrable(session)(Decimal(3), key="order-7"), Deferred)
        session.rollback()
    assert test.drain().relayed == 0
    assert len(peer.asked) == 1


def test_it_is_tried_again_until_it_succeeds(app, here, done):
    peer = Peer(DownError(), DownError(), OutcomeUnknownError("sent"), Decimal(1))
    charge = charging(app, peer, done, defer=Retry(attempts=5, base="10s", jitter=False))
    test = here(app)
    with Session(test.engine) as session, session.begin():
        charge.deferrable(session)(Decimal(3), key="order-7")
    for _ in range(3):
        test.drain()
        test.clock.advance("1m")
    assert [key for _, key in peer.asked] == ["order-7"] * 4
    assert paid(test) == ["order-7"]


def test_a_second_delivery_does_not_call_again(app, here, done):
    peer = Peer(DownError(), Decimal(1))
    charge, test = charging(app, peer, done), here(app)
    with Session(test.engine) as session, session.begin():
        charge.deferrable(session)(Decimal(3), key="order-7")
    test.fail_next("broker.publish_unknown")
    test.drain()
    test.clock.advance("1m")
    test.drain()
    assert len(peer.asked) == 2
    assert paid(test) == ["order-7"]


def test_unknown_and_keyed_is_deferred(app, here, done):
    peer = Peer(OutcomeUnknownError("sent"), Decimal(1))
    charge, test = charging(app, peer, done), here(app)
    with Session(test.engine) as session, session.begin():
        found = charge.deferrable(session)(Decimal(3))
    test.drain()
    assert [key for _, key in peer.asked] == [found.key] * 2


def test_unknown_without_a_key_raises_and_stores_nothing(app, here):
    peer = Peer(OutcomeUnknownError("sent"))

    @app.call(retry=Retry(attempts=1, on=(DownError,)), defer=True)
    def push() -> None:
        peer()

    test = here(app)
    with Session(test.engine) as session, pytest.raises(OutcomeUnknownError):
        push.deferrable(session)()
    assert test.drain().relayed == 0


def test_a_known_failure_without_a_key_is_deferred_and_then_held_in_doubt(app, here):
    """Made once more at most: what came of that nobody can ask."""
    peer = Peer(DownError(), OutcomeUnknownError("sent"), 1)

    @app.call(retry=Retry(attempts=1, on=(DownError,)), defer=True)
    def push() -> None:
        peer()

    test = here(app)
    with Session(test.engine) as session, session.begin():
        push.deferrable(session)()
    assert test.drain().failures == ("shop.calls: EFFECT_IN_DOUBT",)
    test.clock.advance("1d")
    test.drain()
    assert len(peer.asked) == 2
    [held] = app.operator().find("inbox", Scope())
    assert (held.status, held.type) == ("held", "shop.calls.push")
    assert "EFFECT_IN_DOUBT" in held.error


def test_an_error_nobody_named_is_not_taken_for_not_done(app, here):
    @app.call(defer=True)
    def push() -> None:
        raise ConnectionError("in the middle of it?")

    test = here(app)
    with Session(test.engine) as session, pytest.raises(ConnectionError):
        push.deferrable(session)()


def test_in_doubt_the_peer_is_asked_before_it_is_called_again(app, here, done):
    peer, ledger = Peer(OutcomeUnknownError("sent")), Peer(Decimal(9))
    charge, test = charging(app, peer, done, reconcile=ledger), here(app)
    with Session(test.engine) as session, session.begin():
        charge.deferrable(session)(Decimal(3), key="order-7")
    test.drain()
    assert ledger.asked == [("order-7",)]
    assert len(peer.asked) == 1
    assert done[0][:2] == (Decimal(9), "order-7")


def test_not_found_is_believed_only_after_a_deadline(app, here, done):
    peer, ledger = Peer(OutcomeUnknownError("sent"), Decimal(1)), Peer(NotFound)
    later = Retry(attempts=9, base="1s", max="1s", jitter=False)
    charge, test = charging(app, peer, done, reconcile=ledger, defer=later), here(app)
    with Session(test.engine) as session, session.begin():
        charge.deferrable(session)(Decimal(3), key="order-7")
    test.drain()
    assert len(peer.asked) == 1  # it may be under way for as long as the call could take
    test.clock.advance("6s")
    test.drain()
    assert [key for _, key in peer.asked] == ["order-7"] * 2


def test_an_open_breaker_defers_without_a_call(app, here, done):
    peer = Peer(DownError(), Decimal(1))
    charge = charging(app, peer, done, breaker=Breaker(failures=1, open_for="10ms"))
    test = here(app)
    with Session(test.engine) as session, session.begin():
        first = charge.deferrable(session)(Decimal(3))
        second = charge.deferrable(session)(Decimal(4))
    assert (first.code, second.code) == ("DownError", "BREAKER_OPEN")
    assert first.key != second.key
    for _ in range(4):
        test.drain()
        test.clock.advance("1m")
    assert sorted(amount for amount, *_ in done) == [Decimal(1), Decimal(1)]


async def test_async_calls_on_an_async_session(app, here):
    from sqlalchemy.ext.asyncio import AsyncSession

    peer, done = Peer(DownError(), Decimal(1)), []

    @app.call(deadline="5s", retry=Retry(attempts=1, on=(DownError,)), key_as="key")
    async def charge(
        amount: Decimal, *, on: date, card: Card, place: Place, key: str = "", **more: int
    ) -> Decimal:
        return peer(amount, on, card, place, key, more)

    @charge.done
    async def charged(answer: Answer[Decimal], tx: AsyncTx) -> None:
        await tx.session.execute(text("INSERT INTO paid VALUES (:key)"), {"key": answer.key})
        done.append(answer.value)

    test = here(app)
    given = {"on": date(2026, 1, 2), "card": Card("4"), "place": Place(city="Ulm"), "extra": 3}
    async with AsyncSession(app.database.async_engine()) as session, session.begin():
        found = await charge.deferrable(session)(Decimal(3), **given)
    await test.adrain()
    assert peer.asked[0] == peer.asked[1]
    assert peer.asked[1][-2:] == (found.key, {"extra": 3})
    assert done == [Decimal(1)]
    assert paid(test) == [found.key]


def test_what_cannot_be_stored_is_told_before_the_call(app, here):
    asked = []

    @app.call(repeatable=True)
    def push(what: object) -> None:
        asked.append(what)

    test = here(app)
    with Session(test.engine) as session, pytest.raises(NotSerializableError):
        push.deferrable(session)(object())
    assert asked == []


def test_who_says_nothing_of_a_repetition_cannot_be_deferred(app):
    @app.call()
    def push() -> None:
        pass

    with pytest.raises(ConfigurationError) as refused:
        push.deferrable(None)
    assert refused.value.code == "CALL_NOT_DEFERRABLE"
    assert app.handlers.groups == []  # and has no queue


def test_signatures_and_colours_are_checked_when_they_are_declared(app):
    with pytest.raises(ConfigurationError, match=r"\*names cannot be stored"):

        @app.call(repeatable=True)
        def several(*names: str) -> None:
            pass

    @app.call(repeatable=True)
    def push() -> None:
        pass

    with pytest.raises(ConfigurationError, match="plain function"):

        @push.done
        async def pushed(answer, tx):
            pass


def test_cancelled_is_not_deferred(app, here):
    """Who is cancelled does not go on to store something."""

    @app.call(deadline="5s", repeatable=True)
    async def push() -> None:
        raise asyncio.CancelledError

    test = here(app)

    async def caller():
        with Session(test.engine) as session, session.begin():
            await push.deferrable(session)()

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(caller())
    assert test.drain().relayed == 0
