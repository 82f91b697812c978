from __future__ import annotations

import asyncio
import inspect
import pickle
import sqlite3
import time
from contextlib import closing

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from duly import App, Event, atomic
from duly.calls import Breaker, Fail, Fallback, Ignore, Retry
from duly.errors import (
    CallDeadlineError,
    CallRefusedError,
    ConfigurationError,
    OutcomeUnknownError,
    PermanentError,
)
from duly.observe.facts import BreakerMoved, Called, CallFailed, CallInTransaction


class DownError(Exception):
    pass


ON_DOWN = Retry(attempts=1, on=(DownError,))


@pytest.fixture
def app():
    app = App("calls")
    app.told = []
    app.hooks.add(app.told.append)
    return app


def raising(app, error, **options):
    """The same failing call in both colours."""

    @app.call(name="plain", **options)
    def plain(currency):
        raise error

    @app.call(name="coloured", **options)
    async def coloured(currency):
        raise error

    return plain, lambda choice: asyncio.run(coloured.using(on_failure=choice)("EUR"))


def test_it_stays_a_callable_of_its_type(app):
    @app.call()
    async def rate(currency: str, *, at: int = 0) -> float:
        """The rate."""
        return 1.5

    assert asyncio.run(rate("EUR")) == 1.5
    assert str(inspect.signature(rate)) == "(currency: 'str', *, at: 'int' = 0) -> 'float'"
    assert (rate.__name__, rate.__doc__, rate.name) == ("rate", "The rate.", "rate")


def test_ignore_gives_none_and_says_so(app):
    plain, coloured = raising(app, DownError(), retry=ON_DOWN)
    assert plain.using(on_failure=Ignore())("EUR") is None
    assert coloured(Ignore()) is None
    facts = [fact for fact in app.told if isinstance(fact, CallFailed)]
    assert [(f.call, f.code, f.outcome, f.choice) for f in facts] == [
        ("plain", "DownError", "failed", "ignore"),
        ("coloured", "DownError", "failed", "ignore"),
    ]


def test_fallback_gives_a_value_or_calls_a_function_with_the_arguments(app):
    plain, coloured = raising(app, DownError(), retry=ON_DOWN)

    async def last_known(currency):
        return f"old {currency}"

    assert plain.using(on_failure=Fallback(7))("EUR") == 7
    assert plain.using(on_failure=Fallback(str.lower))("EUR") == "eur"
    assert coloured(Fallback(last_known)) == "old EUR"


def test_fail_raises(app):
    plain, coloured = raising(app, DownError(), retry=ON_DOWN)
    with pytest.raises(DownError):
        plain.using(on_failure=Fail())("EUR")
    with pytest.raises(DownError):
        coloured(Fail())


@pytest.mark.parametrize("error", [ValueError("a bug"), PermanentError("404")])
def test_what_is_no_failure_of_the_peer_always_raises(app, error):
    plain, coloured = raising(app, error, retry=ON_DOWN)
    for choice in (Ignore(), Fallback(7)):
        with pytest.raises(type(error)):
            plain.using(on_failure=choice)("EUR")
        with pytest.raises(type(error)):
            coloured(choice)


def test_where_no_error_is_named_every_one_is_a_failure_but_permanent_ones(app):
    plain, _ = raising(app, ValueError())
    assert plain.using(on_failure=Fallback(7))("EUR") == 7
    with pytest.raises(ConfigurationError, match="two calls are named 'plain'"):
        raising(app, PermanentError())


def test_unknown_is_not_failed(app):
    plain, coloured = raising(app, OutcomeUnknownError("sent"), retry=ON_DOWN)
    with pytest.raises(OutcomeUnknownError):
        plain.using(on_failure=Fallback(7))("EUR")
    with pytest.raises(OutcomeUnknownError):
        coloured(Fallback(7))
    assert plain.using(on_failure=Fallback(7, unknown=True))("EUR") == 7
    assert plain.using(on_failure=Ignore())("EUR") is None  # it does not matter whether it was done


def test_a_repeatable_call_has_nothing_to_doubt(app):
    plain, _ = raising(app, OutcomeUnknownError("sent"), repeatable=True, defer=False)
    assert plain.using(on_failure=Fallback(7))("EUR") == 7


def test_refused_is_a_failure_without_a_call(app):
    asked = []

    @app.call(deadline="5s", breaker=Breaker(failures=1, open_for="1h"))
    def rate():
        asked.append(1)
        raise DownError

    use = rate.using(on_failure=Fallback(7))
    assert [use(), use()] == [7, 7]
    assert len(asked) == 1
    with pytest.raises(CallRefusedError):
        rate()
    moves = [fact.state for fact in app.told if isinstance(fact, BreakerMoved)]
    assert moves == ["open"]


def test_one_key_for_all_attempts_and_the_callers_own_first(app):
    keys = []

    @app.call(retry=Retry(attempts=3, base="1ms", on=(DownError,)), key_as="key", defer=False)
    def charge(amount, key=""):
        keys.append(key)
        if len(keys) % 3:
            raise DownError

    charge(5)
    charge(5)
    assert len(keys) == 6
    assert keys[0] == keys[1] == keys[2] != keys[3] == keys[4] == keys[5]
    assert len(keys[0]) > 20
    charge(5, key="mine")
    charge(5, "positional")
    assert keys[6:] == ["mine"] * 3 + ["positional"] * 3


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"breaker": Breaker()}, "breaker needs deadline"),
        ({"retry": Retry(attempts=3)}, "name the errors"),
        ({"key_as": "nonce"}, "no parameter 'nonce'"),
        ({"reconcile": lambda key: None}, "say key_as"),
        ({"deadline": 0}, "deadline"),
        ({"timeout": 1}, "takes no timeout"),
        ({"name": "not a name"}, "not a name"),
        ({"repeatable": True, "defer": Retry(on=(OSError,))}, "for calls"),
        ({"breaker": "on"}, "breaker must be a Breaker"),
    ],
)
def test_what_contradicts_itself_is_refused_when_it_is_declared(app, options, text):
    with pytest.raises((ConfigurationError, PermanentError), match=text):

        @app.call(**options)
        def rate():
            pass


def test_an_unknown_choice_is_refused(app):
    @app.call()
    def rate():
        pass

    with pytest.raises(ConfigurationError, match="on_failure is"):
        rate.using(on_failure="ignore")


def test_answers_are_told_only_where_somebody_listens(app):
    @app.call()
    def rate():
        return 1

    rate()
    assert [fact.call for fact in app.told if isinstance(fact, Called)] == ["rate"]


def test_a_long_transaction_around_a_call_is_told(tmp_path, app):
    with app.override(database=f"sqlite:///{tmp_path}/x.db", transaction_warning="20ms"):

        @app.call(name="rate")
        def rate():
            return 1

        @app.call(name="slow")
        async def slow():
            await asyncio.sleep(0.03)

        rate()
        with Session(app.database.engine()) as session, session.begin():
            rate()  # nothing is open: the session has run no statement
            session.execute(text("SELECT 1"))
            rate()
            time.sleep(0.03)  # the transaction is to be old
            rate()
        with Session(app.database.engine()) as session, session.begin():
            session.execute(text("SELECT 1"))
            time.sleep(0.03)  # the transaction is to be old
            with create_engine("sqlite://").begin():  # ends first, and is not the oldest
                pass
            rate()
        rate()
        asyncio.run(_in_async_session(app, slow))
    told = [fact for fact in app.told if isinstance(fact, CallInTransaction)]
    assert [fact.call for fact in told] == ["rate", "rate", "slow"]
    assert told[0].seconds >= 0.02


def test_a_transaction_of_no_session_is_told_too(tmp_path, app):
    """A plain connection of SQLAlchemy, and a block of duly's on one of sqlite3."""
    url = f"sqlite:///{tmp_path}/x.db"
    with app.override(database=url, transaction_warning="20ms"):

        @app.call(name="slow")
        def slow():
            time.sleep(0.03)  # longer than the setting

        with app.database.engine().begin():
            slow()
        with closing(sqlite3.connect(tmp_path / "x.db", isolation_level=None)) as raw:
            slow()
            with atomic(raw), atomic(raw):
                slow()
            slow()
    told = [fact for fact in app.told if isinstance(fact, CallInTransaction)]
    assert len(told) == 2


async def _in_async_session(app, slow):
    from sqlalchemy.ext.asyncio import AsyncSession

    engine = app.database.async_engine()
    async with AsyncSession(engine) as session, session.begin():
        await session.execute(text("SELECT 1"))
        await slow()
    await slow()
    await engine.dispose()


def test_its_errors_cross_processes():
    error = CallDeadlineError("rate: no answer in 2 s")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_errors_named_for_a_retry_are_for_calls_alone(app):
    """A route and a handler would not look at them."""
    named = Retry(on=(DownError,))
    with pytest.raises(ConfigurationError, match="a route"):
        app.route("orders", retry=named)

    class Order(Event, name="order", topic="orders"):
        pass

    with pytest.raises(ConfigurationError, match="policy="):
        app.publish(None, Order(), outbox=False, policy=named)
    with pytest.raises(ConfigurationError, match="for calls"):

        @app.on(Order, group="billing", retry=named)
        def bill(event: Order) -> None:
            pass
